"""What the ViT config wires beside the model and the optimizer."""

import chex
import jax
import numpy as np
import pytest

from configs import vit
from repjax import loop
from repjax.weights import vit_weights


@pytest.fixture(scope='module')
def state():
  experiment = vit.build(vit.get_config('smoke'))
  return jax.device_get(
    loop.init(experiment.method, experiment.train.batch(0), seed=5)
  )


def test_published_weights_replace_all_but_the_head(state, tmp_path):
  file = tmp_path / 'vit.npz'
  vit_weights.save_npz(file, state.params)
  config = vit.get_config('smoke')
  config.weights = str(file)
  experiment = vit.build(config)
  fresh = loop.init(experiment.method, experiment.train.batch(0), seed=0)
  started = jax.device_get(experiment.warm_start(fresh))
  for name in state.params:
    if name != 'head':
      chex.assert_trees_all_equal(started.params[name], state.params[name])
  np.testing.assert_array_equal(started.params['head']['kernel'], 0)
  assert started.step == 0


@pytest.mark.parametrize('kind', ['performer', 'rfa'])
def test_linear_attention_is_one_field(state, kind):
  config = vit.get_config('smoke')
  config.attention.kind = kind
  config.attention.num_features = 8
  experiment = vit.build(config)
  batch = experiment.train.batch(0)
  one = loop.fit(experiment.method, lambda start: [batch] * 2, steps=2, seed=0)
  assert set(one.params) == set(state.params)
  assert 'projection' in one.model_state
