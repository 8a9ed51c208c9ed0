"""Spaces of config fields that sweeps go through.

tx.learning_rate=1e-3,1e-2;sam.rho=0.05,0.1     every combination
tx.learning_rate=log(1e-4,1e-1);depth=int(2,8)  drawn at random
"""

from collections.abc import Sequence
import itertools
import math
import re
from typing import NamedTuple

import ml_collections
import numpy as np

from launch.lib import recipes
from repjax import types

SYNTAX = (
  'Fields and their values, parted by ";": field=1e-3,1e-2,1e-1 is a list, '
  'field=log(1e-4,1e-1) a range on a logarithmic scale, field=uniform(0,0.5) '
  'one on a linear scale, field=int(2,8) whole numbers from 2 to 8.'
)


class Range(NamedTuple):
  """A range to draw from.

  Attributes:
    kind: 'log', 'uniform' or 'int'.
    low: Least value.
    high: Largest value.
  """

  kind: str
  low: float
  high: float

  def draw(self, rng: np.random.Generator) -> str:
    """One value, as it is written in a flag."""
    if self.kind == 'int':
      return str(rng.integers(int(self.low), int(self.high) + 1))
    if self.kind == 'uniform':
      return f'{rng.uniform(self.low, self.high):.6g}'
    logs = rng.uniform(math.log(self.low), math.log(self.high))
    return f'{math.exp(logs):.6g}'

  @property
  def ends(self) -> tuple[str, str]:
    """Both ends, as they are written in a flag."""
    form = '{:.0f}' if self.kind == 'int' else '{:.6g}'
    return form.format(self.low), form.format(self.high)


# Field of the config -> values as they are written in a flag, or a range.
Space = dict[str, tuple[str, ...] | Range]

# Field of the config -> its value in one trial.
Fields = dict[str, str]

_RANGE = re.compile(r'(log|uniform|int)\(([^,()]+),([^,()]+)\)')


def parse(text: str) -> Space:
  """Reads --space.

  Raises:
    InputError: If it is not written as `SYNTAX` says.

  >>> parse('a.b=1,2; c=log(1e-3,1)')
  {'a.b': ('1', '2'), 'c': Range(kind='log', low=0.001, high=1.0)}
  """
  space = {}
  for part in filter(None, (x.strip() for x in _split(text, ';'))):
    name, equals, values = (x.strip() for x in part.partition('='))
    if not equals or not name or not values:
      raise types.InputError(f'--space: {part!r} is not field=values. {SYNTAX}')
    name = name.removeprefix('config.')
    if name in space:
      raise types.InputError(f'--space: {name} is given twice.')
    space[name] = _values(name, values)
  if not space:
    raise types.InputError(f'--space names no field. {SYNTAX}')
  return space


def _values(name, text):
  found = _RANGE.fullmatch(text)
  if found is None:
    if re.match(r'[a-z]+\(', text):
      raise types.InputError(f'--space: {name}={text} is no range. {SYNTAX}')
    return tuple(x.strip() for x in _split(text, ','))
  kind = found[1]
  try:
    low, high = float(found[2]), float(found[3])
  except ValueError:
    raise types.InputError(
      f'--space: {name}={text}: the ends of a range are numbers.'
    ) from None
  whole = kind != 'int' or (low.is_integer() and high.is_integer())
  # Whole numbers of configs are below 2^31.
  most = 2**31 if kind == 'int' else math.inf
  ordered = -most < low < high < most
  if not ordered or (kind == 'log' and low <= 0) or not whole:
    raise types.InputError(
      f'--space: {name}={text}: need finite low < high, above 0 for log '
      'and whole for int.'
    )
  return Range(kind, low, high)


def _split(text, separator):
  """Parts of a text; what stands in brackets stays together."""
  parts, depth, start = [], 0, 0
  for i, character in enumerate(text):
    depth += (character in '([{') - (character in ')]}')
    if character == separator and depth == 0:
      parts.append(text[start:i])
      start = i + 1
  return [*parts, text[start:]]


def grid(space: Space) -> list[Fields]:
  """Every combination of a space of lists; ranges count with their ends."""
  lists = [x.ends if isinstance(x, Range) else x for x in space.values()]
  return [
    dict(zip(space, values, strict=True))
    for values in itertools.product(*lists)
  ]


def draw(space: Space, rng: np.random.Generator) -> Fields:
  """One candidate at random."""
  return {
    name: values.draw(rng)
    if isinstance(values, Range)
    else values[rng.integers(len(values))]
    for name, values in space.items()
  }


def has_ranges(space: Space) -> bool:
  """Whether some field is a range, so that there is no grid."""
  return any(isinstance(x, Range) for x in space.values())


def check(
  space: Space, config: ml_collections.ConfigDict, more: Sequence[str] = ()
) -> None:
  """Refuses fields that the config has not, and values that do not fit.

  Args:
    space: The space.
    config: The config, with the overrides of all trials.
    more: Fields that the command line sets, so that no trial may.

  Raises:
    InputError: At the first that is wrong.
  """
  for name, values in space.items():
    if name in more:
      raise types.InputError(
        f'--config.{name} is also a field of --space: set it in one place.'
      )
    ends = values.ends if isinstance(values, Range) else values
    for value in ends:
      problem = recipes.field_problem(config, name.split('.'), value)
      if problem:
        raise types.InputError(f'--space: {name}={value}: {problem}')
    node = config
    for part in name.split('.'):
      node = node[part]
    if isinstance(node, ml_collections.ConfigDict):
      raise types.InputError(
        f'--space: {name} is a group; its fields are {", ".join(node)}.'
      )
    if not isinstance(values, Range) or type(node) is float:
      continue
    if type(node) is not int:
      raise types.InputError(
        f'--space: {name} is a {type(node).__name__}, and a range gives '
        'numbers: list its values.'
      )
    if values.kind != 'int':
      raise types.InputError(
        f'--space: {name} is a whole number, and {values.kind}(...) gives '
        f'fractions: write {name}=int({values.low:g},{values.high:g}).'
      )
