"""Which learners care about coordinates is known, of those that are here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import float64
from repjax import types
from repjax.analysis import equivariance
from repjax.models import quadratic

_DIM = 8


def _data(dim=_DIM):
  rng = np.random.default_rng(0)
  rows, test = rng.standard_normal((20, dim)), rng.standard_normal((10, dim))
  return rows, np.sign(rows[:, 0] * rows[:, 1]), test


def _loss(outputs, targets):
  return optax.softmax_cross_entropy_with_integer_labels(
    outputs, (targets > 0).astype(jnp.int32)
  )


def _network(tx, first='hidden', model=None, **kwargs):
  return equivariance.gradient_descent(
    model or quadratic.FullyConnected(2, width=16, activation='relu'),
    tx,
    loss_fn=_loss,
    first=first,
    steps=30,
    **kwargs,
  )


_SGD = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, 0.9))


@pytest.mark.parametrize('batch_size', [None, 4])
@pytest.mark.parametrize('group', ['orthogonal', 'permutation', 'sign'])
def test_sgd_with_momentum_and_decay_is_equivariant(group, batch_size):
  found = equivariance.check_equivariance(
    _network(_SGD, batch_size=batch_size), *_data(), group=group
  )
  assert found.relative < 1e-9
  assert found.scale > 0.1


def test_adam_is_equivariant_under_permutations_and_signs_alone():
  relative = {
    group: equivariance.check_equivariance(
      _network(optax.adam(0.03)), *_data(), group=group
    ).relative
    for group in ('orthogonal', 'permutation', 'sign')
  }
  assert relative['orthogonal'] > 0.05
  assert max(relative['permutation'], relative['sign']) < 1e-9


def test_without_turning_its_draws_only_the_distribution_is_the_same():
  found = equivariance.check_equivariance(
    _network(_SGD, first=None), *_data(), group='orthogonal'
  )
  assert found.relative > 0.05


def test_a_convolution_is_not_equivariant():
  found = equivariance.check_equivariance(
    _network(_SGD, first=None, model=quadratic.PooledConv(2)),
    *_data(),
    group='permutation',
  )
  assert found.relative > 0.05


def _ridge(rows, targets, test_rows, act):
  del act  # Nothing is drawn.
  gram = rows.T @ rows + 0.1 * jnp.eye(rows.shape[1])
  return test_rows @ jnp.linalg.solve(gram, rows.T @ targets)


def _largest_coordinate(rows, targets, test_rows, act):
  del act  # Nothing is drawn.
  return test_rows[:, jnp.abs(rows.T @ targets).argmax()]


def test_any_learner_can_be_asked():
  groups = ('orthogonal', 'permutation', 'sign')
  for group in groups:
    found = equivariance.check_equivariance(_ridge, *_data(), group=group)
    assert found.relative < 1e-12
  relative = [
    equivariance.check_equivariance(
      _largest_coordinate, *_data(), group=group
    ).relative
    for group in groups
  ]
  assert relative[0] > 0.1
  assert relative[1] < 1e-12
  assert relative[2] > 0.1  # -x is not x.


@pytest.mark.parametrize('signs', [(1, -1), (-1, 1)])
def test_of_several_elements_the_worst_one_counts(signs):
  drawn = iter(signs)
  found = equivariance.check_equivariance(
    _largest_coordinate,
    *_data(),
    group=lambda rng, dim: next(drawn) * np.eye(dim),
    num_elements=2,
  )
  assert found.relative > 0.1


def test_images_are_turned_as_vectors_and_precision_comes_back():
  rows, targets, test = _data(12)
  before = jax.config.jax_enable_x64
  found = equivariance.check_equivariance(
    lambda x, y, z, act: _ridge(
      x.reshape(len(x), -1), y, z.reshape(len(z), -1), act
    ),
    rows.reshape(-1, 2, 2, 3),
    targets,
    test.reshape(-1, 2, 2, 3),
    group='orthogonal',
    num_elements=3,
  )
  assert found.relative < 1e-12
  assert jax.config.jax_enable_x64 == before
  if hasattr(jax, 'enable_x64'):
    with jax.enable_x64(not before), float64.enabled():
      assert jnp.ones(3, 'float64').dtype == 'float64'
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize(
  ('group', 'rows', 'says'),
  [
    ('unitary', None, 'group'),
    (lambda rng, dim: np.eye(dim + 1), None, 'does not act on rows of 8'),
    (lambda rng, dim: 2 * np.eye(dim), None, 'not orthogonal'),
    ('permutation', np.ones((4, 3), np.int32), 'ids have no coordinates'),
    ('sign', np.ones((20, 3)), 'differ in width'),
  ],
)
def test_a_group_that_does_not_act_is_refused(group, rows, says):
  own, targets, test = _data()
  with pytest.raises(types.InputError, match=says):
    equivariance.check_equivariance(
      _ridge, own if rows is None else rows, targets, test, group=group
    )


def test_a_layer_that_shares_weights_is_not_turned():
  with pytest.raises(types.InputError, match='first layer of 3'):
    equivariance.check_equivariance(
      _network(_SGD, model=quadratic.PooledConv(2)), *_data(), group='sign'
    )
  with pytest.raises(types.InputError, match='has head, hidden'):
    equivariance.check_equivariance(
      _network(_SGD, first='conv'), *_data(), group='sign'
    )


def test_what_diverges_is_said():
  with pytest.raises(types.InputError, match='not finite'):
    equivariance.check_equivariance(
      _network(optax.sgd(1e6), model=quadratic.FullyConnected(2)),
      *_data(),
      group='sign',
    )
