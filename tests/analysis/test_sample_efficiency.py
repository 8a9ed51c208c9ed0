"""Curves over numbers of rows: what a seed sees, and what is read off them."""

import numpy as np
import optax
import pytest

from repjax import types
from repjax.analysis import sample_efficiency
from repjax.data.sets import norm_tasks
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import quadratic


def _curve(model, tx, sizes, seeds=(0, 1), steps=150):
  pool, test = (
    norm_tasks.halves(n, dim=8, seed=seed).columns()
    for n, seed in ((64, 0), (300, 1))
  )
  return sample_efficiency.curve(
    'test',
    supervised.make(model, tx, inputs=model_inputs.features),
    pool,
    test,
    sizes=sizes,
    seeds=seeds,
    batch_size=16,
    steps=steps,
  )


def test_a_convolution_needs_fewer_rows():
  sgd = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, 0.9))
  conv = _curve(quadratic.PooledConv(2, padding='circular'), sgd, [8, 64])
  full = _curve(quadratic.FullyConnected(2, width=16), sgd, [8, 64])
  assert (full.fitted > 0.98).all()
  assert conv.scores[1].mean() > full.scores[1].mean() + 0.1
  assert full.scores[0].mean() < 0.75


def test_sizes_go_side_by_side_as_they_go_alone():
  sgd = optax.sgd(0.02)
  both = _curve(quadratic.FullyConnected(2, width=8), sgd, [40, 8], steps=20)
  np.testing.assert_array_equal(both.sizes, [8, 40])
  for i, size in enumerate((8, 40)):
    alone = _curve(quadratic.FullyConnected(2, width=8), sgd, [size], steps=20)
    np.testing.assert_allclose(alone.scores[0], both.scores[i], atol=0.01)
    np.testing.assert_allclose(alone.fitted[0], both.fitted[i], atol=0.03)


def test_a_step_sees_rows_of_its_set_and_nothing_else():
  rows = np.array([7, 3, 11, 5])
  order = sample_efficiency._order(rows, 0, 6, 5)
  assert order.shape == (1, 5, 6)
  assert (order[..., 4:] == -1).all()
  for step in order[0]:
    assert sorted(step[:4]) == [3, 5, 7, 11]


def _scores(*columns, sizes=(10, 100, 1000)):
  scores = np.array(columns).T
  return sample_efficiency.Curve(np.array(sizes), scores, scores)


def test_rows_needed_are_read_off_between_sizes():
  found = _scores([0.5, 0.7, 0.9], [0.8, 0.9, 0.9], [0.5, 0.5, 0.6])
  needed = sample_efficiency.needed(found, 0.8)
  np.testing.assert_allclose(needed, [100 * 10**0.5, 10, np.inf])


def test_a_power_law_is_found():
  x = np.array([16, 32, 64])
  law = sample_efficiency.power_law(x, 0.3 * x**2.0)
  np.testing.assert_allclose(law[:2], [2, 0.3], rtol=1e-9)
  assert law.residual < 1e-9
  bent = sample_efficiency.power_law([1, 10, 100], [1, 20, 100])
  assert bent.residual > 0.3


@pytest.mark.parametrize(
  ('x', 'y', 'says'),
  [
    ([1, 2], [1, np.inf], 'larger sizes'),
    ([2, 2], [1, 1], 'two sizes'),
    ([1, 2], [0, 1], 'above 0'),
  ],
)
def test_no_power_law_is_made_up(x, y, says):
  with pytest.raises(types.InputError, match=says):
    sample_efficiency.power_law(x, y)


def test_a_collapse_is_the_spread_at_equal_places():
  curves = [
    _scores([0.5, 0.6, 0.9], [0.7, 0.6, 0.9]),
    _scores([0.6, 0.8, 0.9], [0.6, 0.6, 0.8], sizes=(40, 400, 4000)),
  ]
  found = sample_efficiency.collapse(curves)
  np.testing.assert_allclose(found, [0, 0.1, 0.05], atol=1e-12)


def test_sizes_are_of_the_pool():
  with pytest.raises(types.InputError, match='larger pool'):
    _curve(quadratic.FullyConnected(2), optax.sgd(0.1), [65])
