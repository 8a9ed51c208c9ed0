"""Spectral pooling is a crop of the spectrum, whatever the sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import spectral_pooling
from repjax.types import InputError

pooling = jax.jit(
  spectral_pooling.spectral_pooling,
  static_argnums=1,
  static_argnames=('scale', 'form'),
)


def images(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def cropped(x, size, axis):
  """One axis by NumPy: the whole spectrum, its middle, and back."""
  length = x.shape[axis]
  spectrum = np.fft.fftshift(np.fft.fft(x, axis=axis), axes=axis)
  start = length // 2 - size // 2
  spectrum = spectrum.take(np.arange(start, start + size), axis)
  y = np.fft.ifft(np.fft.ifftshift(spectrum, axes=axis), axis=axis)
  return y.real * size / length


@pytest.mark.parametrize('form', ['matmul', 'fft'])
@pytest.mark.parametrize(
  'shape, sizes',
  [
    ((8, 12), (4, 6)),
    ((8, 12), (5, 7)),
    ((9, 7), (4, 3)),
    ((9, 7), (9, 6)),
    ((6, 5), (1, 5)),
    ((13,), (6,)),
  ],
)
def test_it_is_a_crop_of_numpys_spectrum(form, shape, sizes):
  x = images(2, *shape, 3)
  expected = x
  for axis, size in enumerate(sizes):
    expected = cropped(expected, size, axis + 1)
  y = pooling(x, sizes, form=form)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_frequencies_below_half_the_size_are_sampled_more_coarsely():
  # The same waves on both grids, in both directions.
  def waves(size):
    at = np.arange(size) / size
    rows, columns = at[:, None], at[None]
    return (
      np.cos(2 * np.pi * (3 * rows - 2 * columns) + 0.3)
      + np.sin(2 * np.pi * 2 * columns)
      + 0.7
    )[None, ..., None]

  for fine, coarse in ((16, 8), (15, 7), (15, 8), (16, 7)):
    y = pooling(waves(fine), (coarse, coarse))
    np.testing.assert_allclose(y, waves(coarse), atol=1e-5)
    # Means of blocks, of the even sizes, are something else.
    if (fine, coarse) == (16, 8):
      means = waves(16).reshape((1, 8, 2, 8, 2, 1)).mean((2, 4))
      assert abs(means - waves(8)).max() > 0.2


@pytest.mark.parametrize(
  'scale, factor', [('amplitude', 1), ('public_code', 4)]
)
def test_constants_stay_or_grow_as_the_scale_says(scale, factor):
  y = pooling(np.ones((1, 8, 8, 1)), (4, 4), scale=scale)
  np.testing.assert_allclose(y, factor, rtol=1e-6)
  y = spectral_pooling.public_pooling(
    np.ones((1, 8, 8, 1)), (4, 4), scale=scale
  )
  np.testing.assert_allclose(y, factor, rtol=1e-6)


def test_all_places_are_the_identity():
  x = jnp.asarray(images(2, 9, 8, 2), jnp.float32)
  assert spectral_pooling.spectral_pooling(x, (9, 8)) is x


@pytest.mark.parametrize('form', ['matmul', 'fft'])
def test_gradients_are_the_transposed_map(form):
  # <P x, y> = <x, P' y>.
  x, y = images(1, 8, 9, 1), images(1, 5, 4, 1, seed=1)
  pool = functools.partial(pooling, form=form)
  back = jax.grad(lambda x: (pool(x, (5, 4)) * y).sum())(jnp.asarray(x))
  np.testing.assert_allclose(
    (pool(x, (5, 4)) * y).sum(), (x * back).sum(), rtol=1e-4
  )


@pytest.mark.parametrize('form', ['matmul', 'fft'])
def test_bfloat16_comes_out_as_bfloat16(form):
  x = images(2, 16, 16, 4)
  y = pooling(jnp.asarray(x, jnp.bfloat16), (8, 8), form=form)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(y, np.float32), pooling(x, (8, 8)), atol=0.03
  )


@pytest.mark.parametrize(
  'length, stride, size',
  [(8, 2, 4), (9, 2, 4), (10, 3, 3), (8, 1.5, 5), (8, 8, 2), (7, 1, 7)],
)
def test_fixed_strides_leave_so_many_places(length, stride, size):
  assert spectral_pooling.pooled_size(length, stride) == size


@pytest.mark.parametrize('stride', [0.5, 0, -2, 8.5, float('nan')])
def test_strides_outside_of_the_map_are_refused(stride):
  with pytest.raises(InputError, match='from 1 to the 8 places'):
    spectral_pooling.pooled_size(8, stride)


@pytest.mark.parametrize(
  'sizes, word', [((9, 8), 'Sizes'), ((0, 8), 'Sizes'), ((8,), 'as many')]
)
def test_sizes_that_do_not_fit_are_refused(sizes, word):
  with pytest.raises(InputError, match=word):
    spectral_pooling.spectral_pooling(np.ones((1, 8, 8, 1)), sizes)


@pytest.mark.parametrize('form', ['matmul', 'fft'])
def test_integers_are_pooled_as_numbers(form):
  x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  found = spectral_pooling.spectral_pooling(x, (8, 8), form=form)
  expected = spectral_pooling.spectral_pooling(
    x.astype(np.float32), (8, 8), form=form
  )
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-3)
  public = spectral_pooling.public_pooling(x, (8, 8), scale='public_code')
  expected = spectral_pooling.public_pooling(
    x.astype(np.float32), (8, 8), scale='public_code'
  )
  assert public.dtype == np.float32 and public.max() > 255
  np.testing.assert_allclose(public, expected, atol=1e-2)
