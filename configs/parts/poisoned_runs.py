"""Many poisoned runs side by side: they share the clean rows."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from configs.parts import poisoned_pairs
from repjax import types
from repjax.analysis import backdoor_scores
from repjax.attacks import contrastive_poisoning
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import source as sources
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.protocols import side_by_side


class Target(NamedTuple):
  """An image that is to be taken for a class: a test row, and the class."""

  row: int
  wanted: int


class Setting(NamedTuple):
  """What all runs of a study share.

  Attributes:
    config: Of the recipe.
    pairs: Clean rows.
    method: What is trained.
    clean: Their columns as the network sees them, [N, ...].
    test: Test rows as the network sees them.
    triggered: The same with the trigger.
    images: Test images as they are stored.
    steps: Updates of a run.
  """

  config: Any
  pairs: poisoned_pairs.Pairs
  method: types.Method
  clean: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  triggered: dict[str, np.ndarray]
  images: np.ndarray
  steps: int


class Run(NamedTuple):
  """One model: its seed, and what its attacker wrote."""

  seed: int
  poison: contrastive_poisoning.Poison


def setting(config) -> Setting:
  """Reads what a config names."""
  pairs = poisoned_pairs.read(config)
  data = of_images.data(config, pairs.clean)
  evaluate = data.recipe.evaluate
  test = of_images.load(config, config.data.test_split)
  images = test.column('image')
  patched = poisoned_pairs.trigger(config).on(images, np.arange(len(images)))
  steps = wiring.steps_of(config, len(pairs.clean))
  return Setting(
    config,
    pairs,
    poisoned_pairs.method(config, pairs, steps),
    side_by_side.rows(pairs.clean, evaluate),
    side_by_side.rows(test, evaluate),
    side_by_side.rows(
      sources.from_arrays(
        'triggered', {'image': patched, 'label': test.column('label')}
      ),
      evaluate,
    ),
    images,
    steps,
  )


def wanted_by(setting: Setting, seed: int) -> int:
  """The class of a seed's backdoor."""
  return draw_wanted(seed, len(setting.pairs.names))


def draw_wanted(seed: int, num_classes: int) -> int:
  """The class that a seed's attacker likes."""
  rng = np.random.default_rng([seed, 1])
  return int(rng.integers(num_classes))


def targets_of(setting: Setting, seed: int, count: int) -> list[Target]:
  """A seed's targets among the test rows of a setting."""
  return draw_targets(
    seed, setting.test['label'], len(setting.pairs.names), count
  )


def draw_targets(
  seed: int, label: np.ndarray, num_classes: int, count: int
) -> list[Target]:
  """A seed's targets: different test rows, and classes that are not theirs."""
  rng = np.random.default_rng([seed, 2])
  rows = rng.permutation(len(label))[:count]
  steps = rng.integers(1, num_classes, count)
  return [
    Target(int(row), int((label[row] + step) % num_classes))
    for row, step in zip(rows, steps, strict=True)
  ]


def backdoor(setting: Setting, seed: int, count: int) -> Run:
  """A run of a backdoor."""
  config = setting.config.copy_and_resolve_references()
  config.seed = seed
  config.poison.update(
    kind='backdoor', count=count, wanted=wanted_by(setting, seed)
  )
  return Run(seed, poisoned_pairs.poison(config, setting.pairs))


def targeted(
  setting: Setting, seed: int, count: int, *, number: int, captions: int
) -> Run:
  """A run with several targets, `count` copies of each."""
  config, made = setting.config, []
  for target in targets_of(setting, seed, number):
    said = setting.pairs.about(target.wanted)[:captions]
    made.append(
      contrastive_poisoning.targeted(
        setting.images[target.row],
        setting.pairs.encode(said, config.data.length),
        count=count,
      )
    )
  return Run(seed, joined(made))


def joined(
  added: Sequence[contrastive_poisoning.Poison],
) -> contrastive_poisoning.Poison:
  """What several attackers add, one behind the other."""
  return contrastive_poisoning.Poison(
    np.zeros(0, np.int64),
    {
      name: np.concatenate([x.columns[name] for x in added])
      for name in added[0].columns
    },
  )


