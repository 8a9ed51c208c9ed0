"""Features that are rounded to bfloat16: where, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import performer
from repjax.layers.attention.linear import random_features
from repjax.layers.attention.linear import rules

LENGTH, HEADS, DIM, NUM_FEATURES = 96, 2, 8, 32
PROJECTION = random_features.draw_projection(
  jax.random.key(0), NUM_FEATURES, DIM
)


def inputs(dtype=jnp.bfloat16):
  made = np.random.default_rng(0).normal(size=(3, 1, LENGTH, HEADS, DIM))
  return tuple(jnp.asarray(0.7 * x, dtype) for x in made)


@pytest.fixture
def accelerator(monkeypatch):
  """The form of accelerators, on whatever runs this."""
  monkeypatch.setattr(rules.jax, 'default_backend', lambda: 'gpu')


def attend(*arrays, kernel='positive', **settings):
  return performer.favor(*arrays, PROJECTION, kernel=kernel, **settings)


def operands(fn, *arrays):
  """Types of the operands of products with features, and of their results."""
  found = set()

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == 'dot_general':
        kinds = [x.aval for x in (*equation.invars, *equation.outvars)]
        # But the one that features are made by.
        if DIM not in kinds[1].shape or kinds[1].shape != PROJECTION.shape:
          found.add(tuple(x.dtype.name for x in kinds))
      for value in equation.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
          inner = getattr(x, 'jaxpr', x)
          if hasattr(inner, 'eqns'):
            walk(inner)

  walk(jax.make_jaxpr(fn)(*arrays).jaxpr)
  return found


HALF = {('bfloat16', 'bfloat16', 'float32')}
WHOLE = {('float32', 'float32', 'float32')}


@pytest.mark.parametrize('kernel', ['positive', 'hyperbolic'])
@pytest.mark.usefixtures('accelerator')
def test_products_of_bfloat16_inputs_are_summed_in_float32(kernel):
  fn = functools.partial(attend, kernel=kernel, chunk_size=32)
  assert operands(fn, *inputs()) == HALF


@pytest.mark.parametrize(
  'change',
  [
    dict(kernel='trigonometric'),  # Sums with either sign may cancel.
    dict(kernel=jax.nn.gelu),
    dict(causal=True),
    dict(segments=jnp.zeros((1, LENGTH), jnp.int32)),
    dict(precision=jax.lax.Precision.HIGHEST),
  ],
  ids=['trigonometric', 'function', 'causal', 'segments', 'precision'],
)
@pytest.mark.usefixtures('accelerator')
def test_elsewhere_features_stay_float32(change):
  assert operands(functools.partial(attend, **change), *inputs()) == WHOLE


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float16])
@pytest.mark.usefixtures('accelerator')
def test_of_other_types_they_stay_float32(dtype):
  assert operands(attend, *inputs(dtype)) == WHOLE


def test_on_cpus_they_stay_float32():
  if jax.default_backend() != 'cpu':
    pytest.skip('asks about CPUs')
  assert operands(attend, *inputs()) == WHOLE


def rms(x):
  return float(jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean()))


def both(fn, monkeypatch):
  """What a function gives with rounded features, and with those of float32."""
  whole = fn()
  monkeypatch.setattr(rules.jax, 'default_backend', lambda: 'gpu')
  return fn(), whole


@pytest.mark.parametrize('kernel', ['positive', 'hyperbolic'])
@pytest.mark.parametrize('chunk_size', [None, 40])
def test_outputs_and_gradients_are_within_two_percent(
  kernel, chunk_size, monkeypatch
):
  direction = inputs()[0].astype(jnp.float32)
  mask = jnp.arange(LENGTH)[None] < 90

  def loss(*arrays):
    outputs = attend(*arrays, kernel=kernel, chunk_size=chunk_size, mask=mask)
    return (outputs.astype(jnp.float32) * direction).sum(), outputs

  def fn():
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return step(*inputs())

  found, expected = (jax.tree.leaves(x) for x in both(fn, monkeypatch))
  for x, y in zip(found, expected, strict=True):
    assert x.dtype == y.dtype == jnp.bfloat16
    away = rms(x.astype(jnp.float32) - y.astype(jnp.float32))
    assert 0 < away < 0.02 * rms(y)


@pytest.mark.usefixtures('accelerator')
def test_equal_values_come_out_as_they_are():
  query, key, value = inputs()
  # Numerators and denominators are of the same rounded features.
  outputs = jax.jit(lambda *x: attend(*x))(query, 3 * key, jnp.ones_like(value))
  np.testing.assert_array_equal(np.asarray(outputs, np.float32), 1.0)


@pytest.mark.usefixtures('accelerator')
def test_thousands_of_keys_are_summed():
  # A sum in bfloat16 stops growing at 256 ones: half of the keys would count.
  _, key, value = (jnp.ones((1, 4096, 1, DIM), jnp.bfloat16),) * 3
  value = value.at[:, 2048:].set(3)
  outputs = jax.jit(lambda *x: attend(*x))(key[:, :1], key, value)
  np.testing.assert_allclose(np.asarray(outputs, np.float32), 2, rtol=0.01)
