"""ListOps against Python's own evaluation, and its limits."""

import statistics

import numpy as np
import pytest

from repjax.data.sets import listops
from repjax.types import InputError

SHORT = dict(min_length=4, max_length=40, max_depth=4, max_args=5)


def by_python(expression):
  """The value by `eval` of calls, written from the words."""
  names = {'[MIN': 'low', '[MAX': 'high', '[MED': 'median', '[SM': 'total'}
  code = ''
  for word in expression.split():
    if word in names:
      code += f'{names[word]}(['
    else:
      code += ']),' if word == ']' else f'{word},'
  functions = {
    'low': min,
    'high': max,
    'median': lambda x: int(statistics.median(x)),
    'total': lambda x: sum(x) % 10,
  }
  return eval(code.rstrip(','), {}, functions)


@pytest.mark.parametrize(
  ('expression', 'value'),
  [
    ('7', 7),
    ('[MAX 2 9 [MIN 4 7 ] 0 ]', 9),
    ('[MED 1 8 ]', 4),
    ('[MED 9 1 8 ]', 8),
    ('[SM 9 9 [SM 5 6 ] ]', 9),
  ],
)
def test_values_by_hand(expression, value):
  ids = listops.encode(expression)
  assert listops.value(ids) == value
  assert listops.decode(ids) == expression


@pytest.mark.parametrize(
  'expression', ['', '1 2', '[MAX 1', '[MAX ]', '1 ]', '[MAX 1 ] ]']
)
def test_what_is_no_expression_is_refused(expression):
  with pytest.raises(InputError, match='no expression'):
    listops.value(listops.encode(expression))


def depth(expression):
  level = deepest = 0
  for word in expression.split():
    level += word in listops.OPERATORS
    deepest = max(deepest, level + word.isdigit())
    level -= word == ']'
  return deepest


def test_rows_keep_the_limits_and_have_their_values():
  rows = listops.load(300, seed=0, **SHORT)
  columns = rows.read(np.arange(300))
  seen = set()
  for ids, mask, label in zip(
    columns['tokens'], columns['token_mask'], columns['label'], strict=True
  ):
    length = int(mask.sum())
    assert ids[0] == 1 and not ids[length:].any() and ids[:length].all()
    expression = listops.decode(ids)
    assert 4 < len(expression.split()) == length - 1 < 40
    assert depth(expression) <= 4
    assert label == by_python(expression)
    seen.add(expression)
  assert len(seen) == 300
  assert rows.num_classes == 10
  assert len(np.unique(columns['label'])) == 10


def test_seeds_and_splits_decide():
  def tokens(**settings):
    rows = listops.load(20, **{**SHORT, 'seed': 0, **settings})
    return rows.read(np.arange(20))['tokens']

  np.testing.assert_array_equal(tokens(), tokens())
  assert (tokens() != tokens(seed=1)).any()
  assert (tokens() != tokens(split='test')).any()


def test_the_published_lengths_are_within_reach():
  rows = listops.load(3, seed=0)
  lengths = rows.column('token_mask').sum(1) - 1
  assert ((lengths > 500) & (lengths < 2000)).all()


def test_settings_out_of_range_are_refused():
  with pytest.raises(InputError, match='max_args=1'):
    listops.load(1, seed=0, max_args=1)
  with pytest.raises(InputError, match=r'after 10: raise'):
    # Depth 1 has the ten digits only.
    listops.load(11, seed=0, min_length=0, max_length=5, max_depth=1)