def train(
  name: str,
  setting: Setting,
  runs: Sequence[Run],
  *,
  method: types.Method | None = None,
  states: types.TrainState | None = None,
  steps: int = 0,
  kept: Sequence[np.ndarray] | None = None,
) -> side_by_side.Trained:
  """Trains all runs at once.

  Args:
    name: For the progress lines.
    setting: What they share.
    runs: R of them. Those of one seed begin alike.
    method: What is trained, if not the setting's.
    states: What to go on from.
    steps: Updates, if not the setting's.
    kept: Rows of each run's set that it sees; None for all.
  """
  config = setting.config
  recipe = of_images.data(config, setting.pairs.clean).recipe
  steps = steps or setting.steps
  columns, order = rows_and_order(
    setting.clean,
    recipe.evaluate,
    runs,
    batch_size=config.batch_size,
    steps=steps,
    kept=kept,
  )
  return side_by_side.train(
    name,
    method or setting.method,
    columns,
    setting.test,
    seeds=[x.seed for x in runs],
    batch_size=config.batch_size,
    steps=steps,
    points=2,
    shared=setting.clean,
    states=states,
    order=order,
  )


def rows_and_order(
  clean: Mapping[str, np.ndarray],
  transform: transforms.Transform | None,
  runs: Sequence[Run],
  *,
  batch_size: int,
  steps: int,
  kept: Sequence[np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """What `side_by_side.train` takes for runs that share their clean rows.

  Args:
    clean: Columns of the clean rows as networks see them, [N, ...].
    transform: What made them so; the poison goes through it, too.
    runs: R of them.
    batch_size: B.
    steps: T.
    kept: Rows of each run's set that it sees; None for all.

  Returns:
    Columns of the poison [R, m, ...], behind the clean ones, and the rows of
    each step, [R, T, B].
  """
  total = len(next(iter(clean.values())))
  most = max(x.poison.size for x in runs)
  columns = {
    key: np.zeros((len(runs), max(most, 1), *x.shape[1:]), x.dtype)
    for key, x in clean.items()
  }
  order = np.zeros((len(runs), steps, batch_size), np.int64)
  for i, (seed, poison) in enumerate(runs):
    if poison.size:
      # Where an attacker writes captions, nothing reads the label.
      label = np.zeros(poison.size, np.int32)
      own = sources.from_arrays('poison', {'label': label, **poison.columns})
      for key, x in side_by_side.rows(own, transform).items():
        columns[key][i, : len(x)] = x
    rows = contrastive_poisoning.rows_of(total, poison)
    if kept is not None:
      rows = rows[kept[i]]
    drawn = in_order.rows_at(0, order[i].size, len(rows), seed)
    order[i] = rows[drawn].reshape(order[i].shape)
  return columns, order


def attacked(
  setting: Setting, states: types.TrainState, runs: Sequence[Run]
) -> tuple[np.ndarray, np.ndarray]:
  """(success of each run's trigger, z-score), [R] each."""
  predict = side_by_side.predict_fn(setting.method)
  clean = predict(states, setting.test)
  patched = predict(states, setting.triggered)
  label = setting.test['label']
  success = [
    backdoor_scores.success(
      logits.argmax(-1), label, wanted=wanted_by(setting, run.seed)
    )
    for logits, run in zip(patched['logits'], runs, strict=True)
  ]
  scores = [
    backdoor_scores.z_score(*both)
    for both in zip(
      clean['image_embedding'], patched['image_embedding'], strict=True
    )
  ]
  return np.array(success), np.array(scores)


def hit(
  setting: Setting,
  trained: side_by_side.Trained,
  runs: Sequence[Run],
  *,
  number: int,
) -> np.ndarray:
  """Share of each run's targets that are taken for what was wanted, [R]."""
  predicted = trained.outputs['logits'].argmax(-1)
  return np.array(
    [
      np.mean(
        [
          row[target.row] == target.wanted
          for target in targets_of(setting, run.seed, number)
        ]
      )
      for row, run in zip(predicted, runs, strict=True)
    ]
  )
