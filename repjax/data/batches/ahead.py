"""Host side: batches that threads or processes of grain read ahead.

A file of its own, since grain takes a second to load and batches that are read
quickly do without it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import multiprocessing
import os
import threading
from typing import Any

from absl import flags
from absl import logging
import grain


def read(
  fn: Callable[[int], Any],
  start: int,
  stop: int,
  *,
  num_workers: int,
  num_threads: int,
  prefetch: int,
) -> Iterator[Any]:
  """fn(start), ..., fn(stop - 1), in order; errors keep their type.

  Args:
    fn: Step -> batch.
    start: First step.
    stop: The step after the last one.
    num_workers: Processes that read; 0 reads with threads. Needs parsed absl
      flags, without which threads read.
    num_threads: Threads that read where there are no workers, 0 for none.
    prefetch: Batches to read ahead, of each worker.

  Returns:
    An iterator with `close()`, which ends its threads and processes.
  """
  threads = grain.ReadOptions(
    num_threads=num_threads,
    prefetch_buffer_size=max(prefetch, num_threads),
  )
  steps = grain.MapDataset.range(start, stop).map(fn)
  if not num_workers:
    return iter(steps.to_iter_dataset(threads))
  if not flags.FLAGS.is_parsed():
    logging.warning(
      'num_workers=%d needs absl flags to be parsed (absl.app.run), as in no '
      'notebook; reading with %d thread(s) instead gives the same batches.',
      num_workers,
      max(num_threads, 1),
    )
    return iter(steps.to_iter_dataset(threads))
  one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  workers = grain.MultiprocessingOptions(
    num_workers=num_workers, per_worker_buffer_size=max(prefetch, 1)
  )
  steps = steps.map(_in_worker)
  return iter(steps.to_iter_dataset(one).mp_prefetch(workers))


def _in_worker(batch):
  _end_with_parent()
  return batch


@functools.cache
def _end_with_parent():
  """A worker whose parent is killed would wait for it for ever."""
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(1)

  if parent is not None:
    threading.Thread(target=wait, daemon=True).start()
