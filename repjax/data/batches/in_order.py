"""Host side: batches of a source, by step, for each process of a job.

Which rows a batch holds, their order and all their random numbers are a
function of the seed and the step. There is no state of a loader to save: a
resumed run goes on with `iterate(step)`. With more processes each gets a
contiguous part of the same global batch.
"""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import math
import sys
import time
from typing import Any
from typing import TypeVar

import numpy as np

from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import decode as decoding
from repjax.data.reading import source as sources

Batch = dict[str, np.ndarray]

_ORDER, _DRAWS = 0, 1  # Which random numbers a generator is for.

# Rows of a fingerprint at the most: arrays, and images that must be decoded.
_COMPARED, _DECODED = 4096, 64

# Seconds below which a batch is read when it is asked for: to get it from a
# thread costs 0.1 ms, and the devices have work for the meantime. The quickest
# of the first few tells.
_QUICK, _TRIED = 2e-4, 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Batches:
  """What training and evaluation batches share."""

  source: sources.Source
  batch_size: int
  transform: transforms.Transform
  decode: decoding.Decode | None
  num_workers: int
  num_threads: int
  prefetch: int
  process_index: int
  process_count: int

  def fingerprint(self) -> str:
    """Tells sets apart by all their rows; of encoded images by some of them.

    Those are evenly spaced, and as many as cost nothing beside a step.
    """
    total = len(self.source)
    count = min(total, _DECODED) if self.source.encoded else total
    rows = np.linspace(0, total - 1, count).astype(np.int64)
    found = hashlib.sha256(f'{total}'.encode())
    for start in range(0, count, _COMPARED):
      part = self.source.read(rows[start : start + _COMPARED])
      for name, values in sorted(part.items()):
        found.update(f'{name} {values.dtype} {values.shape}'.encode())
        for x in values if values.dtype == object else [values]:
          found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()

  def _read(self, rows, mask, draws) -> Batch:
    """This process's part of the global batch of these rows."""
    size = self.batch_size // self.process_count
    part = slice(self.process_index * size, (self.process_index + 1) * size)
    rows, mask, draws = rows[part], mask[part], draws[part]
    split = 0 if self.decode is None else self.decode.num_draws
    columns = self.source.read(
      rows,
      decode=self.decode,
      draws=None if self.decode is None else draws[:, :split],
    )
    columns = self.transform.apply(columns, draws[:, split:])
    taken = sorted({'mask', 'index'} & set(columns))
    if taken:
      raise types.InputError(
        f'{self.source.name} has columns named {taken}, which batches use '
        'themselves: rename them, in files of your own by '
        '--config.data.name=csv:other=index, or by a transform.'
      )
    numbers = {k: x for k, x in columns.items() if x.dtype != object}
    return {**numbers, 'mask': mask, 'index': rows.astype(np.int32)}

  def _stream(self, fn, start, stop) -> Iterator[Batch]:
    """fn(start), fn(start + 1), ..., read ahead where that saves time."""
    step, seconds = start, math.inf
    direct = not self.num_workers and not self.source.encoded
    while direct and step < stop:
      began = time.perf_counter()
      batch = fn(step)
      seconds = min(seconds, time.perf_counter() - began)
      yield batch
      step += 1
      direct = seconds < _QUICK or step - start < _TRIED
    if step < stop:
      from repjax.data.batches import ahead  # Who reads quickly loads no grain.

      yield from ahead.read(
        fn,
        step,
        stop,
        num_workers=self.num_workers,
        num_threads=self.num_threads,
        prefetch=self.prefetch,
      )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatches(_Batches):
  """Endless shuffled batches, see `train_batches`."""

  seed: int

  @property
  def expected_rows(self) -> float:
    """Rows of a global batch."""
    return self.batch_size

  def batch(self, step: int) -> Batch:
    """The batch of one step, which counts from 0."""
    rows = rows_at(
      step * self.batch_size, self.batch_size, len(self.source), self.seed
    )
    mask = np.ones(self.batch_size, np.float32)
    return self._read(rows, mask, self._draws(step))

  def _draws(self, step: int, more: int = 0) -> np.ndarray:
    """Uniform numbers of a step: `more` of a row, then what reading it needs.

    Drawn for the global batch, so that they do not depend on the processes.
    """
    num_draws = more + self.transform.num_draws
    if self.decode is not None:
      num_draws += self.decode.num_draws
    return draws_at(step, (self.batch_size, num_draws), self.seed)

  def extended(self, kind: type['Kind'], **fields: Any) -> 'Kind':
    """The same reading by a kind of batches that draws rows of its own."""
    own = {x.name: getattr(self, x.name) for x in dataclasses.fields(self)}
    return kind(**own, **fields)

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """batch(start_step), batch(start_step + 1), ..., endless.

    Read ahead, unless that costs more than it saves. The iterator has
    `close()`, which ends its threads and processes.
    """
    return self._stream(self.batch, start_step, sys.maxsize)


Kind = TypeVar('Kind', bound=TrainBatches)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvalBatches(_Batches):
  """Each row once, in order, see `eval_batches`."""

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __iter__(self) -> Iterator[Batch]:
    return self._stream(self.batch, 0, len(self))

  def batch(self, number: int) -> Batch:
    """One batch of `len(self)`."""
    if not 0 <= number < len(self):
      raise IndexError(f'{number=} is not in [0, {len(self)})')
    rows = number * self.batch_size + np.arange(self.batch_size)
    mask = (rows < len(self.source)).astype(np.float32)
    rows = np.where(mask > 0, rows, 0)
    return self._read(rows, mask, np.empty((self.batch_size, 0)))


