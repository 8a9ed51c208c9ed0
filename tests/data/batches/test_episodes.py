"""Episodes: as many classes and rows as asked for, and the same for all."""

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import episodes

LABELS = np.random.default_rng(0).permutation(np.repeat([3, 5, 6, 9], 12))


def test_rows_are_of_their_classes_and_none_is_drawn_twice():
  sampler = episodes.sampler(LABELS, ways=3, shots=4, queries=5, seed=1)
  drawn = sampler.draw(0, 200)
  assert drawn.support.shape == (200, 3, 4) and drawn.query.shape == (200, 3, 5)
  rows = np.concatenate([drawn.support, drawn.query], 2)
  classes = np.asarray(drawn.classes)
  np.testing.assert_array_equal(
    LABELS[rows], np.broadcast_to(classes[..., None], rows.shape)
  )
  for of_one, of_classes in zip(rows, classes, strict=True):
    assert len(np.unique(of_one)) == 27
    assert len(np.unique(of_classes)) == 3


def test_an_episode_is_a_function_of_the_seed_and_its_index():
  sampler = episodes.sampler(LABELS, ways=3, shots=4, queries=5, seed=1)
  all_at_once, later = sampler.draw(0, 20), sampler.draw(7, 3)
  np.testing.assert_array_equal(all_at_once.support[7:10], later.support)
  np.testing.assert_array_equal(all_at_once.query[7:10], later.query)
  other = episodes.sampler(LABELS, ways=3, shots=4, queries=5, seed=2)
  assert (np.asarray(other.draw(7, 3).query) != np.asarray(later.query)).any()


def test_every_row_and_class_is_as_likely():
  sampler = episodes.sampler(LABELS, ways=2, shots=1, queries=2, seed=0)
  drawn = sampler.draw(0, 4000)
  counts = np.bincount(np.asarray(drawn.support).ravel(), minlength=48)
  # 4,000 * 2 / 48 = 167 each, with a standard deviation of 13.
  assert counts.min() > 115 and counts.max() < 220


def test_small_classes_are_drawn_from_their_own_rows():
  labels = np.array([0] * 3 + [1] * 20)
  drawn = episodes.sampler(labels, ways=2, shots=1, queries=2).draw(0, 50)
  rows = np.concatenate([drawn.support, drawn.query], 2)
  small = rows[np.asarray(drawn.classes) == 0]
  np.testing.assert_array_equal(np.sort(small, 1), [[0, 1, 2]] * 50)


def test_only_the_classes_asked_for():
  sampler = episodes.sampler(LABELS, ways=2, shots=1, queries=1, classes=[5, 9])
  assert set(np.asarray(sampler.draw(0, 30).classes).ravel()) == {5, 9}


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    (dict(ways=5, shots=1), 'An episode of 5 classes cannot be drawn from 4'),
    (dict(ways=2, shots=9, queries=4), 'Class 3 has 12 rows, .* takes 13'),
    (dict(ways=2, shots=1, classes=[4]), 'No row has the class 4'),
    (dict(ways=1, shots=1), r'ways must be in \[2, inf\)'),
    (dict(ways=2, shots=0), r'shots must be in \[1, inf\)'),
  ],
)
def test_what_cannot_be_drawn_is_refused(asked, message):
  with pytest.raises(types.InputError, match=message):
    episodes.sampler(LABELS, **{'queries': 5, **asked})
