"""What `launch.evaluate --episodes` asks and prints."""

from unittest import mock

import jax
import numpy as np
import pytest

from configs import distribution_calibration
from configs import sam
from launch.lib import judged_features
from repjax import loop
from repjax import types
from repjax.data.reading import source


def test_ways_and_shots():
  assert judged_features.asked('5x1') == (5, 1)
  for text in ('5', '5x', 'x1', '5x1x2', '-5x1', '5 x 1'):
    with pytest.raises(types.InputError, match='must be ways x shots'):
      judged_features.asked(text)


def test_features_of_any_recipe_are_judged_on_the_same_episodes():
  config = sam.get_config('smoke')
  experiment = sam.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), 0)
  settings = dict(ways=5, shots=1, queries=5, count=20, seed=0)
  found = judged_features.measure(
    experiment, state, 'test', layer='head', **settings
  )
  assert found['classes'] == 10
  # With one row a class, the nearest centroid is the nearest neighbour.
  accuracy = found['accuracy']
  assert accuracy['nearest centroid'] == accuracy['nearest neighbour']
  over = found['over']
  assert over['nearest centroid']['nearest neighbour'] == (0, 0)
  for name, (mean, _) in accuracy.items():
    assert set(over[name]) == set(accuracy) - {name}
    for other, (gain, half) in over[name].items():
      assert gain == pytest.approx(mean - accuracy[other][0], abs=1e-9)
      assert half == over[other][name][1]
  for mean, half in accuracy.values():
    assert 0.2 < mean <= 1 and 0 < half < 0.2
  # What the first layer sees are the pixels, which need no network.
  other = state.replace(params=jax.tree.map(np.zeros_like, state.params))
  pixels = [
    judged_features.measure(experiment, x, 'test', layer='hidden_0', **settings)
    for x in (state, other)
  ]
  assert pixels[0] == pixels[1] != found


def test_base_rows_of_a_split_lend_to_the_classes_of_another():
  config = distribution_calibration.get_config('smoke')
  experiment = distribution_calibration.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), 0)
  seen = []
  asked = dict(layer='head', ways=5, shots=1, queries=5, count=4, seed=0)

  def judge(*rows, base, **settings):
    seen.append((rows, base, settings))

  with mock.patch.object(judged_features, 'judge', judge):
    for split in ('', 'train'):
      judged_features.measure(
        experiment, state, 'novel:test', base_split=split, **asked
      )
  (_, without, _), ((_, labels), (base, base_labels), _) = seen
  assert without is None
  # Of what the network learns and of no other; labels of both begin at 0.
  data = source.load('digits', 'train')
  held, novel = distribution_calibration.classes(
    config, data.column('label'), config.seed
  )
  assert set(labels.tolist()) == set(novel.tolist())
  assert set(base_labels.tolist()) == set(range(len(held)))
  assert len(base) == np.isin(data.column('label'), held).sum()


def test_an_unknown_layer_is_refused():
  experiment = sam.build(sam.get_config('smoke'))
  state = loop.init(experiment.method, experiment.train.batch(0), 0)
  with pytest.raises(types.InputError, match=r"'haed' 0 times.*'head'"):
    judged_features.measure(
      experiment,
      state,
      'test',
      layer='haed',
      ways=5,
      shots=1,
      queries=5,
      count=2,
      seed=0,
    )


def test_the_classes_of_the_episodes_lend_nothing_to_themselves():
  experiment = sam.build(sam.get_config('smoke'))
  state = loop.init(experiment.method, experiment.train.batch(0), 0)
  with pytest.raises(types.InputError, match="--split=test, such as '0'"):
    judged_features.measure(
      *(experiment, state, 'test'),
      **dict(layer='head', ways=5, shots=1, queries=5, count=2, seed=0),
      base_split='train',
    )
