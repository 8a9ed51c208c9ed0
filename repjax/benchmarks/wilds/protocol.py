"""The protocol of U-WILDS on small sets: each method with and without labels.

Sagawa et al., ICLR 2022 (https://arxiv.org/abs/2112.05090), table 2: what
methods gain from rows without labels is measured against the same method
without them, and against augmentation alone, which those methods use, too. Here
all runs of an arm go side by side: several draws of the set, and several
replicates of each, whose spread is one of the things that WILDS reports.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from repjax import start
from repjax import types
from repjax.benchmarks.wilds import algorithms
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import experiment
from repjax.benchmarks.wilds import loaders
from repjax.benchmarks.wilds import views as viewing
from repjax.data.batches import in_order
from repjax.methods import noisy_student
from repjax.methods import step as steps
from repjax.models import text_heads
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Arm(NamedTuple):
  """One row of the table.

  Attributes:
    algorithm: Its name.
    augmented: Whether it learns from strong views.
    unlabelled: Whether it learns from rows without labels.
  """

  algorithm: str
  augmented: bool = False
  unlabelled: bool = False

  @property
  def name(self) -> str:
    """'dann, augmented, unlabelled rows'."""
    augmented = ', augmented' if self.augmented else ''
    return (
      self.algorithm
      + augmented
      + (', unlabelled rows' if self.unlabelled else '')
    )


ERM, AUGMENTED = Arm('erm'), Arm('erm', augmented=True)
# As in WILDS: labelled rows as they are.
LABELLED = tuple(Arm(x) for x in ('group_dro', 'irm', 'coral', 'dann'))
# As in U-WILDS. Without rows that have no label, the last five are AUGMENTED;
# 'swav' is the same from another start.
SAME = tuple(Arm(x, augmented=True) for x in ('coral', 'dann'))
UNLABELLED = tuple(
  Arm(x, augmented=True, unlabelled=True)
  for x in (
    *('coral', 'dann', 'afn', 'pseudo_label', 'fixmatch', 'noisy_student'),
    'swav',
  )
)
ARMS = (ERM, AUGMENTED, *LABELLED, *SAME, *UNLABELLED)


class Runs(NamedTuple):
  """All runs of an arm: D draws of the set, R replicates of each.

  Attributes:
    accuracy: Split -> 'acc_avg' of each run, [D, R].
    num_rows: Split -> its rows.
    logits: Of the rows without labels that the study names, [D, R, n, C].
  """

  accuracy: dict[str, np.ndarray]
  num_rows: dict[str, int]
  logits: np.ndarray


def run(
  arm: Arm,
  config: Any,
  method_of: Callable[[Any, experiment.Data], types.Method],
  *,
  draws: Sequence[int],
  replicates: int,
  copies: int,
  strong: str,
  unlabelled: str,
  teacher: Runs | None = None,
) -> Runs:
  """Trains all runs of an arm side by side and evaluates all labelled splits.

  Args:
    arm: What is trained.
    config: Of the recipe, with data.kind='hospitals' or 'shops'; it is not
      changed.
    method_of: (config, data) -> method.
    draws: D values of data.looks.
    replicates: R, seeds of initialization and batches.
    copies: Views of each row of an augmented arm, drawn once for all.
    strong: Kind of the strong views.
    unlabelled: Split of the rows without labels.
    teacher: Of 'noisy_student': runs whose logits label these rows.
  """
  config = config.copy_and_resolve_references()
  config.unlabelled = unlabelled if arm.unlabelled else ''
  config.augment.kind = strong if arm.augmented else 'none'
  count = copies if arm.augmented else 1
  gather = functools.partial(
    _gathered, draws=draws, replicates=replicates, copies=count
  )
  network = None
  algorithm = arm.algorithm
  if algorithms.NEEDS[algorithm].unlabelled == 'alone':
    config.algorithm = algorithm
    name = f'{algorithm}, pretraining'
    network = _trained(name, gather(config), config, method_of)
    algorithm, config.unlabelled = 'erm', ''
  config.algorithm = algorithm
  rows = gather(config, teacher=teacher)
  states = _trained(arm.name, rows, config, method_of, network)
  method = method_of(config, rows.sets[0])
  accuracy, logits = _evaluate(method, states, rows.sets, replicates)
  others = []
  for draw in draws:
    config.data.looks = draw
    others.append(experiment.load(config, unlabelled=True).subset(unlabelled))
  num_rows = {x: len(rows.sets[0].labelled.subset(x)) for x in accuracy}
  return Runs(accuracy, num_rows, logits(others))


class _Rows(NamedTuple):
  """What all runs of one training see.

  Attributes:
    sets: One a draw.
    columns: Rows of all draws, in their views, name -> [M, ...].
    order: Rows of each step, [D * R, T, B].
    seeds: Of each run, [D * R].
  """

  sets: list[experiment.Data]
  columns: dict[str, np.ndarray]
  order: np.ndarray
  seeds: list[int]


def _gathered(config, *, draws, replicates, copies, teacher=None):
  """Rows of a config's algorithm, those of a draw shared by its replicates."""
  sets, columns, orders, seeds = [], [], [], []
  before = 0
  for i, draw in enumerate(draws):
    config.data.looks = draw
    data = experiment.read(config)
    sets.append(data)
    for replicate in range(replicates):
      taught = config.algorithm == 'noisy_student'
      if taught or not replicate:
        pseudo = None
        if taught:  # Each replicate has a teacher of its own.
          assert teacher is not None
          pseudo = noisy_student.labels(teacher.logits[i, replicate])
        columns.append(_columns(data, config.algorithm, pseudo, copies))
        first, before = before, before + len(columns[-1]['label'])
      config.seed = 1000 * draw + replicate
      seeds.append(config.seed)
      orders.append(first + _order(config, data, copies))
  joined = {k: np.concatenate([x[k] for x in columns]) for k in columns[0]}
  return _Rows(sets, joined, np.stack(orders), seeds)


