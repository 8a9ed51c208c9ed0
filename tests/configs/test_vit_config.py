"""What the ViT config wires beside the model and the optimizer."""

import json

import chex
import jax
import numpy as np
import pytest

from configs import vit
from repjax import loop
from repjax import types
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


def test_weights_that_know_other_pixels_are_told(state, tmp_path, caplog):
  vit_weights.save_safetensors(tmp_path / 'model.safetensors', state.params)
  (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.9]}')
  config = vit.get_config('smoke')
  config.weights = str(tmp_path / 'model.safetensors')
  vit.build(config)
  assert 'where image_mean is (0.9,)' in caplog.text


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


def test_a_run_does_not_forget_what_its_weights_say(state, tmp_path):
  folder = tmp_path / 'hub'
  folder.mkdir()
  vit_weights.save_safetensors(folder / 'model.safetensors', state.params)
  said = dict(model_type='vit', num_attention_heads=2)
  (folder / 'config.json').write_text(json.dumps(said))
  config = vit.get_config('smoke')
  config.weights = str(folder)
  vit.build(config)
  folder.rename(tmp_path / 'moved')
  with pytest.raises(types.InputError, match='hub is not there'):
    vit.build(config)
