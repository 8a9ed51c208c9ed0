"""BEiT's study: one tokenizer, both kinds of masks, then few labels."""

import functools
import itertools

import jax
import jax.numpy as jnp
from matplotlib import figure as mpl_figure
from ml_collections import config_dict
import numpy as np

from configs.parts import beit_stages as stages
from repjax import plots
from repjax import start
from repjax import types
from repjax.data.images import block_masks
from repjax.experiments import of_images
from repjax.methods import beit as pretraining
from repjax.methods import supervised
from repjax.protocols import side_by_side
from repjax.weights import beit_weights

_KINDS = ('blocks', 'random')  # Of masks, in the study.


def run(config: config_dict.ConfigDict) -> types.Report:
  """A tokenizer, pre-training with both kinds of masks, then few labels.

  Whatever can be is trained side by side in one call, since compiling takes
  as long as training here.
  """
  train, recipe, _ = of_images.read(config)
  test = stages.load(config, 'test')
  rows, test_rows = (
    side_by_side.rows(x, recipe.evaluate) for x in (train, test)
  )
  reconstruct, ids, test_ids = _study_tokenizer(config, train, test, recipe)
  rows['token_image'], test_rows['token_image'] = ids, test_ids
  pretrained, fill, curves = _study_pretraining(
    config, rows, test_rows, recipe.shape
  )
  accuracy = {}
  for stage, groups in (
    ('finetune', (_KINDS, ('scratch',))),
    ('probe', ((*_KINDS, 'scratch'),)),
  ):
    for kinds in groups:
      trained = _study_classifiers(
        config,
        stage,
        rows,
        test_rows,
        recipe.shape,
        train.num_classes,
        {kind: pretrained.get(kind) for kind in kinds},
      )
      for kind, (scores, curve) in trained.items():
        accuracy[stage, kind] = scores
        curves[f'{stage}, {kind}'] = curve
  tokens = {name: curves.pop(name) for name in _KINDS}
  nats = {kind: _nats(outputs) for kind, outputs in fill.items()}
  right = {kind: token_accuracy(outputs, {}) for kind, outputs in fill.items()}
  return types.Report(
    scalars={
      'few_label_gain': accuracy['finetune', 'blocks']
      - accuracy['finetune', 'scratch'],
      'blockwise_harder': nats['blocks'] - nats['random'],
      'blockwise_gain': accuracy['finetune', 'blocks']
      - accuracy['finetune', 'random'],
      'probe_gain': accuracy['probe', 'blocks'] - accuracy['probe', 'scratch'],
      'token_accuracy': right['blocks'] / _majority(test_ids),
      **{f'{stage} {kind}': x for (stage, kind), x in accuracy.items()},
      **{f'nats {kind}': x for kind, x in nats.items()},
      **{f'tokens right {kind}': x for kind, x in right.items()},
      'tokens in use': [float(len(np.unique(test_ids)))],
    },
    arrays={},
    figures={
      'accuracy': plots.seed_curves(curves, ylabel='test accuracy'),
      'hidden_tokens': plots.seed_curves(
        tokens, ylabel='tokens behind blocks predicted right'
      ),
      'masks': _masks_figure(config),
      'reconstructions': _reconstructions(
        config, test_rows, fill['blocks'], reconstruct
      ),
    },
  )


def _study_tokenizer(config, train, test, recipe):
  """(ids -> images, tokens of training images, tokens of test images)."""
  config = stages.of_stage(config, 'tokenizer')
  recipe = stages.token_recipe(config, recipe)
  rows, test_rows = (
    side_by_side.rows(x, recipe.evaluate) for x in (train, test)
  )
  steps = stages.num_steps(config, len(train))
  method = stages.tokenizer_method(config, recipe.shape, steps)
  seeds = config.seeds[:1]
  trained = side_by_side.train(
    'tokenizer',
    method,
    side_by_side.per_seed(rows, seeds),
    test_rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
    points=4,
    vectorize=False,  # See `loop.fit_seeds`.
    score=mean_squared_error,
  )
  ids = side_by_side.predict_fn(method)(trained.states, rows)['ids'][0]
  model = stages.autoencoder(config, recipe.shape)
  (params,) = _unstack(trained.states.params)
  reconstruct = jax.jit(
    lambda ids: model.apply({'params': params}, ids, method='decode')
  )
  return reconstruct, ids, trained.outputs['ids'][0]


