"""Patches against loops, convolution and an unfold written by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import flax.linen as nn
import jax
import numpy as np

from repjax.layers import patches
from repjax.types import InputError


class PatchesTest(parameterized.TestCase):
  @parameterized.parameters((4, (8, 12)), ((2, 3), (4, 9)), (5, (5, 5)))
  def test_each_patch_is_the_slice_of_the_image(self, patch_size, image_size):
    image = np.random.default_rng(0).normal(size=(2, *image_size, 3))
    found = np.asarray(patches.extract(image, patch_size))
    height, width = patches.pair(patch_size)
    rows, columns = patches.grid_shape(image_size, patch_size)
    self.assertEqual(found.shape, (2, rows, columns, height, width, 3))
    for i in range(rows):
      for j in range(columns):
        piece = image[:, i * height :, j * width :][:, :height, :width]
        np.testing.assert_array_equal(found[:, i, j], piece.astype(found.dtype))

  @parameterized.parameters((4, (8, 12)), ((2, 3), (4, 9)))
  def test_dense_on_patches_is_the_strided_convolution(
    self, patch_size, image_size
  ):
    image = np.random.default_rng(0).normal(size=(2, *image_size, 3))
    image = image.astype(np.float32)
    size = patches.pair(patch_size)
    conv = nn.Conv(7, size, strides=size, padding='VALID')
    variables = conv.init(jax.random.key(0), image)
    kernel = np.asarray(variables['params']['kernel'])
    unfolded = np.asarray(patches.extract(image, patch_size))
    unfolded = unfolded.reshape(*unfolded.shape[:3], -1)
    product = unfolded @ kernel.reshape(-1, 7)
    dense = nn.DenseGeneral(7, axis=(-3, -2, -1))
    np.testing.assert_allclose(
      conv.apply(variables, image), product, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
      dense.apply(variables, patches.extract(image, patch_size)),
      product,
      rtol=0,
      atol=1e-5,
    )

  @parameterized.parameters((3, (8, 9)), (5, (10, 9)), (16, 8), (0, 8))
  def test_an_image_that_patches_do_not_tile_is_refused(self, patch, image):
    with self.assertRaisesRegex(InputError, 'patch_size'):
      patches.grid_shape(image, patch)


if __name__ == '__main__':
  absltest.main()
