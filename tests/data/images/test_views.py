"""Views: crops and factors by hand, and nothing where nothing is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.data.images import views

ROWS, SIZE = 64, 8
RNGS = jax.random.split(jax.random.key(0), ROWS)
NOTHING = dict(
  area=(1.0, 1.0), flip=False, brightness=0.0, contrast=0.0, saturation=0.0
)


def _views(images, rngs=RNGS, **settings):
  return np.asarray(
    jax.jit(views.random_views(**NOTHING | settings))(images, rngs)
  )


def _images(channels=1):
  rng = np.random.default_rng(0)
  shape = (ROWS, SIZE, SIZE, channels)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_nothing_asked_is_nothing_done():
  np.testing.assert_array_equal(_views(_images()), _images())


def test_a_crop_is_a_window_resized():
  # On a ramp a window shows: slopes are its sides, the middle is its place.
  at = (jnp.arange(SIZE) + 0.5) / SIZE
  ramps = jnp.stack(jnp.broadcast_arrays(at[:, None], at[None]), -1)
  seen = _views(
    jnp.broadcast_to(ramps, (ROWS, SIZE, SIZE, 2)),
    area=(0.2, 0.5),
    aspect=(0.5, 2.0),
  )
  inside = seen[:, 2:-2, 2:-2]  # Beyond the outermost centres nothing rises.
  high, wide = (
    np.diff(inside[..., i], axis=1 + i).mean((1, 2)) * SIZE for i in (0, 1)
  )
  area, aspect = high * wide, wide / high
  assert 0.2 < area.min() < 0.25 and 0.45 < area.max() < 0.5
  assert 0.5 < aspect.min() < 0.7 and 1.5 < aspect.max() < 2.0
  middle = inside.mean((1, 2))
  for i, side in enumerate((high, wide)):
    first, last = middle[:, i] - side / 2, middle[:, i] + side / 2
    assert -1e-5 < first.min() < 0.1 and 0.9 < last.max() < 1 + 1e-5


def test_half_of_the_images_are_mirrored():
  images = np.asarray(_images())
  seen = _views(images, flip=True)
  mirrored = (seen == images[:, :, ::-1]).all((1, 2, 3))
  assert ((seen == images).all((1, 2, 3)) ^ mirrored).all()
  assert 0.3 < mirrored.mean() < 0.7


def _factors(images, seen):
  return (seen * images).sum((1, 2, 3)) / (images**2).sum((1, 2, 3))


def test_contrast_keeps_the_mean_and_saturation_the_grey():
  images = np.asarray(_images(3))
  mean = images.mean((1, 2, 3), keepdims=True)
  grey = images.mean(-1, keepdims=True)
  for name, still in (('contrast', mean), ('saturation', grey)):
    seen = _views(images, **{name: 0.4})
    factors = _factors(images - still, seen - still)
    assert 0.6 < factors.min() < 0.7 and 1.3 < factors.max() < 1.4
    expected = still + factors[:, None, None, None] * (images - still)
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_brightness_moves_all_pixels_alike():
  images = np.asarray(_images())
  moved = _views(images, brightness=0.4) - images
  size = np.sqrt((images**2).mean((1, 2, 3)))
  np.testing.assert_allclose(moved, moved[:, :1, :1] + 0 * moved, atol=1e-5)
  shares = moved[:, 0, 0, 0] / size
  assert -0.4 < shares.min() < -0.3 and 0.3 < shares.max() < 0.4


def test_a_row_depends_on_its_own_key_alone():
  settings = dict(area=(0.2, 1.0), flip=True, brightness=0.4, contrast=0.4)
  images = _images()
  seen = _views(images, **settings)
  one = _views(images[5:6], RNGS[5:6], **settings)
  np.testing.assert_allclose(seen[5], one[0], atol=1e-5)


@pytest.mark.parametrize(
  'settings',
  [
    dict(area=(0.0, 1.0)),
    dict(area=(0.5, 0.2)),
    dict(aspect=(0.0, 1.0)),
    dict(contrast=1.0),
    dict(brightness=-0.1),
  ],
)
def test_values_out_of_range_are_refused(settings):
  with pytest.raises(types.InputError):
    views.random_views(**settings)


def test_the_aspect_is_that_of_pixels():
  down, across = (jnp.arange(n, dtype=jnp.float32) for n in (8, 32))
  ramps = jnp.stack(jnp.broadcast_arrays(down[:, None], across[None]), -1)
  seen = _views(
    jnp.broadcast_to(ramps, (ROWS, 8, 32, 2)),
    **dict(area=(0.1, 0.1), aspect=(1.0, 1.0), size=8),
  )[:, 3:5, 3:5]  # The middle: beyond the outermost centres nothing rises.
  high, wide = (np.diff(seen[..., i], axis=1 + i).mean((1, 2)) for i in (0, 1))
  np.testing.assert_allclose(wide, high, rtol=1e-3)
