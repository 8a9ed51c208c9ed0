"""How sweeps read what they search."""

import ml_collections
import numpy as np
import pytest

from launch.lib import space as spaces
from repjax import types


def config():
  return ml_collections.ConfigDict(
    dict(tx=dict(rate=0.1, depth=3, name='sgd', flip=True, sizes=(1, 2)), b=2)
  )


def test_a_grid_is_every_combination():
  space = spaces.parse('tx.rate=1e-3,1e-2; config.b=1,2,3;')
  grid = spaces.grid(space)
  assert len(grid) == 6
  assert grid[0] == {'tx.rate': '1e-3', 'b': '1'}
  assert len({tuple(x.items()) for x in grid}) == 6
  sizes = spaces.parse('tx.sizes=(1,2),(3,4)')
  assert sizes == {'tx.sizes': ('(1,2)', '(3,4)')}
  spaces.check({**space, **sizes}, config())


def test_ranges_are_drawn_from_their_laws():
  space = spaces.parse('tx.rate=log(1e-4,1);tx.depth=int(2,5);b=uniform(1,3)')
  assert spaces.has_ranges(space)
  drawn = [spaces.draw(space, np.random.default_rng(i)) for i in range(2000)]
  rates = np.log10([float(x['tx.rate']) for x in drawn])
  np.testing.assert_allclose(
    np.quantile(rates, [0.25, 0.5, 0.75]), [-3, -2, -1], atol=0.15
  )
  depths = np.bincount([int(x['tx.depth']) for x in drawn])
  assert (depths[2:] > 400).all()
  assert depths[2:].sum() == 2000
  values = [float(x['b']) for x in drawn]
  assert 1 <= min(values) < 1.02 < 2.98 < max(values) <= 3
  # A list is drawn from, too, each value as often.
  mixed = spaces.parse('tx.name=a,b')
  names = [spaces.draw(mixed, np.random.default_rng(i)) for i in range(400)]
  assert 150 < sum(x['tx.name'] == 'a' for x in names) < 250


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('', 'names no field'),
    ('tx.rate', 'not field=values'),
    ('tx.rate=', 'not field=values'),
    ('tx.rate=1;tx.rate=2', 'twice'),
    ('tx.rate=log(1,0.1)', 'low < high'),
    ('tx.rate=log(0,1)', 'above 0'),
    ('tx.rate=int(1,2.5)', 'whole'),
    ('tx.rate=uniform(a,b)', 'numbers'),
    ('tx.depth=int(1,99999999999999999999999)', 'finite low < high'),
    ('tx.rate=normal(0,1)', 'no range'),
  ],
)
def test_what_cannot_be_read_is_refused(text, says):
  with pytest.raises(types.InputError, match=says):
    spaces.parse(text)


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('tx.rates=1', "Did you mean 'rate'"),
    ('tx.rate=1,abc', "'abc' is not float"),
    ('tx.depth=uniform(0,0.5)', 'is not int'),
    ('tx.depth=log(2,64)', r'write tx\.depth=int\(2,64\)'),
    ('tx.depth=uniform(2,8)', 'gives fractions'),
    ('tx.flip=uniform(0,1)', 'is a bool, and a range gives numbers'),
    ('tx.flip=maybe', 'is not bool'),
    ('tx=1', 'is a group'),
    ('b=1', 'in one place'),
  ],
)
def test_fields_that_do_not_fit_are_refused(text, says):
  with pytest.raises(types.InputError, match=says):
    spaces.check(spaces.parse(text), config(), more=('b',))
