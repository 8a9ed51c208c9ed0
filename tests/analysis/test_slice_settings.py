"""Settings have exactly the rows that they name."""

import numpy as np
import pytest

from repjax import types
from repjax.analysis import slice_settings


def world(num_rows=2000, seed=0):
  """(target, a subclass of it, an attribute that is independent)."""
  rng = np.random.default_rng(seed)
  target = rng.random(num_rows) < 0.5
  return (
    target,
    target & (rng.random(num_rows) < 0.3),
    rng.random(num_rows) < 0.4,
  )


def drawn(kind, **changed):
  target, member, attribute = world()
  given = dict(strength=0.2, num_rows=600, seed=1)
  second = member if kind == 'rare' else attribute
  made = getattr(slice_settings, kind)(target, second, **{**given, **changed})
  assert len(np.unique(made.rows)) == len(made.rows)
  return made, target[made.rows], second[made.rows]


def test_a_rare_slice_is_that_part_of_the_positive_rows():
  made, target, member = drawn('rare', strength=0.05)
  np.testing.assert_array_equal(made.labels, target)
  np.testing.assert_array_equal(made.slices[:, 0], member)
  assert target.sum() == 300
  assert member.sum() == 15


@pytest.mark.parametrize('strength', [0.2, 0.5, 0.8])
def test_a_correlation_is_pearsons(strength):
  made, target, attribute = drawn('correlated', strength=strength)
  np.testing.assert_array_equal(made.labels, target)
  found = np.corrcoef(target, attribute)[0, 1]
  assert found == pytest.approx(strength, abs=0.01)
  assert target.mean() == attribute.mean() == 0.5
  np.testing.assert_array_equal(made.slices[:, 0], ~target & attribute)
  np.testing.assert_array_equal(made.slices[:, 1], target & ~attribute)


def test_noise_turns_so_many_labels_of_the_slice_alone():
  made, target, member = drawn('noisy', strength=0.25)
  turned = made.labels != target
  assert not turned[~member].any()
  assert turned.sum() == round(0.25 * member.sum())
  np.testing.assert_array_equal(made.slices[:, 0], member)
  assert target.mean() == 0.5


def test_seeds_decide():
  first, again, other = (drawn('noisy', seed=x)[0] for x in (1, 1, 2))
  np.testing.assert_array_equal(first.rows, again.rows)
  np.testing.assert_array_equal(first.labels, again.labels)
  assert (first.rows != other.rows).any()


def test_a_synthetic_model_is_worse_on_the_slice():
  made, _, _ = drawn('noisy')
  many = slice_settings.Setting(
    np.arange(60_000), np.tile(made.labels, 100), np.tile(made.slices, (100, 1))
  )
  probs = slice_settings.synthetic(
    many, seed=0, inside=0.3, outside=0.9, sharpness=100.0
  )
  np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
  right = probs.argmax(1) == many.labels
  inside = many.slices[:, 0]
  assert right[inside].mean() == pytest.approx(0.3, abs=0.02)
  assert right[~inside].mean() == pytest.approx(0.9, abs=0.02)
  # Sharp models are sure of what they say: Beta has the mean .8.
  assert probs.max(1).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
  ('kind', 'changed', 'message'),
  [
    ('rare', dict(strength=0.001), 'rows of the rare slice must be in'),
    ('rare', dict(strength=1.0), 'strength must be in'),
    ('rare', dict(num_rows=4000), 'rare rows, and the set has'),
    ('correlated', dict(num_rows=1900), 'positive with the attribute rows'),
    ('correlated', dict(strength=0.999, num_rows=40), 'rows of each slice'),
    ('correlated', dict(num_rows=101), 'num_rows=101 is odd'),
    ('noisy', dict(num_rows=4000), 'needs 2000 positive rows'),
    ('noisy', dict(strength=np.nan), 'strength must be in'),
    ('noisy', dict(strength=0.001), 'wrong labels of the noisy slice'),
  ],
)
def test_what_cannot_be_drawn_is_said(kind, changed, message):
  with pytest.raises(types.InputError, match=message):
    drawn(kind, **changed)


def test_masks_must_be_masks():
  target, member, attribute = world()
  given = dict(strength=0.1, num_rows=100, seed=0)
  with pytest.raises(types.InputError, match='are not positive'):
    slice_settings.rare(target, attribute, **given)
  with pytest.raises(types.InputError, match='truth values'):
    slice_settings.noisy(target, member.astype(int), **given)
  with pytest.raises(types.InputError, match='none of the 100 drawn rows'):
    slice_settings.noisy(target, np.zeros(2000, bool), **given)
