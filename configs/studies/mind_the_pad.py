"""What Mind the Pad claims, measured: kernels that grow lopsided, blind spots.

The paper shows that padding is consumed on one side alone where a convolution
with a stride meets images of 224 pixels, that mean kernels of trained networks
are then lopsided (figure 6), not so at 225 pixels, and that detectors miss
small objects near some sides (figure 1). Here: five convolutions without norms
tell the direction of gratings whose pixels have mean 1, at 32 pixels, where all
three strides are uneven, and at 33, where none is; and a detector in one shot
on a small residual network looks for squares of 3 pixels, which move over all
places afterwards. Asymmetry is an index of our own, of mean sizes of weights.
"""

import functools

import jax
from ml_collections import config_dict
import numpy as np
import optax

from configs import mind_the_pad as recipe
from configs import presets
from repjax import plots
from repjax import types
from repjax.analysis import blind_spots
from repjax.analysis import mean_kernels
from repjax.analysis import padding
from repjax.data.sets import spots
from repjax.experiments import of_images
from repjax.layers import padding as layers
from repjax.methods import detection
from repjax.models import shot_detector
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

CLAIMS = dict()

_LAYER: presets.Layer = dict(
  paper=dict(
    spots=dict(side=32, size=3, contrast=0.4, noise=0.15),
    detector=dict(
      **dict(rows=3000, batch_size=32, steps=400, learning_rate=3e-3),
      **dict(width=8, repeats=2, blank_rows=200),
    ),
  ),
  smoke=dict(
    spots=dict(side=16),
    detector=dict(rows=64, steps=4, repeats=1, blank_rows=8),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset, with those of the detector."""
  return presets.get_config(preset, presets.IMAGES, recipe.PRESETS, _LAYER)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains on uneven and on even images, and sweeps a spot over detectors."""
  arms = _arms(config)
  trained = {name: _train(name, arm, seeds) for name, arm in arms.items()}
  layer, kernels = _kernels(config, trained)
  asymmetry, tilt = (
    {name: index(mean) for name, mean in kernels.items()}
    for index in (mean_kernels.asymmetry, mean_kernels.tilt)
  )
  spread = {
    name: _spread(arms[name], trained[name].states)
    for name in ('uneven', 'uneven, circular')
  }
  maps, alarms = {}, {}
  for name, (side, mode) in _detectors(config).items():
    maps[name], alarms[name] = _detect(name, config, seeds, side, mode)
  sides = {name: blind_spots.of_sides(x) for name, x in maps.items()}
  gap = {
    name: (x['bottom'] + x['right'] - x['top'] - x['left']) / 2
    for name, x in sides.items()
  }
  border = {
    name: x['inside'] - sum(x[y] for y in _SIDES) / 4
    for name, x in sides.items()
  }
  flip = {}
  if 'uneven, other side' in tilt:
    flip['tilt_flip'] = tilt['uneven, other side'] - tilt['uneven']
  curves = {name: x.curve for name, x in trained.items()}
  return types.Report(
    scalars={
      'accuracy': np.min([x.score for x in trained.values()], 0),
      'found_inside': np.min([x['inside'] for x in sides.values()], 0),
      'false_alarms': np.max(list(alarms.values()), 0),
      'asymmetry_ratio': asymmetry['uneven'] / asymmetry['even'],
      'circular_asymmetry': asymmetry['uneven'] / asymmetry['uneven, circular'],
      **flip,
      'even_accuracy_gain': trained['even'].score - trained['uneven'].score,
      'blind_side': abs(gap['uneven']) - abs(gap['even']),
      'blind_border': border['uneven'] - border['uneven, circular'],
      'constant_circular': spread['uneven, circular'],
      'constant_zero': spread['uneven'],
      **{f'accuracy, {x}': y.score for x, y in trained.items()},
      **{f'asymmetry of {layer}, {x}': y for x, y in asymmetry.items()},
      **{f'tilt of {layer}, {x}': y for x, y in tilt.items()},
      **{f'found {y}, {x}': sides[x][y] for x in sides for y in sides[x]},
    },
    arrays={f'found {x}': y for x, y in maps.items()},
    figures={
      'accuracy': plots.seed_curves(curves, ylabel='test accuracy'),
      'foveation': plots.matrices(
        _foveation(config), xlabel='column', ylabel='row'
      ),
      'mean_kernels': plots.matrices(
        {
          name: mean.mean(0) / mean.mean(0).max()
          for name, mean in kernels.items()
        },
        xlabel=f'column of {layer}',
        ylabel='row (size of weights, largest 1)',
      ),
      'blind_spots': plots.matrices(
        {f'{name}, found': x.mean(0) for name, x in maps.items()},
        xlabel='column of the spot',
        ylabel='row',
      ),
    },
  )


_SIDES = ('top', 'bottom', 'left', 'right')


def _kernels(config, trained):
  """(last layer with a stride, arm -> its mean sizes of weights [S, k, k])."""
  audit = padding.pad_audit(recipe.network(config, 2), (64, 64, 3), train=False)
  layer = [
    x.name
    for x in audit
    if x.kind == 'conv' and min(x.windows[0].stride, x.windows[0].kernel) > 1
  ][-1]
  return layer, {
    name: mean_kernels.mean_kernels(x.states.params, seeds=True)[layer][1]
    for name, x in trained.items()
  }


def _spread(config, states):
  """Largest deviation over places from a map's mean, of a constant image."""
  train = recipe.load(config, 'train')
  model = recipe.network(config, train.num_classes)
  found = []
  for seed in range(len(states.step)):
    state = jax.tree.map(lambda x, i=seed: x[i], states)
    maps = padding.constant_response(
      model,
      {'params': state.params, **state.model_state},
      train.image_shape,
      train=False,
    )
    off = [np.ptp(x, (0, 1)).max() / abs(x).max() for x in maps.values()]
    found.append(max(off))
  return np.array(found)


def _foveation(config):
  """Padding -> ways that each pixel takes, over the most of any pixel."""
  side = config.data.side
  audit = padding.pad_audit(
    recipe.network(config, 2), (side, side, 3), train=False
  )
  path = [x for x in audit if 'shortcut' not in x.name]
  modes = ('zero', 'partial', 'reflect', 'replicate', 'symmetric', 'circular')
  maps = {mode: padding.foveation(path, mode) for mode in modes}
  return {mode: x / x.max() for mode, x in maps.items()}


def _arms(config):
  """Name -> config: where padding is consumed."""
  model = recipe.network(config, 2)
  side = config.data.side
  even = padding.even_sizes(model, (side, side, 3), train=False)[0][-1]
  changes = {
    'uneven': {},
    'even': dict(data=dict(side=even)),
    'uneven, circular': dict(padding='circular'),
    'uneven, other side': dict(strided=dict(padding='SAME')),
  }
  if config.network != 'strided':
    del changes['uneven, other side']
  arms = {}
  for name, change in changes.items():
    arms[name] = config.copy_and_resolve_references()
    arms[name].update(change)
  return arms


def _train(name, config, seeds):
  train, test = (recipe.load(config, x) for x in ('train', 'test'))
  data = of_images.data(config, train)
  rows, test_rows = (
    side_by_side.rows(x, data.recipe.evaluate) for x in (train, test)
  )
  method = recipe.method(config, train.num_classes, data.steps)
  return side_by_side.train(
    name,
    method,
    {},
    test_rows,
    shared=rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=data.steps,
    points=4,
    # Five times as fast on two cores as convolutions of all seeds in one.
    vectorize=False,
  )


def _detectors(config):
  side = config.spots.side
  return {
    'uneven': (side, ''),
    'even': (side + 1, ''),
    'uneven, circular': (side, 'circular'),
  }


def _detect(name, config, seeds, side, mode):
  """([S, P, P] how surely a spot is found, [S] where there is none)."""
  numbers = config.detector
  drawing = {**config.spots, 'side': side}
  model = shot_detector.ShotDetector(width=numbers.width)
  if mode:
    model = layers.Padded(model, mode)
  rate = optax.cosine_decay_schedule(numbers.learning_rate, numbers.steps)
  method = detection.make(model, optax.adam(rate))
  paint = functools.partial(spots.paint, **drawing)
  swept = blind_spots.sweep(
    paint, side=side, size=config.spots.size, repeats=numbers.repeats
  )
  rows = _scaled(spots.draw(numbers.rows, seed=0, **drawing).columns())
  blank = _scaled(spots.draw(numbers.blank_rows, seed=1, **drawing).columns())
  blank = {k: x[blank['label'] == 0] for k, x in blank.items()}

  def found(outputs, test):
    del test  # All places of the sweep.
    return blind_spots.seen(outputs, swept).mean((-2, -1))

  trained = side_by_side.train(
    name,
    method,
    {},
    _scaled(swept.columns),
    shared=rows,
    seeds=seeds,
    batch_size=numbers.batch_size,
    steps=numbers.steps,
    points=1,
    vectorize=False,
    score=found,
  )
  predict = side_by_side.predict_fn(method, vectorize=False)
  alarms = predict(trained.states, blank)['score'].max(-1).mean(-1)
  return blind_spots.seen(trained.outputs, swept), alarms


def _scaled(columns):
  return {**columns, 'image': columns['image'] / np.float32(127.5)}
