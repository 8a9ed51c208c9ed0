"""Colours are as the split says, for every seed."""

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source
from repjax.data.sets import coloured_digits

N = 400


@pytest.fixture(scope='module')
def grey():
  rng = np.random.default_rng(0)

  def make(rows):
    return source.from_arrays(
      'grey',
      dict(
        image=rng.integers(0, 256, (rows, 5, 5, 1)).astype(np.uint8),
        label=(np.arange(rows) % 10).astype(np.int32),
      ),
      num_classes=10,
    )

  return make(N), make(N)


def _load(grey, split, **settings):
  settings = {**dict(seed=3, num_validation=60), **settings}
  return coloured_digits.load(*grey, split, **settings)


def _colours(rows):
  """The one colour of each row's strokes, [n, 3]."""
  images = rows['image'].reshape(len(rows['image']), -1, 3)
  return np.stack([x[x.any(-1)][0] for x in images])


def _is_own(rows):
  own = coloured_digits.CLASS_COLOURS[rows['label']]
  return (_colours(rows) == own).all(-1)


def _distance(rows, table):
  colours = _colours(rows).astype(int)
  return np.square(colours[:, None] - table[None]).sum(-1).min(1)


def test_strokes_have_one_colour_on_black(grey):
  rows = _load(grey, 'train').columns()
  digits = grey[0].columns()['image'][rows['digit']]
  expected = (digits > 127) * _colours(rows)[:, None, None]
  np.testing.assert_array_equal(rows['image'], expected)
  label = grey[0].column('label')[rows['digit']]
  np.testing.assert_array_equal(rows['label'], label - 1)
  assert 'colour' not in rows


@pytest.mark.parametrize('split', ['train', 'validation', 'in_distribution'])
def test_the_minority_is_what_lacks_its_colour(grey, split):
  rows = _load(grey, split, bias_rate=0.6).columns()
  np.testing.assert_array_equal(rows['group'] == 0, _is_own(rows))
  assert 0.2 < rows['group'].mean() < 0.6
  hard = {k: x[rows['group'] == 1] for k, x in rows.items()}
  assert _distance(hard, coloured_digits.CLASS_COLOURS).min() > 2500


def test_all_or_none_have_their_colour(grey):
  assert _load(grey, 'train', bias_rate=1.0).column('group').max() == 0
  assert _load(grey, 'train', bias_rate=0.0).column('group').min() == 1


def test_systematic_rows_have_another_class_colour(grey):
  for split in ('systematic', 'validation_systematic'):
    rows = _load(grey, split, copies=3).columns()
    assert not _is_own(rows).any()
    assert _distance(rows, coloured_digits.CLASS_COLOURS).max() == 0


def test_new_colours_are_far_from_those_of_other_splits(grey):
  train = _load(grey, 'train', bias_rate=0.0).columns()
  seen = np.unique(_colours(train), axis=0).astype(int)
  assert len(seen) <= 10
  for split in ('non_systematic', 'validation_non_systematic'):
    rows = _load(grey, split).columns()
    assert _distance(rows, coloured_digits.CLASS_COLOURS).min() > 2500
    assert _distance(rows, seen).min() > 2500
    seen = np.concatenate([seen, np.unique(_colours(rows), axis=0)])


def test_splits_share_no_row_and_zero_is_an_anomaly(grey):
  train, held = (
    set(_load(grey, x).column('digit').tolist())
    for x in ('train', 'validation_systematic')
  )
  assert not train & held and len(held) == 60
  assert len(train | held) == (grey[0].column('label') > 0).sum()
  zeros = _load(grey, 'anomaly').column('digit')
  assert set(grey[1].column('label')[zeros]) == {0}
  copies = _load(grey, 'systematic', copies=3).column('digit')
  assert (np.bincount(copies)[np.unique(copies)] == 3).all()


def test_seeds_decide(grey):
  first, again, other = (
    _load(grey, 'train', seed=seed).columns()['image'] for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(split='trian'), 'split must be one of'),
    (dict(split='train', bias_rate=1.5), 'bias_rate must be in'),
    (dict(split='train', num_validation=N), 'leaves no training row'),
    (dict(split='validation', num_validation=0), 'needs num_validation'),
    (dict(split='train', min_distance=1e6), 'lower it'),
  ],
)
def test_what_cannot_be_made_is_refused(grey, settings, message):
  with pytest.raises(types.InputError, match=message):
    _load(grey, **settings)


def test_only_grey_digits_are_coloured(grey):
  with pytest.raises(types.InputError, match='only grey digits'):
    coloured_digits.load(_load(grey, 'train'), grey[1], 'train', seed=0)
