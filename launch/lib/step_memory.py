"""How much memory a compiled step needs, and what to do if it is too much."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
from typing import Any
from typing import NamedTuple

from absl import logging
import jax

from configs import presets
from repjax import types

_SMALLER = 'use a smaller model'

# (field, value) -> whether the run takes it and is another; `building.helps`.
Helps = Callable[[str, Any], bool]


class StepMemory(NamedTuple):
  """Bytes that a step needs on each device.

  Attributes:
    given: State and rows.
    results: What is returned, but for what takes the place of what was given.
    temporary: Everything between.
  """

  given: int
  results: int
  temporary: int

  @property
  def total(self) -> int:
    """All of it."""
    return sum(self)

  def __str__(self) -> str:
    return (
      f'{readable(self.given)} of state and rows, {readable(self.results)} of '
      f'results, {readable(self.temporary)} temporary'
    )


def of(step: jax.stages.Compiled) -> StepMemory | None:
  """What XLA says of a compiled step; None where it does not."""
  found: Any = step.memory_analysis()
  if found is None:
    return None
  # What is returned takes the place of what was given, where it is donated.
  results = found.output_size_in_bytes - found.alias_size_in_bytes
  return StepMemory(
    found.argument_size_in_bytes, max(results, 0), found.temp_size_in_bytes
  )


def room() -> int:
  """Bytes that each device of this process has, 0 where that is unknown."""
  devices = jax.local_devices()
  stats = devices[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  if devices[0].platform != 'cpu':
    return 0
  # CPU devices share what the machine has.
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return pages // len(devices)


def needs(memory: StepMemory, limit: int) -> str:
  """A line about a step and a device of `limit` bytes, 0 where unknown."""
  had = f' of {readable(limit)}' if limit else ''
  return f'a step needs {readable(memory.total)}{had} a device: {memory}'


def advice(
  memory: StepMemory | None,
  config: Any,
  helps: Helps,
  limit: int | None = None,
) -> str:
  """What to change where a step does not fit, '' where it does.

  Args:
    memory: Of the step.
    config: Of the run; its fields are named.
    helps: Of the run, too; asked only where a step does not fit.
    limit: Bytes of a device; None asks it.
  """
  limit = room() if limit is None else limit
  if memory is None or not limit or memory.total <= limit:
    return ''
  kept = memory.total - memory.temporary
  said = (
    f'a step needs {readable(memory.total)} and the device has '
    f'{readable(limit)}: '
  )
  if kept >= limit:
    return (
      f'{said}{readable(kept)} of it are state, which every device holds: '
      f'{_SMALLER}, or train a part of it (config.adapter.kind=lora where a '
      'recipe has it)'
    )
  logging.info('a step does not fit: trying what would help')
  # Activations are of the rows that are computed at a time.
  times = -(-memory.temporary // (limit - kept))
  remedies = list(_remedies(config, times, helps))
  return said + '; or '.join(remedies or [_SMALLER])


def _remedies(config: Any, times: int, helps: Helps) -> Iterator[str]:
  """What makes the activations so many times smaller, the mildest first."""
  fields = presets.fields(config)
  for name, value in fields.items():
    if name.endswith('.remat') and not value and helps(name, True):
      yield f'try --config.{name}=true (the same numbers, slower)'
  stage = f'stages.{config.stage}.' if 'stages' in config else ''

  def named(name):  # Where a stage says otherwise, that counts.
    return stage + name if stage + name in fields else name

  rows, parts = named('batch_size'), named('step.microbatches')
  divisor = jax.device_count() * fields.get(parts, 1)
  if parts in fields:
    most, least = fields[rows] // jax.device_count(), fields[parts] * times
    fitting = [x for x in range(least, most + 1) if most % x == 0]
    if fitting and helps(parts, fitting[0]):
      yield f'--config.{parts}={fitting[0]} (the same step in parts)'
  # Rows that all devices and parts have equally many of; halves of halves, as
  # what is kept of rows, a queue, may hold whole batches alone.
  smaller = max(fields[rows] // times // divisor, 1) * divisor
  halved = fields[rows] >> (times - 1).bit_length()
  for fewer in dict.fromkeys((smaller, halved)):
    fits = 0 < fewer < fields[rows] and fewer % divisor == 0
    if fits and helps(rows, fewer):
      yield f'--config.{rows}={fewer}, which trains otherwise'
      break


def say(config: Any, helps: Helps, step: jax.stages.Compiled) -> None:
  """Logs what a compiled step needs, and what to do if it is too much."""
  memory = of(step)
  if memory is None:
    return
  limit = room()
  logging.info('%s', needs(memory, limit))
  found = advice(memory, config, helps, limit)
  if found:
    logging.warning('%s', found)


@contextlib.contextmanager
def explained(config: Any, helps: Helps) -> Iterator[None]:
  """Turns a device that is full into one line that names fields.

  Raises:
    InputError: What runs inside took more memory than there is.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    remedies = list(_remedies(config, 2, helps))
    said = '; or '.join(remedies or [_SMALLER])
    raise types.InputError(f'the device is out of memory: {said}') from error


def readable(size: float) -> str:
  """Bytes as people say them: '1.5 GiB'.

  >>> readable(1.5 * 2**30), readable(2**20)
  ('1.5 GiB', '1.0 MiB')
  """
  if size >= 2**30:
    return f'{size / 2**30:,.1f} GiB'
  return f'{size / 2**20:,.1f} MiB'
