"""Projections and feature maps against closed forms of their kernels."""

import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import parallel
from repjax.layers.attention.linear import random_features
from repjax.types import InputError

pytestmark = pytest.mark.versions

DIM = 16


def projections(kind, num_draws, num_features, dim=DIM, seed=0, **settings):
  draw = functools.partial(
    random_features.draw_projection,
    num_features=num_features,
    dim=dim,
    kind=kind,
    **settings,
  )
  rngs = jax.random.split(jax.random.key(seed), num_draws)
  return jax.jit(jax.vmap(draw))(rngs)


def estimates(feature_map, matrices, x, y):
  """Kernel estimates, one a projection."""

  def one(matrix):
    a, b = (feature_map(v[None, None], matrix) for v in (x, y))
    dot = (a.values * b.values).sum()
    if a.log_scale is None:
      return dot
    return dot * jnp.exp(a.log_scale + b.log_scale).sum()

  return np.float64(jax.device_get(jax.jit(jax.vmap(one))(matrices)))


def vectors(norm=1.0, cosine=-0.5, dim=DIM):
  """Two vectors of equal norm at a given angle."""
  x, y = np.random.default_rng(0).normal(size=(2, dim))
  x /= np.linalg.norm(x)
  y -= y @ x * x
  y /= np.linalg.norm(y)
  return norm * x, norm * (cosine * x + (1 - cosine**2) ** 0.5 * y)


@pytest.fixture(scope='module')
def iid():
  return projections('iid', 2000, 256)


@pytest.fixture(scope='module')
def orthogonal():
  return projections('orthogonal', 2000, 64, seed=1)


def test_blocks_are_orthogonal_with_gaussian_lengths(orthogonal):
  gram = np.einsum('nad,nbd->nab', orthogonal[:, :DIM], orthogonal[:, :DIM])
  off = gram[:, ~np.eye(DIM, dtype=bool)]
  assert np.abs(off).max() < 1e-4
  squares = np.square(orthogonal).sum(-1)
  assert abs(squares.mean() - DIM) < 0.02 * DIM
  assert abs(squares.var() - 2 * DIM) < 0.05 * 2 * DIM
  # A last block that is cut, and lengths that are all the same.
  (rows,) = projections('orthogonal', 1, 21, lengths='equal')
  assert rows.shape == (21, DIM)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 4.0, rtol=1e-5)


def test_orthogonal_rows_are_unbiased_and_raw_qr_is_not():
  # At a point where the authors' rows, which keep the signs of QR, are worst.
  x = np.full(DIM, -0.5 / DIM**0.5)
  exact = np.exp(x @ x)
  num_draws = 4000
  ours = projections('orthogonal', num_draws, DIM)
  rng_rows, rng_lengths = jax.random.split(jax.random.key(2))
  square = (num_draws, DIM, DIM)
  q, _ = jax.jit(jnp.linalg.qr)(jax.random.normal(rng_rows, square))
  lengths = jnp.linalg.norm(jax.random.normal(rng_lengths, square), axis=-1)
  raw = q.swapaxes(-1, -2) * lengths[..., None]
  found = [
    estimates(random_features.positive, matrices, x, x).mean() / exact - 1
    for matrices in (ours, raw)
  ]
  assert abs(found[0]) < 0.02
  assert found[1] > 0.05


@pytest.mark.parametrize(
  'name', ['positive', 'hyperbolic', 'trigonometric', 'gaussian', 'arccos']
)
@pytest.mark.parametrize('kind', ['iid', 'orthogonal'])
def test_mean_over_draws_is_the_kernel(name, kind, iid, orthogonal):
  matrices = (iid if kind == 'iid' else orthogonal)[:, :32]
  x, y = vectors()
  angle = np.arccos(x @ y)
  kernel = {
    'gaussian': np.exp(-np.square(x - y).sum() / 2),
    'arccos': (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi),
  }.get(name, np.exp(x @ y))
  found = estimates(getattr(random_features, name), matrices, x, y)
  error = found.std() / len(found) ** 0.5
  assert error < 0.02 * kernel
  assert abs(found.mean() - kernel) < 4 * error


@pytest.mark.parametrize('name', ['positive', 'gaussian'])
def test_error_falls_as_one_over_features(name, iid, orthogonal):
  x, y = vectors()
  exact = np.exp(x @ y if name == 'positive' else -np.square(x - y).sum() / 2)
  feature_map = getattr(random_features, name)

  def errors(matrices, sizes):
    return np.array(
      [
        np.square(estimates(feature_map, matrices[:, :m], x, y) - exact).mean()
        for m in sizes
      ]
    )

  independent = errors(iid, (16, 64, 256))
  slope = np.polyfit(np.log([16, 64, 256]), np.log(independent), 1)[0]
  assert -1.15 < slope < -0.85
  better = errors(orthogonal, (16, 64))
  limit = 0.9 if name == 'positive' else 0.6
  assert (better < limit * independent[:2]).all()


def test_positive_and_trigonometric_each_win_where_theory_says(iid):
  error = {}
  for cosine in (-0.95, 0.95):
    x, y = vectors(2.0, cosine)
    for name in ('positive', 'trigonometric'):
      found = estimates(getattr(random_features, name), iid[:, :64], x, y)
      error[name, cosine] = np.square(found / np.exp(x @ y) - 1).mean()
  assert error['trigonometric', -0.95] > 1e3 * error['positive', -0.95]
  assert error['positive', 0.95] > 1e3 * error['trigonometric', 0.95]


