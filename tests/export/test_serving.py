"""Programs say what the method says, for any number of rows."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.export import program
from repjax.layers import attention
from repjax.methods import lp_ft
from repjax.methods import supervised
from repjax.models import mlp

flatbuffers = pytest.importorskip('flatbuffers')


@pytest.fixture(scope='module')
def run():
  """(method, state, batch) of a small classifier with an average."""
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(6, 2, 2, 1)).astype(np.float32),
    'label': np.arange(6) % 3,
    'mask': np.array([1, 1, 1, 1, 0, 0], np.float32),
  }
  method = supervised.make(
    mlp.Mlp(3, features=(5,)), optax.adam(0.1), ema_decay=0.9
  )
  state = jax.jit(method.init)(jax.random.key(0), batch)
  state, _ = jax.jit(method.update)(state, batch, jax.random.key(1))
  return method, state, batch


def test_any_number_of_rows(run, tmp_path):
  method, state, batch = run
  signature = program.write(tmp_path, method, state, batch)
  shape = ['rows', 2, 2, 1]
  assert signature.inputs == {'image': {'dtype': 'float32', 'shape': shape}}
  assert signature.outputs['logits']['shape'] == ['rows', 3]
  predict = program.load(tmp_path)
  expect = jax.jit(method.predict)
  for rows in (1, 3, 6):
    expected = expect(state, {k: x[:rows] for k, x in batch.items()})
    found = predict({'image': batch['image'][:rows]})
    np.testing.assert_allclose(
      found['logits'], expected['logits'], rtol=1e-6, atol=1e-6
    )
  said = json.loads((tmp_path / program.SIGNATURE).read_text())
  assert said['platforms'] == ['cpu', 'cuda', 'tpu']
  assert said['inputs'] == signature.inputs


def test_only_what_is_read_is_written(run, tmp_path):
  import safetensors.numpy

  method, state, batch = run
  program.write(tmp_path, method, state, batch)
  weights = safetensors.numpy.load_file(tmp_path / program.WEIGHTS)
  # The average: neither what it is of, nor the moments of Adam.
  assert sum(x.size for x in weights.values()) == 4 * 5 + 5 + 5 * 3 + 3
  assert all(name.startswith('extra/') for name in weights)


def test_a_program_of_fixed_rows(run, tmp_path):
  method, state, batch = run

  def predict(state, batch):
    first = np.zeros(batch['image'].shape[0])  # Only numbers will do.
    return {'logits': method.predict(state, batch)['logits'] + first[:, None]}

  odd = types.Predictor(predict)
  with pytest.raises(types.InputError, match=r'--format=jax.*--rows=8'):
    program.write(tmp_path, odd, state, batch)
  signature = program.write(tmp_path, odd, state, batch, rows=2)
  assert signature.inputs['image']['shape'] == [2, 2, 2, 1]
  found = program.load(tmp_path)({'image': batch['image'][:2]})
  assert found['logits'].shape == (2, 3)


class Attending(nn.Module):
  @nn.compact
  def __call__(self, image, *, mask, train):
    tokens = nn.Dense(8, dtype=jnp.bfloat16)(image)
    mixed = attention.Flash()(tokens, tokens, tokens, deterministic=True)
    return nn.Dense(3)(mixed.mean((1, 2)))


def test_a_program_made_where_attention_is_fused(run, tmp_path, monkeypatch):
  class Gpu:
    platform, compute_capability = 'gpu', '9.0'

  there = {None: [Gpu()], 'cpu': jax.devices('cpu')}
  *_, batch = run
  method = supervised.make(Attending(), optax.sgd(0.1))
  state = jax.jit(method.init)(jax.random.key(0), batch)
  expected = method.predict(state, batch)
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'devices', lambda name=None: there[name])
    program.write(tmp_path, method, state, batch)
  found = program.load(tmp_path)({'image': batch['image']})
  np.testing.assert_allclose(
    found['logits'], expected['logits'], rtol=2e-2, atol=2e-2
  )


def test_keys_have_no_file(run, tmp_path):
  method, state, batch = run

  def predict(state, batch):
    state, key = state
    noise = jax.random.normal(key, (3,))
    return {'logits': method.predict(state, batch)['logits'] + noise[None]}

  noisy = types.Predictor(predict)
  with pytest.raises(types.InputError, match='random numbers'):
    program.write(tmp_path, noisy, (state, jax.random.key(3)), batch)


def test_a_damaged_folder(tmp_path):
  with pytest.raises(types.InputError, match='no whole program'):
    program.load(tmp_path)


def test_a_missing_reader_is_not_taken_for_a_damaged_folder(
  run, tmp_path, monkeypatch
):
  program.write(tmp_path, *run)
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  with pytest.raises(types.InputError, match='pip install flatbuffers'):
    program.load(tmp_path)


def test_all_rows_of_a_program_are_real(run, tmp_path):
  method, state, batch = run

  def predict(state, rows):
    logits = method.predict(state, rows)['logits']
    return {'logits': logits * rows['mask'][:, None]}

  program.write(tmp_path, types.Predictor(predict), state, batch)
  found = program.load(tmp_path)({'image': batch['image']})['logits']
  expected = jax.jit(method.predict)(state, batch)['logits']
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_head_that_is_called_and_says_nothing_is_not_written(run, tmp_path):
  import safetensors.numpy

  _, state, batch = run
  seen = lp_ft.features(mlp.Mlp(3, features=(5,)))
  # As runs of SimCLR, MoCo and SupCon predict.
  method = types.Predictor(lambda s, b: {'features': seen(s, b)['features']})
  program.write(tmp_path, method, state, batch)
  weights = safetensors.numpy.load_file(tmp_path / program.WEIGHTS)
  assert sum(x.size for x in weights.values()) == 4 * 5 + 5
  for rows in (2, 6):
    found = program.load(tmp_path)({'image': batch['image'][:rows]})
    expected = jax.jit(seen)(state, {k: x[:rows] for k, x in batch.items()})
    np.testing.assert_allclose(
      found['features'], expected['features'], rtol=1e-6, atol=1e-6
    )


def test_weights_lie_in_memory_as_they_like(tmp_path):
  wide = np.arange(24, dtype=np.float32).reshape(3, 8)
  variables = {
    'turned': wide[:, :4].T,  # [4, 3]
    'thin': wide[:, ::2].T,
    'spread': np.broadcast_to(np.float32(2), (4, 3)),
  }

  def predict(variables, batch):
    return {name: batch['x'] @ kernel for name, kernel in variables.items()}

  batch = {'x': np.eye(4, dtype=np.float32)}
  program.write(tmp_path, types.Predictor(predict), variables, batch)
  found = program.load(tmp_path)(batch)
  for name, kernel in variables.items():
    np.testing.assert_array_equal(found[name], kernel)
