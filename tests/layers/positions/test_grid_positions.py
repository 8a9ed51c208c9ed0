"""Position grids against SciPy, a smooth function and the formula by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from repjax.layers.positions import grid_positions
from repjax.types import InputError


def random_grid(rows, columns, *, prefix=0, dim=5):
  shape = (1, prefix + rows * columns, dim)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class ResizeGridTest(parameterized.TestCase):
  @parameterized.parameters(
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((14, 14), (16, 16)),
    ((3, 5), (6, 2)),
    ((4, 4), (1, 1)),
    ((1, 1), (3, 2)),
  )
  def test_zoom_is_the_zoom_of_scipy(self, old, new):
    embedding = random_grid(*old, prefix=1)
    found = grid_positions.resize_grid(embedding, old, new, num_prefix_tokens=1)
    grid = embedding[0, 1:].reshape(*old, -1).astype(np.float64)
    expected = scipy.ndimage.zoom(
      grid, (new[0] / old[0], new[1] / old[1], 1), order=1
    )
    np.testing.assert_array_equal(found[:, :1], embedding[:, :1])
    np.testing.assert_allclose(
      found[0, 1:], expected.reshape(-1, expected.shape[-1]), atol=1e-6
    )

  @parameterized.product(method=('zoom', 'bilinear', 'bicubic'), prefix=(0, 2))
  def test_the_same_grid_comes_back(self, method, prefix):
    embedding = random_grid(3, 4, prefix=prefix)
    found = grid_positions.resize_grid(
      embedding, (3, 4), (3, 4), num_prefix_tokens=prefix, method=method
    )
    np.testing.assert_allclose(found, embedding, atol=1e-6)

  @parameterized.parameters('zoom', 'bilinear', 'bicubic')
  def test_a_constant_grid_stays_constant(self, method):
    found = grid_positions.resize_grid(
      np.full((1, 12, 2), 3.0, np.float32),
      (3, 4),
      (5, 7),
      num_prefix_tokens=0,
      method=method,
    )
    np.testing.assert_allclose(found, np.full((1, 35, 2), 3.0), rtol=1e-6)

  def test_cells_keep_their_places_in_the_picture(self):
    # A plane over the picture: cell i of n has its centre at (i + 1/2) / n.
    def plane(rows, columns):
      y, x = np.mgrid[:rows, :columns]
      values = 2 * (y + 0.5) / rows - 3 * (x + 0.5) / columns
      return values.reshape(1, -1, 1).astype(np.float32)

    found = grid_positions.resize_grid(
      plane(8, 6), (8, 6), (16, 24), num_prefix_tokens=0, method='bilinear'
    )
    inner = np.s_[1:-1, 2:-2]  # Beyond the border the values repeat.
    np.testing.assert_allclose(
      np.asarray(found).reshape(16, 24)[inner],
      plane(16, 24).reshape(16, 24)[inner],
      atol=1e-5,
    )

  def test_bicubic_halves_with_the_weights_of_keys(self):
    # Halfway between samples, Keys' kernel with a = -3/4 has these weights.
    weights = np.array([-3, 19, 19, -3]) / 32
    column = np.random.default_rng(0).normal(size=8).astype(np.float32)
    found = grid_positions.resize_grid(
      column.reshape(1, 8, 1),
      (8, 1),
      (4, 1),
      num_prefix_tokens=0,
      method='bicubic',
    )
    border = np.pad(column, 1, mode='edge')
    expected = [weights @ border[i : i + 4] for i in (0, 2, 4, 6)]
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-6)

  def test_rows_and_columns_are_not_mixed_up(self):
    y, _ = np.mgrid[:2, :3]
    embedding = y.reshape(1, 6, 1).astype(np.float32)
    found = grid_positions.resize_grid(
      embedding, (2, 3), (3, 2), num_prefix_tokens=0
    )
    np.testing.assert_allclose(np.ravel(found), [0, 0, 0.5, 0.5, 1, 1])

  def test_the_dtype_stays(self):
    found = grid_positions.resize_grid(
      jnp.ones((1, 4, 2), jnp.bfloat16), (2, 2), (3, 3), num_prefix_tokens=0
    )
    self.assertEqual(found.dtype, jnp.bfloat16)

  def test_a_grid_of_another_size_is_refused(self):
    with self.assertRaisesRegex(InputError, '17 tokens .* 4 x 4'):
      grid_positions.resize_grid(
        random_grid(4, 4, prefix=1), (4, 4), (2, 2), num_prefix_tokens=0
      )

  def test_an_unknown_method_is_refused(self):
    with self.assertRaisesRegex(InputError, "'zoom', 'bilinear' or 'bicubic'"):
      grid_positions.resize_grid(
        random_grid(2, 2), (2, 2), (3, 3), num_prefix_tokens=0, method='area'
      )


class SincosTest(parameterized.TestCase):
  def test_channels_are_the_formula_by_hand(self):
    found = np.asarray(grid_positions.sincos_2d((2, 3), 8, num_prefix_tokens=1))
    self.assertEqual(found.shape, (1, 7, 8))
    np.testing.assert_array_equal(found[0, 0], np.zeros(8))
    for y in range(2):
      for x in range(3):
        expected = [
          *(np.sin(x), np.sin(x / 10_000), np.cos(x), np.cos(x / 10_000)),
          *(np.sin(y), np.sin(y / 10_000), np.cos(y), np.cos(y / 10_000)),
        ]
        np.testing.assert_allclose(found[0, 1 + 3 * y + x], expected, atol=1e-6)

  @parameterized.parameters(4, 10)
  def test_a_width_without_four_waves_is_refused(self, dim):
    with self.assertRaisesRegex(InputError, 'hidden_dim'):
      grid_positions.sincos_2d((2, 2), dim)


class LearnedPositionsTest(absltest.TestCase):
  def test_each_token_gets_its_own_vector(self):
    tokens = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    layer = grid_positions.LearnedPositions()
    params = layer.init(jax.random.key(0), tokens)['params']
    self.assertEqual(params['embedding'].shape, (1, 5, 3))
    np.testing.assert_allclose(
      layer.apply({'params': params}, tokens), tokens + params['embedding']
    )

  def test_another_image_size_is_refused_with_the_remedy(self):
    layer = grid_positions.LearnedPositions()
    variables = layer.init(jax.random.key(0), jnp.ones((1, 5, 3)))
    with self.assertRaisesRegex(InputError, 'resize_grid'):
      layer.apply(variables, jnp.ones((1, 10, 3)))


if __name__ == '__main__':
  absltest.main()
