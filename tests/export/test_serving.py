"""Programs say what the method says, for any number of rows."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.export import program
from repjax.layers import attention
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
  state = method.init(jax.random.key(0), batch)
  state, _ = method.update(state, batch, jax.random.key(1))
  return method, state, batch


def test_any_number_of_rows(run, tmp_path):
  method, state, batch = run
  signature = program.write(tmp_path, method, state, batch)
  shape = ['rows', 2, 2, 1]
  assert signature.inputs == {'image': {'dtype': 'float32', 'shape': shape}}
  assert signature.outputs['logits']['shape'] == ['rows', 3]
  predict = program.load(tmp_path)
  for rows in (1, 3, 6):
    expected = method.predict(state, {k: x[:rows] for k, x in batch.items()})
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
  state = method.init(jax.random.key(0), batch)
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
