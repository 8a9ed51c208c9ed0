"""Random views: what they are, and that gradients go through them."""

import functools

import jax
import numpy as np
import pytest

from repjax import types
from repjax.methods import diff_augment

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(0.1, 1, size=(32, 8, 8, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 32)


def views(*kinds, image=IMAGE, keys=KEYS, **settings):
  augment = functools.partial(diff_augment.augment, kinds=kinds, **settings)
  return np.asarray(jax.jit(augment)(image, keys))


def test_without_kinds_or_probability_nothing_changes():
  np.testing.assert_array_equal(views(), IMAGE)
  np.testing.assert_array_equal(
    views('colour', 'scale', 'translation', 'cutout', probability=0.0), IMAGE
  )


def test_translations_are_shifts_by_whole_pixels():
  made = views('translation', ratio=0.25)
  found = set()
  for image, view in zip(IMAGE, made, strict=True):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    matches = [
      (i, j)
      for i, j in np.ndindex(5, 5)
      if np.array_equal(view, padded[i : i + 8, j : j + 8])
    ]
    assert len(matches) == 1
    found.update(matches)
  assert {i for i, _ in found} == {j for _, j in found} == set(range(5))


def test_a_cut_is_a_square_of_zeros():
  found = set()
  for image, view in zip(IMAGE, views('cutout'), strict=True):
    gone = (view == 0).all(-1)
    np.testing.assert_array_equal(view[~gone], image[~gone])
    rows, columns = gone.any(1), gone.any(0)
    np.testing.assert_array_equal(gone, rows[:, None] & columns[None])
    # Half of the side, less where it leaves the image.
    assert 2 <= rows.sum() <= 4
    assert 2 <= columns.sum() <= 4
    found |= {(int(x.argmax()), int(x.sum())) for x in (rows, columns)}
  # Its centre is anywhere, on both borders, too.
  whole = {(first, 4) for first in range(5)}
  assert found == whole | {(0, 2), (0, 3), (5, 3), (6, 2)}


def test_a_colour_is_a_brightness_a_saturation_and_a_contrast():
  seen_contrasts, seen_saturations = [], []
  for image, view in zip(IMAGE, views('colour'), strict=True):
    # Affine maps of grey values and of what differs from them.
    grey, seen = image.mean(-1).ravel(), view.mean(-1).ravel()
    contrast, offset = np.polyfit(grey, seen, 1)
    np.testing.assert_allclose(seen, contrast * grey + offset, atol=1e-5)
    assert 0.5 <= contrast <= 1.5
    colour = (image - image.mean(-1, keepdims=True)).ravel()
    kept = (view - view.mean(-1, keepdims=True)).ravel()
    saturation = kept @ colour / (colour @ colour) / contrast
    np.testing.assert_allclose(kept, saturation * contrast * colour, atol=1e-5)
    assert 0 <= saturation <= 2
    assert abs(view.mean() - image.mean()) <= 0.5
    seen_contrasts.append(contrast)
    seen_saturations.append(saturation)
  assert np.ptp(seen_contrasts) > 0.7
  assert np.ptp(seen_saturations) > 1.4


def test_zooms_keep_the_middle_and_are_bilinear():
  ramp = np.broadcast_to(
    np.linspace(0, 1, 9, dtype=np.float32)[None, :, None, None], (32, 9, 9, 1)
  )
  made = views('scale', image=ramp)
  np.testing.assert_allclose(made[:, 4, 4, 0], 0.5, atol=1e-6)
  slopes = made[:, 5, 4, 0] - made[:, 4, 4, 0]
  zooms = 0.125 / slopes
  assert 0.1 < np.log2(zooms).std() < 0.3
  np.testing.assert_allclose(made[:, 3, 4, 0], 0.5 - slopes, atol=1e-5)


def test_each_kind_happens_with_its_probability():
  keys = jax.random.split(jax.random.key(1), 2000)
  image = np.ones((2000, 2, 2, 1), np.float32)
  made = views('colour', image=image, keys=keys, probability=0.3)
  assert abs((made != 1).any((1, 2, 3)).mean() - 0.3) < 0.05


def test_a_view_depends_on_its_row_s_key_alone():
  kinds, order = ('colour', 'translation', 'cutout'), np.arange(32)[::-1]
  np.testing.assert_array_equal(
    views(*kinds, image=IMAGE[order], keys=KEYS[order]), views(*kinds)[order]
  )


def test_gradients_go_through_all_kinds():
  slopes = jax.jit(jax.grad(lambda x: diff_augment.augment(x, KEYS).sum()))(
    IMAGE
  )
  assert np.isfinite(slopes).all()
  assert (np.abs(np.asarray(slopes)).max((1, 2, 3)) > 0).all()


def test_bad_settings_are_refused():
  with pytest.raises(types.InputError, match=r"got \['color'\]"):
    views('color')
  with pytest.raises(types.InputError, match='probability must be in'):
    views('colour', probability=2.0)
