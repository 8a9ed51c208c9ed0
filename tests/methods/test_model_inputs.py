"""What models are called with, and in which type."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import regression
from repjax.methods import step as steps

ROWS, CALLS = 4, []


class Seen(nn.Module):
  """Writes down what it is called with; one number a row."""

  @nn.compact
  def __call__(self, x, *, train, **named):
    CALLS.append((train, x, named))
    x = x.reshape(len(x), -1)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    return nn.Dense(1, name='head')(x)


def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 9, (ROWS, 5))
  return {
    'image': rng.normal(size=(ROWS, 2, 2, 1)).astype(np.float32),
    'series': rng.normal(size=(ROWS, 6, 2)).astype(np.float32),
    'features': rng.normal(size=(ROWS, 3)).astype(np.float32),
    'tokens': tokens,
    'token_mask': (tokens > 4).astype(np.float32),
    'inputs': tokens[:, ::-1],
    'source': tokens[:, 1:4],
    'target': rng.normal(size=(ROWS, 1)).astype(np.float32),
    'mask': np.ones(ROWS, np.float32),
  }


@pytest.mark.parametrize(
  ('column', 'inputs'),
  [
    ('image', model_inputs.image),
    ('series', model_inputs.series),
    ('features', model_inputs.features),
    ('tokens', model_inputs.text),
  ],
)
def test_a_model_sees_its_column_in_the_compute_dtype(column, inputs):
  CALLS.clear()
  method = regression.make(
    Seen(), optax.sgd(0.1), inputs=inputs, compute_dtype='bfloat16'
  )
  state = jax.eval_shape(method.init, jax.random.key(0), batch())
  new, sums = jax.eval_shape(method.update, state, batch(), jax.random.key(1))
  found = jax.eval_shape(method.predict, state, batch())
  assert column in types.INPUTS
  assert [train for train, _, _ in CALLS] == [False, True, False]
  given = batch()[column]
  short = jnp.int32 if column == 'tokens' else jnp.bfloat16
  whole = jnp.int32 if column == 'tokens' else jnp.float32
  for (_, x, named), dtype in zip(CALLS, (whole, short, whole), strict=True):
    assert (x.shape, x.dtype) == (given.shape, dtype)
    mask = batch()['token_mask' if column == 'tokens' else 'mask']
    assert named['mask'].shape == mask.shape
  # All that is kept or compared is float32.
  for x in jax.tree.leaves((new.params, new.opt_state, sums, found)):
    assert x.dtype == jnp.float32


def test_only_floating_inputs_are_cast():
  found = steps.cast_inputs(batch(), 'bfloat16')
  cast = {name for name, x in found.items() if x.dtype == jnp.bfloat16}
  assert cast == {'image', 'series', 'features'}
  for name in set(found) - cast:
    np.testing.assert_array_equal(found[name], batch()[name])


def test_pairs_read_the_source_and_all_tokens_but_the_last():
  (tokens,), named = model_inputs.pair(batch())
  np.testing.assert_array_equal(tokens, batch()['tokens'][:, :4])
  np.testing.assert_array_equal(named['source'], batch()['source'])
  assert named['source_mask'] is None
  (before,), nothing = model_inputs.text_before(batch())
  np.testing.assert_array_equal(before, tokens)
  assert nothing == {}
  (hidden,), named = model_inputs.masked_text(batch())
  np.testing.assert_array_equal(hidden, batch()['inputs'])
  np.testing.assert_array_equal(named['mask'], batch()['token_mask'])
  types_too = {**batch(), 'token_types': np.ones_like(batch()['tokens'])}
  (_,), named = model_inputs.masked_text(types_too)
  assert named['token_types'] is types_too['token_types']