def _trained(name, rows, config, method_of, network=None):
  """States of all runs, begun from a pretrained network if there is one."""
  method = method_of(config, rows.sets[0])
  states = side_by_side.begin(method, {}, rows.seeds, shared=rows.columns)
  if network is not None:
    states = start.with_network(
      states, steps.variables(network), without=text_heads.OF_MASKED_LM
    )
  total = rows.sets[0].steps
  for step, current, means in seed_loop.fit(
    method,
    states,
    {},
    rows.order,
    seeds=rows.seeds,
    every=max(1, total // 4),
    shared=rows.columns,
  ):
    states = current
    logging.info(
      '%s: step %s/%s  loss %.4f',
      name,
      f'{step:,}',
      f'{total:,}',
      means['loss'].mean(),
    )
  return states


def gain(runs: Runs, base: Runs, split: str) -> np.ndarray:
  """Mean over replicates of the difference in accuracy, [D]."""
  return (runs.accuracy[split] - base.accuracy[split]).mean(1)


def spread(runs: Runs, split: str) -> np.ndarray:
  """Standard deviation over replicates (R - 1), one row at the least, [D]."""
  finest = 1 / runs.num_rows[split]
  return np.maximum(runs.accuracy[split].std(1, ddof=1), finest)


def chosen(
  runs: Mapping[str, Runs], *, by: str, split: str
) -> tuple[list[str], np.ndarray]:
  """The arm that is best on one split, draw by draw, and its accuracy there.

  Args:
    runs: Name -> runs.
    by: Split that chooses: 'val'.
    split: Split that is reported.

  Returns:
    (names [D], accuracies [D]).
  """
  names = list(runs)
  on = np.stack([runs[x].accuracy[by].mean(1) for x in names])
  best = on.argmax(0)
  scores = np.stack([runs[x].accuracy[split].mean(1) for x in names])
  return [names[i] for i in best], scores[best, np.arange(len(best))]


def _columns(data, algorithm, pseudo, copies):
  """Rows of one run: those with labels in their views, then those without."""
  views, parts = data.views, []
  transform = views.strong
  alone = algorithms.NEEDS[algorithm].unlabelled == 'alone'
  for subset in (data.train, data.unlabelled):
    if subset is None or (alone and subset is data.train):
      continue
    if algorithm in ('fixmatch', 'swav'):
      guessed = algorithm == 'fixmatch' and subset is not data.train
      transform = views.pair(first='weak' if guessed else 'strong')
    source = subset.source(data.grouper)
    labelled = subset is data.train
    added = dict(labelled=np.full(len(source), labelled, np.float32))
    if pseudo:
      blank = {
        k: np.zeros((len(source), *x.shape[1:]), x.dtype)
        for k, x in pseudo.items()
      }
      added |= blank if labelled else pseudo
    # All replicates see the same views, in other orders.
    parts.append(
      viewing.copies(source.with_columns(**added), transform, copies, seed=0)
    )
  names = set.intersection(*(set(x) for x in parts)) - {'row'}
  return {k: np.concatenate([x[k] for x in parts]) for k in sorted(names)}


def _order(config, data, copies):
  """Places of each step's rows in `_columns`, [T, B]."""
  batches = experiment.batches(config, data)
  joint = isinstance(batches, loaders.JointBatches)
  kinds = (batches.labelled, batches.unlabelled) if joint else (batches,)
  rng = np.random.default_rng([config.seed, copies])
  before, found = 0, []
  for part in kinds:
    rows = _rows(part, data.steps)
    number = len(part.source)
    found.append(before + rows + number * rng.integers(copies, size=rows.shape))
    before += copies * number
  return np.concatenate(found, 1)


def _rows(batches, steps):
  if isinstance(batches, loaders.UniformBatches | loaders.GroupBatches):
    return np.stack([batches.rows_at(step) for step in range(steps)])
  size = batches.batch_size
  return in_order.rows_at(
    0, steps * size, len(batches.source), batches.seed
  ).reshape(steps, size)


def _evaluate(method, states, sets, replicates):
  """Split -> accuracies [D, R], and (a subset a draw) -> logits of all runs."""
  predict = jax.jit(jax.vmap(jax.vmap(method.predict, (0, None))))
  shaped = jax.tree.map(
    lambda x: x.reshape(len(sets), replicates, *x.shape[1:]), states
  )

  def logits(subsets: Sequence[datasets.Subset]) -> np.ndarray:
    columns = [
      data.views.evaluate.apply(x.source().columns(), None)
      for data, x in zip(sets, subsets, strict=True)
    ]
    batch = {k: np.stack([x[k] for x in columns]) for k in columns[0]}
    batch['mask'] = np.ones(batch['row'].shape, np.float32)
    return np.asarray(predict(shaped, batch)['logits'])  # [D, R, n, C]

  accuracy = {}
  for split in sets[0].labelled.split_ids:
    subsets = [x.labelled.subset(split) for x in sets]
    found = logits(subsets)
    if not np.isfinite(found).all():
      raise types.NonFiniteError(f'logits of {split} are not finite')
    guesses = found.argmax(-1)
    accuracy[split] = np.array(
      [
        [x.evaluate(guess).results['acc_avg'] for guess in own]
        for x, own in zip(subsets, guesses, strict=True)
      ]
    )
  return accuracy, logits
