"""Host side: batches of two sets, row beside row."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses

import numpy as np

from repjax import types
from repjax.data.batches import in_order


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BesideBatches:
  """Rows of two sets, each in an order of its own; see `beside`.

  Attributes:
    first: Whose rows keep the names of their columns.
    second: Has as many rows a step.
    columns: Columns of the second that are there -> how they are called.
  """

  first: in_order.TrainBatches
  second: in_order.TrainBatches
  columns: Mapping[str, str]

  @property
  def expected_rows(self) -> float:
    """Rows of a global batch; each holds one of both sets."""
    return self.first.expected_rows

  def fingerprint(self) -> str:
    """Tells pairs of sets apart by their rows."""
    return f'{self.first.fingerprint()}-{self.second.fingerprint()}'

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0."""
    return self._joined(self.first.batch(step), self.second.batch(step))

  def iterate(self, start_step: int = 0) -> Iterator[in_order.Batch]:
    """batch(start_step), batch(start_step + 1), ..., read ahead, endless.

    The iterator has `close()`, which ends its threads and processes.
    """
    streams = [x.iterate(start_step) for x in (self.first, self.second)]
    try:
      for pair in zip(*streams, strict=True):
        yield self._joined(*pair)
    finally:
      for stream in streams:
        if hasattr(stream, 'close'):
          stream.close()

  def _joined(self, first, second):
    return {
      **first,
      **{name: second[column] for column, name in self.columns.items()},
    }


def beside(
  first: in_order.TrainBatches,
  second: in_order.TrainBatches,
  columns: Mapping[str, str],
) -> BesideBatches:
  """Batches whose row i holds the i-th row of a step of both.

  Each set is gone through in epochs of its own, whatever the other's size is.
  Give them different seeds, or sets of one size go in one order.

  Args:
    first: Keeps its columns, with 'mask' and 'index'.
    second: Has as many rows a step.
    columns: Columns of the second -> how they are called here.

  Raises:
    InputError: If the two differ in their rows a step, or a name is taken.
  """
  sizes = first.batch_size, second.batch_size
  if sizes[0] != sizes[1]:
    raise types.InputError(
      f'Rows that stand side by side are as many of both sets; got {sizes}.'
    )
  taken = set(columns.values()) & set(first.batch(0))
  if taken:
    raise types.InputError(
      f'{first.source.name} has columns {sorted(taken)} already: give those of '
      f'{second.source.name} other names.'
    )
  return BesideBatches(first=first, second=second, columns=columns)


def pairs(
  first: Mapping[str, np.ndarray],
  second: Mapping[str, np.ndarray],
  *,
  times: int,
  seed: int,
) -> dict[str, np.ndarray]:
  """Rows of two sets in memory beside each other, in a random order.

  For trainings that go through one set of rows (`protocols.side_by_side`). Who
  stands beside whom is drawn once, which does not matter to losses that are
  sums of what each of the two sets adds.

  Args:
    first: Name -> [N, ...].
    second: Name -> [M, ...], of other names.
    times: How often each row of the larger set is there; one of the smaller set
      is there as often as any other of it, or once more.
    seed: Of the orders.

  Returns:
    All columns, [times * max(N, M), ...].
  """
  types.check_range('[1, inf)', times=times)
  sizes = [len(next(iter(x.values()))) for x in (first, second)]
  total = times * max(sizes)
  found: dict[str, np.ndarray] = {}
  for number, (columns, size) in enumerate(
    zip((first, second), sizes, strict=True)
  ):
    rng = np.random.default_rng([seed, number, size])
    rows = rng.permutation(np.resize(rng.permutation(size), total))
    found |= {name: x[rows] for name, x in columns.items()}
  return found