def _study_pretraining(config, rows, test_rows, shape):
  """With both kinds of masks, all seeds of both side by side.

  Returns:
    Three dicts by kind: parameters, one tree a seed; what is predicted of the
    test images behind masks of that kind; (steps, share of tokens behind
    BLOCKS that are predicted right).
  """
  config = stages.of_stage(config, 'pretrain')
  num_rows, seeds = len(rows['image']), tuple(config.seeds)
  again = np.tile(np.arange(num_rows), config.study.masks_per_image)
  runs = len(_KINDS) * len(seeds)
  columns = {
    name: np.stack([rows[name][again]] * runs)
    for name in ('image', 'token_image')
  }
  masks = [
    _fixed_masks(config, kind, len(again), seed)
    for kind in _KINDS
    for seed in seeds
  ]
  columns |= {name: np.stack([m[name] for m in masks]) for name in masks[0]}
  tests = {
    kind: {
      **test_rows,
      **_fixed_masks(config, kind, len(test_rows['image']), _test_seed(config)),
    }
    for kind in _KINDS
  }
  steps = stages.num_steps(config, num_rows)
  tokenizer = pretraining.known(config.tokenizer.vocab_size)
  method = stages.pretraining_method(config, tokenizer, shape, steps)
  trained = side_by_side.train(
    'pre-training',
    method,
    columns,
    tests['blocks'],
    seeds=seeds * len(_KINDS),
    batch_size=config.batch_size,
    steps=steps,
    points=10,
    score=token_accuracy,
  )
  predict = side_by_side.predict_fn(method)
  params, outputs, curves = {}, {}, {}
  at, scores = trained.curve
  for kind, part in zip(_KINDS, _parts(len(seeds)), strict=False):
    states = jax.tree.map(lambda x, part=part: x[part], trained.states)
    outputs[kind] = predict(states, tests[kind])
    curves[kind] = (at, scores[:, part])
    params[kind] = _unstack(states.params)
  return params, outputs, curves


def _study_classifiers(
  config, stage, rows, test_rows, shape, num_classes, pretrained
):
  """Trains on few labels: kind -> (test accuracy [S], curve).

  Args:
    config: Of the study.
    stage: 'finetune' or 'probe'.
    rows: Training rows.
    test_rows: Test rows.
    shape: Of the images.
    num_classes: Number of labels.
    pretrained: Kind -> parameters of pre-training, one tree a seed, or None to
      start from scratch. All kinds are trained side by side.
  """
  config = stages.of_stage(config, stage)
  if list(pretrained.values()) == [None]:
    config.tx.layer_decay = 1.0  # There is nothing that is worth keeping.
    config.tx.learning_rate = config.study.scratch_learning_rate
  seeds = tuple(config.seeds)
  columns = side_by_side.per_seed(
    {key: rows[key] for key in ('image', 'label')},
    seeds,
    num_rows=config.study.few,
  )
  steps = stages.num_steps(config, config.study.few)
  method = supervised.make(
    stages.classifier(config, num_classes, shape), stages.adamw(config, steps)
  )
  batch = {'image': rows['image'][:1], 'mask': np.ones(1)}
  fresh = jax.jit(lambda rng: method.init(rng, batch))
  starts = []
  for trees in pretrained.values():
    for i, seed in enumerate(seeds):
      state = fresh(jax.random.key(seed))
      if trees is not None:
        load = functools.partial(beit_weights.transfer, trees[i])
        state = start.fill(state, load)
      starts.append(state)
  trained = side_by_side.train(
    f'{stage}, {", ".join(pretrained)}',
    method,
    {
      name: np.concatenate([x] * len(pretrained)) for name, x in columns.items()
    },
    {key: test_rows[key] for key in ('image', 'label')},
    seeds=seeds * len(pretrained),
    batch_size=config.batch_size,
    steps=steps,
    points=10,
    states=jax.tree.map(lambda *x: jnp.stack(x), *starts),
  )
  at, scores = trained.curve
  return {
    kind: (trained.score[part], (at, scores[:, part]))
    for kind, part in zip(pretrained, _parts(len(seeds)), strict=False)
  }


