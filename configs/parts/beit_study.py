"""BEiT's stages for the seeds of its study, on a small set in memory.

Whatever can be is trained side by side in one call, since compiling takes as
long as training here.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np

from configs.parts import beit_stages
from configs.parts import beit_tokenizer
from repjax import start
from repjax import trees
from repjax import types
from repjax.data.images import block_masks
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import beit as pretraining
from repjax.methods import supervised
from repjax.protocols import rate_search
from repjax.protocols import side_by_side
from repjax.weights import beit_weights

KINDS = ('blocks', 'random')  # Of masks.


class Data(NamedTuple):
  """A set as the network sees it, with its tokens.

  Attributes:
    rows: Training rows, name -> [N, ...]: 'image', 'label', and 'token_image',
      the tokens themselves.
    test: Test rows.
    shape: Of an image.
    num_classes: Number of labels.
    reconstruct: Tokens [N, rows, columns] -> images.
  """

  rows: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  shape: tuple[int, ...]
  num_classes: int
  reconstruct: Callable[[np.ndarray], np.ndarray]


def read(config, seed: int) -> Data:
  """Reads the set, trains one tokenizer on it, and has it tell all tokens."""
  train, recipe, _ = of_images.read(config)
  config = beit_stages.of_stage(config, 'tokenizer')
  sets = (train, of_images.load(config, 'test'))
  rows, test = (side_by_side.rows(x, recipe.evaluate) for x in sets)
  alone = beit_tokenizer.alone(config, recipe)
  columns, test_columns = (side_by_side.rows(x, alone.evaluate) for x in sets)
  steps = wiring.steps_of(config, len(train))
  method = beit_tokenizer.method(
    config, alone.shape, steps, beit_stages.adamw(config, steps)
  )
  trained = side_by_side.train(
    'tokenizer',
    method,
    side_by_side.per_seed(columns, (seed,)),
    test_columns,
    seeds=(seed,),
    batch_size=config.batch_size,
    steps=steps,
    points=4,
    vectorize=False,  # See `seed_loop.fit`.
    score=mean_squared_error,
  )
  predict = side_by_side.predict_fn(method)
  rows['token_image'] = predict(trained.states, columns)['ids'][0]
  test['token_image'] = trained.outputs['ids'][0]
  model = beit_tokenizer.autoencoder(config, alone.shape)
  (params,) = trees.unstack(trained.states.params)
  reconstruct = jax.jit(
    lambda ids: model.apply({'params': params}, ids, method='decode')
  )
  return Data(rows, test, recipe.shape, train.num_classes, reconstruct)


class Pretrained(NamedTuple):
  """S models that fill in what one kind of masks hides.

  Attributes:
    params: One tree a seed.
    outputs: What they predict of the test images behind masks of that kind.
    curve: (steps, share of tokens behind BLOCKS that are predicted right).
  """

  params: list[types.PyTree]
  outputs: dict[str, np.ndarray]
  curve: tuple[np.ndarray, np.ndarray]


def pretrain(config, data: Data, seeds: Sequence[int]) -> dict[str, Pretrained]:
  """With both kinds of masks, all seeds of both side by side."""
  config = beit_stages.of_stage(config, 'pretrain')
  num_rows = len(data.rows['image'])
  again = np.tile(np.arange(num_rows), config.study.masks_per_image)
  runs = len(KINDS) * len(seeds)
  columns = {
    name: np.stack([data.rows[name][again]] * runs)
    for name in ('image', 'token_image')
  }
  masks = [
    _fixed_masks(config, kind, len(again), seed)
    for kind in KINDS
    for seed in seeds
  ]
  columns |= {name: np.stack([m[name] for m in masks]) for name in masks[0]}
  tests = {
    kind: {
      **data.test,
      **masks_of_test(config, kind, len(data.test['image']), seeds),
    }
    for kind in KINDS
  }
  steps = wiring.steps_of(config, num_rows)
  tokenizer = pretraining.known(config.tokenizer.vocab_size)
  method = beit_stages.pretraining_method(
    config, tokenizer, data.shape, beit_stages.adamw(config, steps)
  )
  trained = side_by_side.train(
    'pre-training',
    method,
    columns,
    tests['blocks'],
    seeds=tuple(seeds) * len(KINDS),
    batch_size=config.batch_size,
    steps=steps,
    points=10,
    score=token_accuracy,
  )
  predict = side_by_side.predict_fn(method)
  at, scores = trained.curve
  made = {}
  for kind, part in zip(KINDS, _parts(len(seeds)), strict=False):
    states = jax.tree.map(lambda x, part=part: x[part], trained.states)
    made[kind] = Pretrained(
      trees.unstack(states.params),
      predict(states, tests[kind]),
      (at, scores[:, part]),
    )
  return made


def classify(
  config,
  stage: str,
  data: Data,
  starts: Mapping[str, list[types.PyTree] | None],
  seeds: Sequence[int],
) -> dict[str, rate_search.Tuned]:
  """Trains on few labels, all starts and rates side by side.

  Args:
    config: Of the study, whose `study.rates` has those of the stage.
    stage: 'finetune' or 'probe'.
    data: Its rows; the last `study.held_out` training rows choose rates.
    starts: Name -> parameters of pre-training, one tree a seed, or None to
      start from scratch.
    seeds: S seeds.

  Returns:
    Name -> what came of it.
  """
  config = beit_stages.of_stage(config, stage)
  if list(starts.values()) == [None]:
    config.tx.layer_decay = 1.0  # There is nothing that is worth keeping.
  config.tx.learning_rate = 1.0  # Times those of `rates`.
  count = config.study.held_out
  names = ('image', 'label')
  held_out, columns = (
    {key: data.rows[key][part] for key in names}
    for part in (slice(-count, None), slice(-count))
  )
  columns = side_by_side.per_seed(columns, seeds, num_rows=config.study.few)
  steps = wiring.steps_of(config, config.study.few)
  method = supervised.make(
    beit_stages.classifier(config, data.num_classes, data.shape),
    side_by_side.swept(beit_stages.adamw(config, steps)),
  )
  batch = {'image': data.rows['image'][:1], 'mask': np.ones(1)}
  fresh = jax.jit(lambda rng: method.init(rng, batch))
  states = {}
  for name, start_of in starts.items():
    begun = []
    for i, seed in enumerate(seeds):
      state = fresh(jax.random.key(seed))
      if start_of is not None:
        load = functools.partial(beit_weights.transfer, start_of[i])
        state = start.fill(state, load)
      begun.append(state)
    states[name] = trees.stack(begun)
  return rate_search.tune(
    stage,
    method,
    states,
    {},
    held_out,
    per_seed=columns,
    seeds=seeds,
    rates=config.study.rates[stage],
    batch_size=config.batch_size,
    steps=steps,
    rule=rate_search.best_mean,
    test={key: data.test[key] for key in names},
    points=10,
  )


def masks_of_test(config, kind: str, num_rows: int, seeds: Sequence[int]):
  """Columns of masks for the first test images, unlike any in training."""
  return _fixed_masks(config, kind, num_rows, 1 + max(seeds))


def _fixed_masks(config, kind, num_rows, seed):
  return block_masks.fixed(
    *beit_stages.masks_of(with_masks(config, kind)), num_rows, seed=seed
  )


def with_masks(config, kind: str):
  """The config with another kind of masks."""
  config = config.copy_and_resolve_references()
  config.masks.kind = kind
  return config


def _parts(size):
  """slice(0, size), slice(size, 2 * size), ..."""
  return (slice(i * size, (i + 1) * size) for i in itertools.count())


def mean_squared_error(outputs, test) -> np.ndarray:
  """Of reconstructions, [S]; a `side_by_side.Score`."""
  del test  # The method knows the images.
  return outputs['mse'].mean(-1)


def token_accuracy(outputs, test) -> np.ndarray:
  """Share of hidden patches whose token is predicted, [S]; a `Score`."""
  del test  # The method knows the tokens.
  return outputs['hits'].sum(-1) / outputs['patches'].sum(-1)
