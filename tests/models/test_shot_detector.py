"""Detectors in one shot: their boxes, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import padding
from repjax.models import shot_detector
from repjax.types import InputError


def iou(a, b):
  """Of two boxes (y, x, h, w), on a fine grid of points."""
  at = (np.arange(4000) + 0.5) / 100 - 20

  def inside(middle, side):
    return abs(at - middle) < side / 2

  def area(*boxes):
    rows = np.all([inside(x[0], x[2]) for x in boxes], 0).sum()
    columns = np.all([inside(x[1], x[3]) for x in boxes], 0).sum()
    return rows * columns

  both = area(a, b)
  return both / (area(a) + area(b) - both)


def test_overlap_is_intersection_over_union():
  rng = np.random.default_rng(0)
  boxes = np.concatenate(
    [rng.uniform(0, 3, (2, 8, 2)), rng.uniform(1, 5, (2, 8, 2))], -1
  )
  found = jax.jit(shot_detector.overlaps)(*boxes.astype(np.float32))
  expected = [iou(a, b) for a, b in zip(*boxes, strict=True)]
  np.testing.assert_allclose(found, expected, atol=0.02)
  far = jnp.array([[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 1.0, 1.0]])
  assert shot_detector.overlaps(far[0], far[1]) == 0


def test_default_boxes_are_spread_over_the_image_and_boxes_come_back():
  model = shot_detector.ShotDetector(
    maps=(0, 1), sides=(3.0, 6.0), stage_sizes=(1, 1), width=4
  )
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, 8, 12, 1)).astype(np.float32)
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (model.init, model.apply)
  )
  variables = init(jax.random.key(1), image)
  found = apply(variables, image)
  assert found.logits.shape == (2, 8 * 12 + 4 * 6)
  fine, coarse = np.split(np.asarray(found.defaults), [96])
  np.testing.assert_allclose(fine[0], [0.5, 0.5, 3, 3])
  np.testing.assert_allclose(fine[-1], [7.5, 11.5, 3, 3])
  np.testing.assert_allclose(coarse[1], [1, 3, 6, 6])  # Row by row.
  boxes = rng.uniform(1.0, 7.0, (2, 120, 4)).astype(np.float32)

  @jax.jit
  def there_and_back(found, boxes):
    offsets = shot_detector.encode(boxes, found.defaults)
    return shot_detector.decode(found._replace(offsets=offsets))

  back = there_and_back(found, boxes)
  np.testing.assert_allclose(back, boxes, rtol=1e-5)
  # Each place has the logit of its own default box: a shifted image shifts
  # them, where nothing but the opposite side is padded.
  wrapped = padding.Padded(model, 'circular')
  shifted = np.roll(image, (2, 4), (1, 2))
  apply = jax.jit(functools.partial(wrapped.apply, train=False))
  first, second = (
    np.asarray(apply(variables, x).logits)[:, 96:].reshape((2, 4, 6))
    for x in (image, shifted)
  )
  np.testing.assert_allclose(
    np.roll(first, (1, 2), (1, 2)), second, rtol=1e-4, atol=1e-5
  )


def test_a_map_that_is_not_there_is_told():
  model = shot_detector.ShotDetector(maps=(3,), sides=(3.0,))
  with pytest.raises(InputError, match=r'there are 3, from 0 on'):
    model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)


@pytest.mark.parametrize('sides', [(3.0,), (3.0, 6.0, 12.0)])
def test_each_map_has_one_side(sides):
  model = shot_detector.ShotDetector(sides=sides)
  with pytest.raises(InputError, match='one side for each of maps'):
    model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