def _parts(size):
  """slice(0, size), slice(size, 2 * size), ..."""
  return (slice(i * size, (i + 1) * size) for i in itertools.count())


def _unstack(tree):
  """A tree with a leading axis as a list of trees."""
  number = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(number)]


def _fixed_masks(config, kind, num_rows, seed):
  config = config.copy_and_resolve_references()
  config.masks.kind = kind
  return block_masks.fixed(*stages.masks_of(config), num_rows, seed=seed)


def _test_seed(config):
  return 1 + max(config.seeds)


def mean_squared_error(outputs, test):
  """Of reconstructions, [S]."""
  del test  # The method knows the images.
  return outputs['mse'].mean(-1)


def token_accuracy(outputs, test):
  """Share of hidden patches whose token is predicted, [S]."""
  del test  # The method knows the tokens.
  return outputs['hits'].sum(-1) / outputs['patches'].sum(-1)


def _nats(outputs):
  return outputs['nll'].sum(-1) / outputs['patches'].sum(-1)


def _majority(ids):
  """Share of the most frequent token."""
  return np.bincount(ids.ravel()).max() / ids.size


def _masks_figure(config, columns=8):
  """Masks of both kinds, hidden patches dark."""
  rows = {}
  for kind in _KINDS:
    config = config.copy_and_resolve_references()
    config.masks.kind = kind
    sampler, _ = stages.masks_of(config)
    rng = np.random.default_rng(0)
    rows[kind] = 1 - np.stack([sampler(rng) for _ in range(columns)])[..., None]
  return _pictures(rows)


def _reconstructions(config, test_rows, outputs, reconstruct, columns=8):
  """Images, their tokens, what is hidden, and what the model fills in."""
  grid = (config.patch_grid, config.patch_grid)
  image = test_rows['image'][:columns]
  ids, guess = (outputs[name][0, :columns] for name in ('ids', 'guess'))
  masks = _fixed_masks(config, 'blocks', columns, _test_seed(config))
  hidden = np.zeros(ids.shape)
  for row in range(len(ids)):
    weight = masks['masked_weight'][row] > 0
    hidden[row, masks['masked'][row][weight]] = 1
  scale = np.ones((1, image.shape[1] // grid[0], image.shape[2] // grid[1], 1))
  shown = np.kron(hidden.reshape(-1, *grid, 1), scale)
  return _pictures(
    {
      'image': image,
      'its tokens': reconstruct(ids.reshape(-1, *grid)),
      'seen': np.where(shown > 0, (image.max() + image.min()) / 2, image),
      'filled in': reconstruct(guess.reshape(-1, *grid)),
    }
  )


def _pictures(rows):
  """Rows of images with their names, all in one range of values."""
  fig = mpl_figure.Figure(figsize=(8, 1.05 * len(rows)))
  places = fig.subplots(len(rows), len(next(iter(rows.values()))))
  for line, (name, images) in zip(places, rows.items(), strict=True):
    images = np.asarray(images)
    low, high = images.min(), images.max()
    for axes, image in zip(line, (images - low) / (high - low), strict=True):
      axes.imshow(np.squeeze(image), cmap='gray', vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, fontsize=8)
  return fig
