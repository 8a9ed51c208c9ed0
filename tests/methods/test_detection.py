"""The loss of a detector, image by image, in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.data.sets import spots
from repjax.methods import detection
from repjax.models import shot_detector
from repjax.types import InputError


def model():
  return shot_detector.ShotDetector(
    maps=(0,), sides=(3.0,), stage_sizes=(1,), width=4
  )


def batch(rows=6, side=8):
  columns = spots.draw(rows, seed=0, side=side).columns()
  columns['image'] = columns['image'] / np.float32(255)
  return {**columns, 'mask': np.ones(rows, np.float32)}


def test_the_loss_is_that_of_the_paper():
  rows = batch()
  made = detection.make(model(), optax.sgd(0.0), negatives=2, box_weight=0.7)
  state = jax.jit(made.init)(jax.random.key(0), rows)
  _, sums = jax.jit(made.update)(state, rows, jax.random.key(1))
  apply = functools.partial(model().apply, train=True, mutable=['batch_stats'])
  found, _ = jax.device_get(
    jax.jit(apply)(
      {'params': state.params, **state.model_state},
      rows['image'],
      mask=rows['mask'],
    )
  )
  total, overlaps = 0.0, jax.jit(shot_detector.overlaps)
  for i, label in enumerate(rows['label']):
    box = rows['box'][i]
    overlap = np.array([overlaps(box, d) for d in found.defaults])
    own = (overlap >= 0.5) | (np.arange(len(overlap)) == overlap.argmax())
    own &= label > 0
    logits = np.asarray(found.logits[i], np.float64)
    count = max(1, own.sum())
    sure = np.log1p(np.exp(-logits[own])).sum()
    wrong = np.sort(np.log1p(np.exp(logits[~own])))[::-1][: 2 * count].sum()
    place = 0.0
    for d, offset in zip(
      np.asarray(found.defaults)[own],
      np.asarray(found.offsets[i])[own],
      strict=True,
    ):
      wanted = [*(box[:2] - d[:2]) / d[2:], *np.log(box[2:] / d[2:])]
      off = abs(offset - wanted)
      place += np.where(off < 1, off**2 / 2, off - 0.5).sum()
    total += (sure + wrong + 0.7 * place) / count
  np.testing.assert_allclose(float(sums['loss'][0]), total, rtol=1e-4)


def test_the_box_that_overlaps_most_stands_for_an_object_however_little():
  defaults = jnp.array([[1.0, 1, 2, 2], [5, 5, 2, 2], [5.5, 5, 2, 2]])
  box = jnp.array([[2.5, 2.5, 2, 2], [5.2, 5, 2, 2]])
  match = jax.jit(functools.partial(detection.match, least=0.5))
  found = match(jnp.array([1, 1]), box, defaults)
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 1]])
  none = match(jnp.array([0, 0]), box, defaults)
  np.testing.assert_array_equal(none, 0)


def test_it_learns_where_squares_are():
  rows = {k: np.asarray(x) for k, x in batch(32, side=12).items()}
  made = detection.make(model(), optax.adam(0.01), box_weight=3.0)
  state = jax.jit(made.init)(jax.random.key(0), rows)
  update = jax.jit(made.update)
  for step in range(200):
    state, _ = update(state, rows, jax.random.key(step))
  found = jax.jit(made.predict)(state, rows)
  best = np.asarray(found['score']).argmax(-1)
  there = rows['label'] > 0
  boxes = np.asarray(found['boxes'])[np.arange(32), best]
  overlap = jax.jit(shot_detector.overlaps)(boxes, rows['box'])
  assert np.asarray(overlap)[there].mean() > 0.6
  top = np.asarray(found['score']).max(-1)
  assert top[there].min() > top[~there].max()


def test_settings_out_of_range_are_told():
  for wrong in (dict(least_overlap=0), dict(negatives=0), dict(box_weight=-1)):
    with pytest.raises(InputError, match=next(iter(wrong))):
      detection.make(model(), optax.sgd(0.1), **wrong)
