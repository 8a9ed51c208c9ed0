"""Transfer to images of two distributions: rows, networks, what is pretrained.

With a group `colours` digits are painted, and pretraining learns on them;
without one there are published weights, and OOD is a set of its own.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from repjax import optim
from repjax import start
from repjax import types
from repjax.data.batches import mixtures
from repjax.data.images import colours
from repjax.data.images import recipes
from repjax.data.reading import prepared
from repjax.data.reading import source
from repjax.layers import frozen
from repjax.methods import lp_ft
from repjax.methods import regression
from repjax.models import mlp
from repjax.models import vit
from repjax.protocols import linear_probe
from repjax.protocols import side_by_side
from repjax.weights import stored_config
from repjax.weights import vit_weights


def load(config, split: str) -> source.Source:
  """Rows to learn ('train', 'val', 'test'), or those of 'ood'.

  Args:
    config: With the group `data`: `train_split` and the like are splits of its
      set. OOD is `data.ood`, or the test split in other colours.
    split: One of the four, or files to predict.
  """
  own = split.partition(':')[0] in (prepared.INPUTS, prepared.LABELLED)
  if not own:
    known = ('train', 'val', 'test', 'ood')
    types.check_choice('config.data.eval_splits', split, known)
  data, is_ood = config.data, split == 'ood'
  if is_ood and 'colours' not in config:
    return source.load(data.ood.name, data.ood.split, data_dir=data.dir)
  name = split if own else data[f'{"test" if is_ood else split}_split']
  rows = source.load(data.name, name, data_dir=data.dir)
  if 'colours' not in config:
    return rows
  inks = config.colours.ood if is_ood else config.colours.id
  return colours.painted(rows, inks, seed=0)


def network(config, num_classes: int) -> mlp.Mlp | vit.ViT:
  """With a random head, as after the authors' `new_last_layer`."""
  if 'mlp' in config:
    if config.weights:
      raise types.InputError(
        f'config.weights={config.weights} counts for nothing in this preset, '
        'whose network learns here first: take the preset paper.'
      )
    return mlp.Mlp(num_classes, **config.mlp)
  head_init = jax.nn.initializers.lecun_normal()
  made = vit.variant('B/16', num_classes, head_init=head_init)
  return vit_weights.as_stored(config.weights, made) if config.weights else made


def at_head(path) -> bool:
  """Whether a parameter is the head's."""
  return path[0] == 'head'


def pretrained(config, state: types.TrainState) -> types.TrainState:
  """A fresh state of `network` with a pretrained backbone."""
  if 'pretraining' in config:
    params = pretrain(config, (config.seed,)).states.params
    params = jax.tree.map(lambda x: x[0], params)
    return start.with_params(state, params, keep=at_head)
  if not config.weights:
    raise types.InputError(
      'config.weights is empty: give the file of a published ViT-B/16, or '
      'measure with the preset small.'
    )
  stored_config.warn_of_other_pixels(config.weights, config.augment)
  load_file = functools.partial(
    vit_weights.load_vit, config.weights, head='replace'
  )
  return start.fill(state, load_file)


def pretrain(config, seeds) -> side_by_side.Trained:
  """Learns to see the grey image in a coloured one, without labels.

  Args:
    config: With the groups `data`, `colours`, `augment`, `mlp` and
      `pretraining`.
    seeds: Of the models.
  """
  settings = config.pretraining
  grey = source.load(config.data.name, settings.split, data_dir=config.data.dir)
  rows = mixtures.union(
    [
      colours.painted(grey, [ink], seed=0, keep_grey=True)
      for ink in config.colours.pretraining
    ]
  )
  columns = side_by_side.rows(
    rows, recipes.images(rows, **config.augment).evaluate
  )
  # On the scale of the inputs.
  pixels = columns.pop('grey').reshape((len(rows), -1)) / 255
  columns['target'] = pixels / np.asarray(config.augment.std[0], np.float32)
  rate = optim.warmup_cosine(
    settings.learning_rate, steps=settings.steps, warmup=0.0
  )
  return side_by_side.train(
    'pretraining',
    regression.make(mlp.Mlp(pixels.shape[1], **config.mlp), optax.adam(rate)),
    side_by_side.per_seed(columns, seeds),
    {name: x[: len(grey)] for name, x in columns.items()},
    seeds=seeds,
    batch_size=settings.batch_size,
    steps=settings.steps,
    points=5,
    score=regression.unexplained,
  )


def links(
  config, steps: int, rate: float, optimizer: types.Optimizer = optax.sgd
) -> optax.GradientTransformation:
  """The optimizer, or one for the head and one for all else."""
  head, elsewhere = (
    optimizer(
      optim.warmup_cosine(rate * factor, steps=steps, warmup=0.0),
      momentum=config.tx.momentum,
    )
    for factor in (config.tx.head_factor, 1.0)
  )
  if config.tx.head_factor == 1:
    return elsewhere
  return lp_ft.partition(at_head=head, elsewhere=elsewhere)


def trained(config, model: nn.Module) -> nn.Module:
  """The network, or in the stage 'lp' its head alone."""
  if config.stage not in ('lp_ft', 'ft', 'lp'):
    raise types.InputError(
      f"config.stage is 'lp_ft', 'ft' or 'lp'; got {config.stage!r}."
    )
  return frozen.train_only(model, at_head) if config.stage == 'lp' else model


def begin(
  config,
  model: nn.Module,
  experiment: types.Experiment,
  state: types.TrainState,
) -> types.TrainState:
  """A pretrained backbone and, in the stage 'lp_ft', the best exact probe."""
  state = pretrained(config, state)
  if config.stage != 'lp_ft':
    return state
  probe = linear_probe.of_model(
    model,
    state,
    train=experiment.evals('train'),
    val=experiment.evals('val'),
    num_classes=model.num_classes,
    **probe_settings(config),
  )
  return start.with_params(state, lp_ft.with_head(state.params, *probe.head))


def probe_settings(config):
  """Arguments of `linear_probe.fit`."""
  probe = config.probe
  return dict(
    grid=linear_probe.strengths(probe.num, probe.low, probe.high),
    max_iter=probe.max_iter,
    tol=probe.tol,
    solver=probe.solver,
  )
