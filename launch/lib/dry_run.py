"""What a training run would be: parameters, flops, memory, steps, time.

One step is compiled as it will be trained and made a few times on the first
rows, from parameters that are drawn: published weights are not read. Nothing
is written.
"""

from collections.abc import Iterator
import contextlib
import itertools
import time
from typing import Any

import jax
import numpy as np

from launch.lib import step_memory
from repjax import loop
from repjax import parallel
from repjax import run
from repjax import trees
from repjax import types

# Steps that are timed, and the seconds after which no more are made.
_STEPS, _SECONDS = 20, 5.0


def describe(
  experiment: types.Experiment, config: Any, helps: step_memory.Helps
) -> Iterator[str]:
  """Lines about an experiment, each as soon as it is known."""
  experiment = experiment.guard.begin(experiment, None, run.identity(config))
  batch = experiment.train.batch(0)
  state = experiment.guard.keyed(
    loop.init(experiment.method, batch, config.seed)
  )
  experiment.guard.check(experiment, state, config.run.best)
  yield from _parameters(state)
  yield from _columns(batch)
  yield f'evaluated: {", ".join(experiment.eval_splits) or "by acting"}'
  rng = jax.random.fold_in(jax.random.key(config.seed), loop.TRAIN)
  started = time.monotonic()
  mapped: Any = parallel.train_step(experiment.method.update)
  step = mapped.lower(state, parallel.shard(batch), rng).compile()
  yield f'a step: compiled in {time.monotonic() - started:.1f} s'
  yield from _costs(step)
  advice = step_memory.advice(step_memory.of(step), config, helps)
  if advice:
    yield f'  {advice}'
  seconds = _seconds_of_a_step(mapped, state, experiment, rng)
  yield (
    f'{experiment.steps:,} steps of {experiment.train.expected_rows:,.0f} rows '
    f'at {1000 * seconds:,.3g} ms: {_duration(seconds * experiment.steps)}, '
    'without compiling and evaluating'
  )


def _parameters(state) -> Iterator[str]:
  by_module: dict[str, int] = {}
  for path, x in trees.flatten(state.params).items():
    by_module[path[0]] = by_module.get(path[0], 0) + x.size
  yield f'parameters: {trees.size(state.params):,}'
  width = max(map(len, by_module), default=0)
  for name, size in by_module.items():
    yield f'  {name:{width}}  {size:>13,}'
  frozen = trees.size(dict(state.model_state).get(types.FROZEN, {}))
  if frozen:
    yield f'  and {frozen:,} that nothing trains'
  yield f'state of the optimizer: {_bytes(state.opt_state)}'


def _columns(batch) -> Iterator[str]:
  shown = (
    f'{name} {np.asarray(x).dtype}{list(np.shape(x))}'
    for name, x in batch.items()
  )
  yield f'a batch: {", ".join(shown)}'


def _costs(step) -> Iterator[str]:
  flops = (step.cost_analysis() or {}).get('flops', float('nan'))
  if flops > 0:  # Some backends do not count.
    yield f'  {flops / 1e9:,.3g} GFLOP a device, as XLA counts'
  memory = step_memory.of(step)
  if memory is not None:
    yield f'  {step_memory.needs(memory, step_memory.room())}'


def _seconds_of_a_step(step, state, experiment, rng) -> float:
  """Mean over a few, rows included; the first is not counted."""
  stream = experiment.train.iterate(0)
  with contextlib.closing(stream):
    started = time.monotonic()
    made = -1
    for batch in itertools.islice(stream, _STEPS + 1):
      state, sums = step(state, parallel.shard(batch), rng)
      jax.block_until_ready(sums)
      made += 1
      if not made:
        started = time.monotonic()
      elif time.monotonic() - started > _SECONDS:
        break
    return (time.monotonic() - started) / max(made, 1)


def _bytes(tree) -> str:
  return step_memory.readable(sum(x.nbytes for x in jax.tree.leaves(tree)))


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} min' if minutes < 120 else f'{minutes / 60:.1f} h'
