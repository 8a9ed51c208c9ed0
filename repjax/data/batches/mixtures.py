"""Host side: batches that mix the rows of several tasks."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from repjax import types
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import source as sources


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MixtureBatches(in_order.TrainBatches):
  """Endless batches of all tasks, see `mixture`."""

  rates: np.ndarray
  sizes: np.ndarray

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0."""
    draws = self._draws(step, more=2)
    rows = drawn_rows(draws[:, :2], rates=self.rates, sizes=self.sizes)
    mask = np.ones(self.batch_size, np.float32)
    return self._read(rows, mask, draws[:, 2:])


def drawn_rows(
  draws: np.ndarray, *, rates: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
  """Rows of sources that stand one behind the other, [n].

  Args:
    draws: Uniform numbers in [0, 1), [n, 2]: they choose a source, then a row
      of it.
    rates: Probability of each source, relative to the others, [T].
    sizes: Rows of each source, [T].
  """
  ends = np.cumsum(rates)
  task = np.searchsorted(ends, draws[:, 0] * ends[-1], side='right')
  task = np.minimum(task, len(sizes) - 1)
  first = np.cumsum(sizes) - sizes
  return first[task] + transforms.randint(draws[:, 1], sizes[task])


def mixture(
  parts: Sequence[sources.Source],
  *,
  batch_size: int,
  seed: int,
  temperature: float = 1.0,
  **reading: Any,
) -> MixtureBatches:
  """Batches that mix tasks, task i with probability n_i^(1/temperature).

  Each row draws its task, then a row of it with replacement; both are functions
  of (seed, step), so a resumed run goes on with the same batches. Temperature 1
  is proportional to the numbers of rows, and the higher it is, the more equal
  are the tasks (multilingual translation uses 5).

  Args:
    parts: Training rows of each task, images of one shape.
    batch_size: Rows of a global batch.
    seed: >= 0. Decides rows and all draws, together with the step.
    temperature: > 0; the higher, the more equal are the tasks.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Returns:
    Batches like those of `in_order.train_batches`, with 'task' [B].

  Raises:
    InputError: If an argument is out of range or the parts cannot be joined.
  """
  if not temperature > 0:
    raise types.InputError(
      f'config.data.temperature must be > 0, got {temperature}.'
    )
  plain = in_order.train_batches(
    of_tasks(parts), batch_size=batch_size, seed=seed, **reading
  )
  sizes = np.array([len(x) for x in parts])
  # Relative to the largest, so that no power overflows.
  rates = (sizes / sizes.max()) ** (1 / temperature)
  return plain.extended(MixtureBatches, rates=rates / rates.sum(), sizes=sizes)


def of_tasks(parts: Iterable[sources.Source]) -> sources.Source:
  """The rows of tasks 0, 1, ... in one source, with 'task', their number."""
  return union(
    [
      x.with_columns(task=np.full(len(x), task, np.int32))
      for task, x in enumerate(parts)
    ]
  )


def union(parts: Sequence[sources.Source]) -> sources.Source:
  """All rows of several sources, one source after the other.

  Keeps the columns that all of them have.

  Raises:
    InputError: If their images or columns differ in shape, or what is a whole
      number in one is a fraction or a text in another.
  """
  if len({x.image_shape for x in parts}) != 1:
    raise types.InputError(
      'Only sources with images of one shape can be joined, got '
      f'{[x.image_shape for x in parts]}: resize them '
      '(repjax.data.sets.tasks.resized).'
    )
  return dataclasses.replace(
    parts[0],
    name='+'.join(dict.fromkeys(x.name for x in parts)),
    num_rows=sum(len(x) for x in parts),
    num_classes=max((x.num_classes or 0) for x in parts) or None,
    class_names=None,
    reader=_Union(tuple(parts), _no_rows(parts)),
    encoded={},
  )


def _no_rows(parts):
  """Each column of all parts without a row: its shape, and the widest type."""
  first = np.zeros(1, np.int64)
  firsts = [
    x.read(first) | dict.fromkeys(_sizes_differ(x), np.empty(1, object))
    for x in parts
    if len(x)
  ]
  found = {}
  for name in sorted(set.intersection(*map(set, firsts))):
    columns = [x[name] for x in firsts]
    kinds = {'i' if x.dtype.kind in 'iu' else x.dtype.kind for x in columns}
    shapes = {x.shape[1:] for x in columns}
    if len(kinds) > 1 or len(shapes) > 1:
      raise types.InputError(
        f'Sources are joined whose column {name!r} is alike; here it is '
        f'{" and ".join(f"{x.dtype} {x.shape[1:]}" for x in columns)} a row: '
        'make them one, or leave it out of one source.'
      )
    found[name] = np.empty((0, *shapes.pop()), np.result_type(*columns))
  return found


def _sizes_differ(part):
  """Columns of images that a batch has as arrays of sizes of their own."""
  return [name for name, shape in part.encoded.items() if None in shape]


@dataclasses.dataclass(frozen=True)
class _Union:
  parts: tuple[sources.Source, ...]
  no_rows: sources.Columns

  def __call__(self, indices):
    ends = np.cumsum([len(x) for x in self.parts])
    which = np.searchsorted(ends, indices, side='right')
    places, found = [], [self.no_rows]
    for part in np.unique(which):
      at = np.flatnonzero(which == part)
      first = ends[part] - len(self.parts[part])
      places.append(at)
      found.append(self.parts[part].read(indices[at] - first))
    order = np.argsort(np.concatenate(places)) if places else slice(0)
    return {
      name: np.concatenate([x[name] for x in found])[order]
      for name in self.no_rows
    }