def test_generalized_features_are_the_function_of_the_projection():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  matrix = rng.normal(size=(7, 4)).astype(np.float32)
  found = random_features.generalized(
    x, matrix, kernel_fn=jax.nn.relu, epsilon=0.1
  )
  expected = np.maximum(x @ matrix.T, 0) + 0.1
  np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
  plain = random_features.generalized(
    x, None, kernel_fn=random_features.elu_plus_one, epsilon=0.0
  )
  expected = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
  np.testing.assert_allclose(plain.values, expected, rtol=1e-6)
  slope = jax.grad(lambda x: random_features.elu_plus_one(x).sum())
  assert np.isfinite(slope(jnp.array([1e4, -1e4, 0.0]))).all()


def test_softmax_features_survive_any_norm():
  x = 100.0 * np.stack([vectors()])
  matrix = random_features.draw_projection(jax.random.key(0), 64, DIM)
  for name in ('positive', 'hyperbolic'):
    feature_map = jax.jit(getattr(random_features, name))
    values, log_scale = feature_map(x, matrix)
    assert np.isfinite(values).all() and np.isfinite(log_scale).all()
    np.testing.assert_allclose(
      values.max(-1), values.shape[-1] ** -0.5, rtol=1e-6
    )


@pytest.mark.parametrize(
  'field, value', [('kind', 'raw'), ('lengths', 'long'), ('num_features', 0)]
)
def test_wrong_arguments_of_a_draw_are_named(field, value):
  settings = dict(num_features=4, dim=4) | {field: value}
  with pytest.raises(ValueError, match=f'{field}={value!r}'):
    random_features.draw_projection(jax.random.key(0), **settings)


# The variables.


class Layer(nn.Module):
  redraw_every: int = 3

  @nn.compact
  def __call__(self):
    draw = functools.partial(
      random_features.draw_projection, num_features=6, dim=4
    )
    return random_features.RandomProjection(
      draw, redraw_every=self.redraw_every, name='rows'
    )()


@pytest.fixture(scope='module')
def variables():
  return Layer().init(jax.random.key(0))


def test_projection_is_redrawn_on_its_schedule_and_frozen_in_evaluation(
  variables,
):
  layer = Layer()
  train = jax.jit(lambda v: layer.apply(v, mutable=['projection']))
  drawn, state = [], variables
  for _ in range(7):
    matrix, state = train(state)
    drawn.append(np.asarray(matrix))
    np.testing.assert_array_equal(layer.apply(state), matrix)
  same = [np.array_equal(a, b) for a, b in itertools.pairwise(drawn)]
  assert same == [True, True, False, True, True, False]
  assert not np.array_equal(drawn[0], drawn[6])
  np.testing.assert_array_equal(
    drawn[0], variables['projection']['rows']['matrix']
  )
  # From the same collections, the same draw: SAM's second pass.
  np.testing.assert_array_equal(train(variables)[0], drawn[0])
  leaves = variables['projection']['rows']
  assert leaves['key'].dtype == jnp.uint32
  assert leaves['calls'].dtype == jnp.int32 and leaves['calls'] == 0


def test_no_schedule_draws_once(variables):
  layer = Layer(redraw_every=0)
  matrix, state = layer.apply(variables, mutable=['projection'])
  np.testing.assert_array_equal(
    matrix, variables['projection']['rows']['matrix']
  )
  assert state['projection']['rows']['calls'] == 0


def test_draws_differ_between_seeds_and_layers_and_work_under_vmap(variables):
  class Two(nn.Module):
    @nn.compact
    def __call__(self):
      return Layer(name='a')(), Layer(name='b')()

  a, b = Two().init_with_output(jax.random.key(0))[0]
  assert not np.array_equal(a, b)
  both = jax.vmap(Layer().init)(jax.random.split(jax.random.key(3), 2))
  matrices = both['projection']['rows']['matrix']
  assert not np.array_equal(matrices[0], matrices[1])


def test_missing_collections_and_keys_are_named(variables):
  with pytest.raises(InputError, match="'projection'"):
    Layer().apply({})
  with pytest.raises(InputError, match="'params'"):
    Layer().init({'dropout': jax.random.key(0)})
  bare = {'matrix': variables['projection']['rows']['matrix']}
  bare = {'projection': {'rows': bare}}
  np.testing.assert_array_equal(
    Layer().apply(bare), bare['projection']['rows']['matrix']
  )
  with pytest.raises(InputError, match='redraw'):
    Layer().apply(bare, mutable=['projection'])


@pytest.mark.parametrize('shape', [(6, 8), (12, 4), (2, 6, 4)])
@pytest.mark.parametrize('mutable', [False, ['projection']])
def test_a_projection_made_for_another_layer_is_refused(
  variables, shape, mutable
):
  saved = dict(variables['projection']['rows'], matrix=jnp.zeros(shape))
  match = re.escape(f'{shape}, this layer draws (6, 4)')
  with pytest.raises(InputError, match=match):
    Layer().apply({'projection': {'rows': saved}}, mutable=mutable)


@pytest.mark.devices(4)
def test_redraws_are_equal_on_all_devices(variables):
  layer = Layer(redraw_every=1)

  def update(state, batch, rng):
    del batch, rng
    for _ in range(2):
      matrix, state = layer.apply(state, mutable=['projection'])
    return matrix, state

  matrices, state = jax.pmap(
    update,
    axis_name=parallel.AXIS,
    in_axes=(None, 0, None),
    out_axes=0,
  )(variables, np.zeros((4, 1)), jax.random.key(0))
  for leaf in jax.tree.leaves((matrices, state)):
    for replica in leaf[1:]:
      np.testing.assert_array_equal(replica, leaf[0])
  assert not np.array_equal(
    matrices[0], variables['projection']['rows']['matrix']
  )
