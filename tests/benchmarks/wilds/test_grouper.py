"""Groups count the first field fastest, and say their names."""

import json
import pathlib

import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import grouper as groupers

# Made once with PyPI's `wilds` 2.0.0 (tests/parity compares on random data).
_GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden.json').read_text('utf-8')
)['grouper']
_NAMES = {'colour': ['red', 'dark blue', 'green']}
_VALUES = np.array(_GOLDEN['values'])
_METADATA = groupers.Metadata(_VALUES, ('colour', 'year', 'y'), _NAMES)


@pytest.mark.parametrize('fields', [('colour', 'y'), ('y', 'colour')])
def test_ids_and_names_are_those_of_wilds(fields):
  grouper = groupers.Grouper(_METADATA, fields)
  assert grouper(_VALUES).tolist() == _GOLDEN['ids']
  assert grouper.counts(_VALUES).tolist() == _GOLDEN['counts']
  assert [*map(grouper.name, range(grouper.num_groups))] == _GOLDEN['names']
  assert [*map(grouper.key, range(grouper.num_groups))] == _GOLDEN['keys']


def test_ids_are_mixed_numbers():
  grouper = groupers.Grouper(_METADATA, ('colour', 'year', 'y'))
  sizes = _VALUES.max(0) + 1
  by_hand = [c + sizes[0] * (t + sizes[1] * y) for c, t, y in _VALUES]
  assert grouper(_VALUES).tolist() == by_hand
  assert grouper.num_groups == np.prod(sizes)


def test_no_fields_are_one_group():
  grouper = groupers.Grouper(_METADATA, None)
  assert (grouper.num_groups, grouper.name(0)) == (1, 'all')
  assert set(grouper(_VALUES)) == {0}


def test_several_sets_share_their_groups():
  more = groupers.Metadata(
    np.array([[1, 9, 0], [3, 0, 1]]),
    _METADATA.fields,
    {'colour': [*_NAMES['colour'], 'grey']},
  )
  grouper = groupers.Grouper([_METADATA, more], ('colour',))
  assert grouper.num_groups == 4
  assert grouper.name(3) == 'colour = grey'
  assert grouper(more.values).tolist() == [1, 3]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (('hospital',), "no metadata field 'hospital'; the fields are colour, yea"),
    (('y', 'y'), 'different names'),
    ((), 'at least one'),
    ('colour', 'different names'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(types.InputError, match=message):
    groupers.Grouper(_METADATA, fields)


def test_metadata_of_other_sets_are_refused():
  grouper = groupers.Grouper(_METADATA, ('colour',))
  with pytest.raises(types.InputError, match='have 3 fields'):
    grouper(_VALUES[:, :2])
  with pytest.raises(
    types.InputError, match='colour=7 in row 0 is none of the'
  ):
    grouper(np.array([[7, 0, 0]]))
  half = groupers.Metadata(np.array([[0.5]]), ('wealth',), {})
  with pytest.raises(
    types.InputError, match=r"whole numbers .*'wealth' has 0.5"
  ):
    groupers.Grouper(half, ('wealth',))
  negative = groupers.Metadata(np.array([[-1]]), ('year',), {})
  with pytest.raises(types.InputError, match="'year' has -1"):
    groupers.Grouper(negative, ('year',))
  other = groupers.Metadata(_VALUES, ('a', 'b', 'c'), {})
  with pytest.raises(types.InputError, match='same metadata fields'):
    groupers.Grouper([_METADATA, other], ('colour',))
  renamed = _METADATA._replace(names={'colour': ['blue', 'red']})
  with pytest.raises(types.InputError, match="'colour' by different names"):
    groupers.Grouper([_METADATA, renamed], ('colour',))
  with pytest.raises(types.InputError, match='at least one data set'):
    groupers.Grouper([], ('colour',))
