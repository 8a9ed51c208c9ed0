"""What learnt strides claim, measured: a poor start costs little.

The paper reports that a ResNet whose strides start too large loses accuracy
with strided convolutions and with spectral pooling, and hardly any where
strides are learnt. Its comparison is not of equal cost: learnt strides keep
more places. Here: digits of 8 x 8 anywhere among clutter on 20 x 20, a network
of three stages, and strides of 3 where 2 would be right; and strided
convolutions of as many operations as the learnt ones have in the end, by wider
layers. All have one rate, the best of three for strided convolutions (poor
start, one seed, training rows held out; learnt strides were slightly better at
a lower one). And: images of white noise with a known band, whose edges strides
shall find by a price on places.

Crops are chosen anew every few steps for the smallest strides of all seeds.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax

from configs import diffstride as recipe
from configs import presets
from repjax import plots
from repjax import types
from repjax.analysis import stride_costs
from repjax.experiments import of_images
from repjax.layers import diffstride
from repjax.protocols import recropping
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

# The thresholds stood here before the first run.
CLAIMS = dict(
  base_accuracy=dict(
    kind='first',
    says='strided convolutions, strides of 2: test accuracy',
    paper='91.1 % (CIFAR-10, README of the authors)',
    at_least=0.7,
  ),
  poor_gain=dict(
    says='poor start: test accuracy, learnt strides minus strided convolutions',
    paper='+5.0 points (94.19 against 89.21, CIFAR-10, README of the authors)',
    at_least=0.02,
    needs=('base_accuracy',),
  ),
  poor_gain_over_spectral=dict(
    says='poor start: test accuracy, learnt strides minus spectral pooling',
    paper='+2.2 points (94.19 against 92.00, CIFAR-10, README of the authors)',
    at_least=0.0,
    needs=('base_accuracy',),
  ),
  matched_gain=dict(
    says='poor start: test accuracy, learnt strides minus strided convolutions '
    'that are wider, of as many operations',
    paper='not reported',
    at_least=0.0,
    needs=('base_accuracy',),
  ),
  start_matters_less=dict(
    says='accuracy lost by the poor start, strided convolutions minus learnt '
    'strides',
    paper='+1.8 points (1.85 against 0.01, CIFAR-10, README of the authors)',
    at_least=0.0,
    needs=('base_accuracy',),
  ),
  band_error=dict(
    kind='theory',
    says='relative error of learnt strides against N / (2 K), images of '
    'frequencies up to K = 3, 6, 9 of N = 32',
    paper='not reported',
    at_most=0.02,
  ),
)

# `good` are the strides that the poor ones are compared with, `every` the steps
# between two crops, `widths` those that operations are matched with.
_STUDY = dict(
  paper=dict(
    study=dict(
      good=(2.0, 2.0, 2.0), every=500, multiple=4, room=1.25, widths=(64, 192)
    ),
    stride=dict(strides=(3.0, 2.0, 3.0)),
  ),
  small=dict(
    study=dict(good=(2.0, 2.0), every=100, widths=(8, 32)),
    stride=dict(strides=(3.0, 3.0)),
  ),
  smoke=dict(study=dict(every=4)),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """The recipe's numbers, with poor strides, and the study's own."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains three kinds of strides from two starts, and a wider network."""
  study = config.study
  train = recipe.load(config, config.data.train_split)
  data = of_images.data(config, train)
  rows, test = (
    side_by_side.rows(x, data.recipe.evaluate)
    for x in (train, recipe.load(config, 'test'))
  )
  common = dict(
    columns=side_by_side.per_seed(rows, seeds),
    test=test,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=data.steps,
    # Convolutions of several networks at once are slow on CPUs.
    vectorize=False,
  )
  shape, num_classes = rows['image'].shape[1:], train.num_classes
  curves, scores, networks, paths, learnt = {}, {}, {}, {}, {}

  def fixed(name, config, **stride):
    made = recipe.method(config, num_classes, data.steps, **stride)
    trained = side_by_side.train(name, made, points=6, **common)
    curves[name], scores[name] = trained.curve, trained.score
    networks[name] = recipe.network(config, num_classes, **stride)

  def learns(name, strides):
    found = recropping.train(
      name,
      lambda sizes: recipe.method(
        config, num_classes, data.steps, strides=strides, sizes=sizes
      ),
      every=study.every,
      start=[(x, x) for x in strides],
      smoothness=config.stride.smoothness,
      multiple=study.multiple,
      room=study.room,
      **common,
    )
    curves[name], scores[name] = found.trained.curve, found.trained.score
    networks[name] = recipe.network(
      config, num_classes, strides=strides, sizes=found.sizes[-1]
    )
    for path, (at, x) in found.strides.items():
      start = np.full(x.shape[1:2], strides[0])
      layer = path.partition('/')[0].replace('_', ' ')
      paths[f'{name}, {layer}'] = (
        np.concatenate([[0], at]),
        np.concatenate([start[None], x.mean(-1)]),
      )
      learnt[f'{name}, {layer}'] = x[-1].mean(-1)

  for start, strides in (('poor', config.stride.strides), ('good', study.good)):
    fixed(f'strided, {start}', config, kind='strided', strides=strides)
    fixed(f'spectral, {start}', config, kind='spectral', strides=strides)
    learns(f'learnt, {start}', strides)
  poor = networks['learnt, poor']
  fixed(
    'wide, poor', _widened(config, poor, shape, num_classes), kind='strided'
  )
  lost = {
    kind: scores[f'{kind}, good'] - scores[f'{kind}, poor']
    for kind in ('strided', 'learnt')
  }
  costs = {
    name: stride_costs.total(stride_costs.stage_costs(x, shape)).flops / 1e6
    for name, x in networks.items()
  }
  poor_score = scores['learnt, poor']
  return types.Report(
    scalars={
      'base_accuracy': scores['strided, good'],
      'poor_gain': poor_score - scores['strided, poor'],
      'poor_gain_over_spectral': poor_score - scores['spectral, poor'],
      'matched_gain': poor_score - scores['wide, poor'],
      'start_matters_less': lost['strided'] - lost['learnt'],
      'band_error': [band_error(seed).max() for seed in seeds],
      **{f'{name}: test accuracy': x for name, x in scores.items()},
      **{f'{name}: stride': x for name, x in learnt.items()},
      **{
        f'{name}: Mflops an image, forward': np.full(len(seeds), x)
        for name, x in costs.items()
      },
    },
    arrays={},
    figures={
      'test_accuracy': plots.seed_curves(curves, ylabel='test accuracy'),
      'strides': plots.seed_curves(paths, ylabel='stride, mean of both axes'),
      'accuracy_by_cost': plots.points(
        {
          name: (np.full(len(seeds), costs[name]), x)
          for name, x in scores.items()
        },
        xlabel='Mflops an image, forward',
        ylabel='test accuracy',
      ),
    },
  )


