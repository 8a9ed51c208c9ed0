"""Likeness of pictures, against sums over windows that are written out."""

import numpy as np
import pytest

from repjax import types
from repjax.metrics import pictures

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.uniform(size=(2, 3, 9, 8, 2))


def test_psnr_is_the_peak_over_the_error():
  error = ((ONE - OTHER) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(
    pictures.psnr(ONE, OTHER, peak=2.0), 20 * np.log10(2 / np.sqrt(error))
  )
  assert np.isinf(pictures.psnr(ONE, ONE)).all()
  # A tenth of the error is 20 decibels more.
  close = pictures.psnr(ONE, ONE + 0.01 * (OTHER - ONE))
  np.testing.assert_allclose(close, pictures.psnr(ONE, OTHER) + 40)
  with pytest.raises(types.InputError, match='peak'):
    pictures.psnr(ONE, OTHER, peak=0)


@pytest.mark.parametrize('window', [5, 11])
def test_ssim_is_that_of_windows_one_by_one(window):
  side = {5: 5, 11: 7}[window]  # The largest odd one that fits 9 x 8.
  at = np.arange(side) - side // 2
  weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
  weight /= weight.sum()
  expected = []
  for x, y in zip(ONE, OTHER, strict=True):
    values = []
    for i in range(9 - side + 1):
      for j in range(8 - side + 1):
        for c in range(2):
          a, b = (z[i : i + side, j : j + side, c] for z in (x, y))
          ma, mb = (weight * a).sum(), (weight * b).sum()
          va = (weight * (a - ma) ** 2).sum()
          vb = (weight * (b - mb) ** 2).sum()
          cov = (weight * (a - ma) * (b - mb)).sum()
          values.append(
            (2 * ma * mb + 1e-4)
            * (2 * cov + 9e-4)
            / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
          )
    expected.append(np.mean(values))
  np.testing.assert_allclose(
    pictures.ssim(ONE, OTHER, window=window), expected, rtol=1e-9
  )
  np.testing.assert_allclose(pictures.ssim(ONE, ONE, window=window), 1.0)
  large = pictures.ssim(255 * ONE, 255 * OTHER, peak=255, window=window)
  np.testing.assert_allclose(large, expected, rtol=1e-9)


def test_pictures_find_their_own():
  order = np.array([2, 0, 1])
  noisy = ONE[order] + RNG.normal(size=ONE.shape) * 1e-3
  np.testing.assert_array_equal(order[pictures.matched(ONE, noisy)], [0, 1, 2])
  # An exact one is never given away to make others a little better.
  few = pictures.matched(ONE, ONE[[1]])
  np.testing.assert_array_equal(few, [-1, 0, -1])
  assert (pictures.matched(ONE, ONE[:0]) == -1).all()


def test_an_exact_picture_is_not_traded_for_a_smaller_sum():
  images, others = np.array([[0.0], [1.0]]), np.array([[0.0], [-1.0]])
  np.testing.assert_array_equal(pictures.matched(images, others), [0, 1])


@pytest.mark.parametrize('measure', [pictures.psnr, pictures.ssim])
@pytest.mark.parametrize('other', [OTHER[:1], OTHER[..., :1]])
def test_pictures_of_other_shapes_are_no_pairs(measure, other):
  with pytest.raises(types.InputError, match=r'pairs of one shape; got \[3, 9'):
    measure(ONE, other)
