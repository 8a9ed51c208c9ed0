"""Memory of the compiled private step, which nothing has to run for."""

import jax
import jax.numpy as jnp
import optax
import pytest

from repjax.models import transformer
from repjax.privacy import clipping

ROWS, LENGTH, WORDS = 32, 16, 2000


@pytest.fixture(scope='module')
def temporary_bytes():
  """How the gradient is made -> what XLA needs beside arguments and results."""
  model = transformer.DecoderLM(
    WORDS,
    hidden_dim=256,
    mlp_dim=1024,
    num_heads=4,
    num_layers=2,
    num_positions=LENGTH,
  )
  tokens = jax.ShapeDtypeStruct((ROWS, LENGTH + 1), jnp.int32)
  params = jax.eval_shape(
    lambda tokens: model.init(jax.random.key(0), tokens, train=False),
    jax.ShapeDtypeStruct((1, LENGTH), jnp.int32),
  )['params']

  def losses(params, tokens, rng):
    del rng
    logits = model.apply({'params': params}, tokens[:, :-1], train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    ).mean(-1)

  def measure(gradient):
    compiled = jax.jit(gradient).lower(params, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def clipped(method):
    clip = clipping.clipped_gradient(losses, 1.0, method=method)
    return lambda params, tokens: clip(params, tokens).grads

  return {
    'plain': measure(jax.grad(lambda *args: losses(*args, None).sum())),
    **{method: measure(clipped(method)) for method in ('ghost', 'vmap')},
  }


def test_ghost_norms_cost_little_memory(temporary_bytes):
  assert temporary_bytes['ghost'] <= 1.6 * temporary_bytes['plain']


def test_gradients_of_all_rows_cost_much(temporary_bytes):
  assert temporary_bytes['vmap'] >= 4 * temporary_bytes['ghost']