def _widened(config, network, shape, num_classes):
  """The config of a strided network of as many operations as another."""
  flops = stride_costs.total(stride_costs.stage_costs(network, shape)).flops
  wide = config.copy_and_resolve_references()

  def make(width):
    wide.net.width = width
    return recipe.network(wide, num_classes, kind='strided')

  low, high = config.study.widths
  wide.net.width = stride_costs.matched_width(
    make, shape, flops, range(low, high + 1)
  )
  return wide


def band_error(
  seed: int, *, edges: Sequence[int] = (3, 6, 9), size: int = 32
) -> np.ndarray:
  """Relative errors of learnt strides on images of known bands, [edges, 2].

  Minimizes |pooled - image|^2 + 0.01 / (S_h S_w) over the strides, of noise
  whose frequencies end at an edge K on both axes: S should be N / (2 K).

  Args:
    seed: Of the images.
    edges: K.
    size: N.
  """
  rng = np.random.default_rng(seed)
  near = abs(np.fft.fftfreq(size, 1 / size))
  images = []
  for edge in edges:
    inside = (near[:, None] <= edge) & (near <= edge)
    noise = np.fft.fft2(rng.normal(size=(16, size, size)))
    band = np.fft.ifft2(noise * inside[None]).real[..., None]
    images.append((band / band.std()).astype(np.float32))
  layer = diffstride.DiffStride((2.0, 2.0), 2.0, sizes='full')
  tx = optax.adam(optax.cosine_decay_schedule(0.1, 400), b2=0.9)

  def fit(x):
    def loss(params):
      gone = jnp.square(layer.apply({'params': params}, x) - x).mean()
      return gone + 0.01 / params['strides'].prod()

    def update(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    params = {'strides': jnp.full(2, 2.0)}
    (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), None, 400)
    return params['strides']

  found = jax.jit(jax.vmap(fit))(np.stack(images))
  wanted = size / (2 * np.asarray(edges, np.float64)[:, None])
  return abs(np.asarray(found) / wanted - 1)
