"""Stochastic depth: whole examples, unbiased, and nothing at rate 0."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers import drop_path
from repjax.types import InputError


def apply(rate, branch, *, train=True, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  layer = drop_path.DropPath(rate)
  return np.asarray(layer.apply({}, branch, train=train, rngs=rngs))


class DropPathTest(parameterized.TestCase):
  def test_rate_zero_is_the_identity_and_needs_no_key(self):
    branch = jax.random.normal(jax.random.key(0), (4, 3, 2))
    found = drop_path.DropPath(0.0).apply({}, branch, train=True)
    np.testing.assert_array_equal(found, branch)

  def test_nothing_is_dropped_outside_of_training(self):
    branch = jax.random.normal(jax.random.key(0), (4, 3, 2))
    found = drop_path.DropPath(0.9).apply({}, branch, train=False)
    np.testing.assert_array_equal(found, branch)

  @parameterized.parameters(0.25, 0.8)
  def test_examples_are_dropped_as_a_whole_or_scaled(self, rate):
    branch = np.random.default_rng(0).normal(size=(64, 3, 2))
    branch = branch.astype(np.float32)
    found = apply(rate, branch)
    dropped = (found == 0).all(axis=(1, 2))
    self.assertBetween(dropped.sum(), 1, 63)
    np.testing.assert_allclose(
      found[~dropped], branch[~dropped] / (1 - rate), rtol=1e-6
    )

  @parameterized.parameters(0.25, 0.8)
  def test_the_expectation_is_that_of_the_branch(self, rate):
    num_rows = 40_000
    found = apply(rate, np.ones((num_rows, 1), np.float32))
    # A row is 0 or 1 / (1 - rate): variance rate / (1 - rate).
    deviation = np.sqrt(rate / (1 - rate) / num_rows)
    self.assertLess(abs(found.mean() - 1), 5 * deviation)

  def test_a_rate_of_many_layers_is_drawn_exactly(self):
    # In bfloat16 1 - rate is .98047, and .984 of the rows are kept.
    num_rows, rate = 200_000, jnp.float32(0.2 / 11)
    branch = jnp.ones((num_rows, 1), jnp.bfloat16)
    found = drop_path.DropPath(0.0).apply(
      *({}, branch),
      train=True,
      rate=rate,
      rngs={'dropout': jax.random.key(0)},
    )
    self.assertEqual(found.dtype, jnp.bfloat16)
    deviation = np.sqrt(rate / num_rows)
    self.assertLess(abs((found == 0).mean() - rate), 5 * deviation)

  def test_the_dtype_stays(self):
    found = apply(0.5, jnp.ones((4, 2), jnp.bfloat16))
    self.assertEqual(found.dtype, jnp.bfloat16)

  @parameterized.parameters(-0.1, 1.0)
  def test_a_rate_that_is_no_probability_is_refused(self, rate):
    with self.assertRaisesRegex(InputError, 'drop_path_rate'):
      apply(rate, jnp.ones((2, 2)))


if __name__ == '__main__':
  absltest.main()