def train_batches(
  source: sources.Source,
  *,
  batch_size: int,
  seed: int,
  transform: transforms.Transform | None = None,
  decode: decoding.Decode | None = None,
  num_workers: int = 0,
  num_threads: int = 2,
  prefetch: int = 2,
  process_index: int | None = None,
  process_count: int | None = None,
) -> TrainBatches:
  """Shuffled batches without end.

  Every epoch holds each row once, in an order of its own. Batches straddle
  epochs, so nothing is dropped, and a batch may be larger than the set.

  A batch has the source's columns of numbers after the transform, 'mask'
  (float32 ones, [B]) and 'index' (int32 row numbers, [B]), with B =
  batch_size / process_count. Columns of text and of arrays that differ in
  shape reach the transform, but do not leave it.

  Args:
    source: The rows.
    batch_size: Rows of a global batch.
    seed: >= 0. Decides the order and all draws, together with the step.
    transform: What is done to the whole batch, on what the source reads.
    decode: What is done to each image, before `transform`.
    num_workers: Processes that read; 0 reads with threads. For sets whose
      images are decoded when they are read. Needs parsed absl flags and a
      main module that can be imported; without parsed flags (notebooks)
      threads read.
    num_threads: Threads that read where there are no workers, 0 for none.
      Batches that are read within 0.2 ms need none.
    prefetch: Batches to read ahead, of each worker.
    process_index: This process, by default `jax.process_index()`.
    process_count: All processes, by default `jax.process_count()`.

  Raises:
    InputError: If `batch_size` does not divide over the processes, or
      `process_index` is none of them.
  """
  if seed < 0:
    raise types.InputError(f'config.seed must be >= 0, got {seed}.')
  return TrainBatches(
    source=source,
    transform=transform or transforms.compose(),
    decode=decode,
    num_workers=num_workers,
    num_threads=num_threads,
    prefetch=prefetch,
    seed=seed,
    **_share('batch_size', batch_size, process_index, process_count),
  )


def eval_batches(
  source: sources.Source,
  *,
  batch_size: int,
  transform: transforms.Transform | None = None,
  decode: decoding.Decode | None = None,
  num_workers: int = 0,
  num_threads: int = 2,
  prefetch: int = 2,
  process_index: int | None = None,
  process_count: int | None = None,
) -> EvalBatches:
  """Every row once, in order, in batches of one shape.

  The last batch is filled up with row 0 and mask 0. All processes get equally
  many batches. Arguments are those of `train_batches`.

  Raises:
    InputError: If `batch_size` does not divide over the processes, or if
      `transform` or `decode` is random.
  """
  for name, used in (('transform', transform), ('decode', decode)):
    if used is not None and used.num_draws:
      raise types.InputError(
        f'The {name} of evaluation batches must not be random; this one uses '
        f'{used.num_draws} random number(s) a row.'
      )
  return EvalBatches(
    source=source,
    transform=transform or transforms.compose(),
    decode=decode,
    num_workers=num_workers,
    num_threads=num_threads,
    prefetch=prefetch,
    **_share('eval_batch_size', batch_size, process_index, process_count),
  )


def rows_at(start: int, count: int, num_rows: int, seed: int) -> np.ndarray:
  """Rows at positions start, start + 1, ... of the endless shuffled order.

  Not grain's shuffle, because that costs 29 us a row (a batch of 128 would
  take 4 ms), and its seeds s and s + 1 share all epochs but one.

  >>> rows_at(0, 3, 3, seed=0).tolist() != rows_at(3, 3, 3, seed=0).tolist()
  True
  """
  positions = start + np.arange(count)
  epochs = positions // num_rows
  rows = np.empty(count, np.int64)
  for epoch in range(start // num_rows, (start + count - 1) // num_rows + 1):
    inside = epochs == epoch
    order = _epoch_order(seed, epoch, num_rows)
    rows[inside] = order[positions[inside] - epoch * num_rows]
  return rows


def draws_at(step: int, shape: tuple[int, int], seed: int) -> np.ndarray:
  """The uniform numbers in [0, 1) of a step's global batch."""
  if not shape[1]:
    return np.empty(shape)  # Nothing is random: a generator costs 0.1 ms.
  return _generator(seed, _DRAWS, step).random(shape)


# Some: two that a batch straddles, and several sources that are read in turn.
@functools.lru_cache(maxsize=8)
def _epoch_order(seed, epoch, num_rows):
  order = _generator(seed, _ORDER, epoch).permutation(num_rows)
  return order.astype(np.int32 if num_rows < 2**31 else np.int64)


def _generator(seed, purpose, position):
  sequence = np.random.SeedSequence((seed, purpose, position))
  return np.random.Generator(np.random.Philox(sequence))


def _share(name, batch_size, process_index, process_count):
  """Checked fields of `_Batches` that say which part a process gets."""
  if process_index is None or process_count is None:
    import jax  # Workers, which get both, do without it.

    if process_index is None:
      process_index = jax.process_index()
    if process_count is None:
      process_count = jax.process_count()
  if not 0 <= process_index < process_count:
    raise types.InputError(
      f'{process_index=} is none of the {process_count} process(es): give both.'
    )
  if batch_size < 1 or batch_size % process_count:
    below = max(batch_size, 0) // process_count * process_count
    near = [x for x in (below, below + process_count) if x > 0]
    verb = 'are' if len(near) > 1 else 'is'
    raise types.InputError(
      f'config.{name}={batch_size} must be a positive multiple of the '
      f'{process_count} process(es); the nearest {verb} '
      f'{" and ".join(str(x) for x in near)}.'
    )
  return {
    'batch_size': batch_size,
    'process_index': process_index,
    'process_count': process_count,
  }
