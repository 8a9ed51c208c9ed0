"""Host side: metadata of rows, and the groups that they make.

The semantics are those of PyPI's `wilds` 2.0.0 (`common/grouper.py`), without
PyTorch: group ids count the chosen fields with the first one of the metadata
fastest, and empty groups keep their ids. Two things differ: fields may be named
in any order (there, names of groups are wrong unless fields come as in the
metadata), and what cannot be grouped is refused by name.

https://github.com/p-lambda/wilds
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repjax import types

# Whether a row is of a split that the training data come from; the last field
# of all metadata.
SOURCE = 'from_source_domain'


class Metadata(NamedTuple):
  """What is known of rows besides inputs.

  Attributes:
    values: [N, F]; integers, or floats where a field is a real number.
    fields: F names.
    names: Field -> what its values 0, 1, ... are called; not of all fields.
  """

  values: np.ndarray
  fields: tuple[str, ...]
  names: Mapping[str, Sequence]

  def column(self, field: str) -> np.ndarray:
    """The values of one field, [N]."""
    if field not in self.fields:
      raise types.InputError(
        f'There is no metadata field {field!r}; the fields are '
        f'{", ".join(self.fields)}.'
      )
    return self.values[:, self.fields.index(field)]


class Grouper:
  """Numbers the combinations of some metadata fields.

  >>> metadata = Metadata(np.array([[0, 1], [1, 2]]), ('country', 'time'), {})
  >>> grouper = Grouper(metadata, ('country', 'time'))
  >>> grouper.num_groups, grouper(metadata.values).tolist()
  (6, [2, 5])
  >>> grouper.name(5), grouper.key(5)
  ('time = 2, country = 1', 'time:2_country:1')
  """

  def __init__(
    self,
    metadata: Metadata | Sequence[Metadata],
    fields: Sequence[str] | None,
  ):
    """Of whole data sets, so that all their subsets have the same groups.

    Args:
      metadata: Of a data set, or of several with the same fields (a labelled
        one and its unlabelled rows).
      fields: Names of the fields that make groups; None makes one group of all
        rows.

    Raises:
      InputError: A field is unknown, named twice, negative or no integer, or
        the sets do not fit each other.
    """
    tables = [metadata] if isinstance(metadata, Metadata) else list(metadata)
    if not tables:
      raise types.InputError('Groups are made of at least one data set.')
    first = tables[0]
    for other in tables[1:]:
      if other.fields != first.fields:
        raise types.InputError(
          'Only data sets with the same metadata fields can be grouped '
          f'together; got {first.fields} and {other.fields}.'
        )
    self._known = first.fields
    self._names = _joined_names(tables)
    self._at: list[int] = []
    self.fields: tuple[str, ...] = ()
    self.sizes: tuple[int, ...] = ()
    if fields is not None:
      if (
        isinstance(fields, str) or not fields or len(set(fields)) < len(fields)
      ):
        raise types.InputError(
          f'fields are different names, at least one; got {fields!r}.'
        )
      for field in fields:
        first.column(field)  # Refuses an unknown one.
      self._at = [i for i, x in enumerate(first.fields) if x in fields]
      self.fields = tuple(first.fields[i] for i in self._at)
      # A field's size is its largest value + 1, over all rows of all sets.
      self.sizes = tuple(
        1 + max(_largest(table.column(x), x) for table in tables)
        for x in self.fields
      )
    self.num_groups = int(np.prod(self.sizes, dtype=np.int64))
    self._factors = np.cumprod([1, *self.sizes[:-1]], dtype=np.int64)

  def __call__(self, values: np.ndarray) -> np.ndarray:
    """The group of each row, int64 [N].

    Args:
      values: Metadata of all fields, [N, F].

    Raises:
      InputError: The metadata have other fields, or a value lies beyond those
        of the data sets.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != len(self._known):
      raise types.InputError(
        f'Metadata have {len(self._known)} fields ({", ".join(self._known)}), '
        f'[N, {len(self._known)}]; got shape {values.shape}.'
      )
    if not self.fields:
      return np.zeros(len(values), np.int64)
    chosen = values[:, self._at].astype(np.int64)
    outside = (chosen < 0) | (chosen >= self.sizes)
    if outside.any():
      row, column = np.argwhere(outside)[0]
      raise types.InputError(
        f'{self.fields[column]}={chosen[row, column]} in row {row} is none of '
        f'the {self.sizes[column]} values of the data sets that were grouped: '
        'make the Grouper of all of them.'
      )
    return chosen @ self._factors

  def counts(self, values: np.ndarray) -> np.ndarray:
    """Rows of each group, int64 [num_groups]."""
    return np.bincount(self(values), minlength=self.num_groups)

  def name(self, group: int) -> str:
    """What a group is called, 'y = 1, hospital = 0'; the last field first."""
    if not self.fields:
      return 'all'
    named = []
    for field, size, factor in zip(
      self.fields, self.sizes, self._factors, strict=True
    ):
      value = int(group) // int(factor) % size
      named.append(f'{field} = {self._names.get(field, range(size))[value]}')
    return ', '.join(reversed(named))

  def key(self, group: int) -> str:
    """The same as a part of a key of results, 'y:1_hospital:0'."""
    named = self.name(group).replace('=', ':').replace(',', '_')
    return named.replace(' ', '')


def _joined_names(tables):
  """Field -> the longest list of names; the others must be its beginnings."""
  names: dict[str, list] = {}
  for table in tables:
    for field, own in table.names.items():
      known = names.setdefault(field, list(own))
      both = min(len(known), len(own))
      if list(own[:both]) != known[:both]:
        raise types.InputError(
          f'The data sets call the values of {field!r} by different names: '
          f'{known[:3]} ... and {list(own[:3])} ...'
        )
      if len(own) > both:
        names[field] = list(own)
  return names


def _largest(values, field):
  if not len(values):
    return 0
  whole = values.astype(np.int64)
  if (whole != values).any() or whole.min() < 0:
    raise types.InputError(
      f'Only whole numbers from 0 on make groups; {field!r} has '
      f'{values[(whole != values) | (whole < 0)][0]}.'
    )
  return int(whole.max())
