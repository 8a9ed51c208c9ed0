"""Many poisoned runs side by side against one after the other."""

import time
from typing import Any

from launch.lib import timing

_RUNS, _STEPS, _COUNT = 16, 30, 20


def poisoning(rounds: int) -> dict[str, Any]:
  """Time of 16 poisoned CLIPs of the recipe's `small`, 30 steps each.

  One after the other is the same stretch of 30 steps, compiled once, run by
  run; and, as runs of `launch.train` go, a compiled step at a time.
  """
  import jax
  import numpy as np

  from configs.parts import poisoned_runs
  from configs.studies import contrastive_poisoning as study
  from repjax.experiments import of_images
  from repjax.protocols import seed_loop
  from repjax.protocols import side_by_side

  config = study.get_config('small')
  shared = poisoned_runs.setting(config)
  runs = [poisoned_runs.backdoor(shared, x, _COUNT) for x in range(_RUNS)]
  seeds = [x.seed for x in runs]
  columns, order = poisoned_runs.rows_and_order(
    shared.clean,
    of_images.data(config, shared.pairs.clean).recipe.evaluate,
    runs,
    batch_size=config.batch_size,
    steps=_STEPS,
  )
  states = side_by_side.begin(shared.method, {}, seeds, shared=shared.clean)

  def train(part: slice) -> None:
    own = jax.tree.map(lambda x: x[part], (states, columns, order))
    for _ in seed_loop.fit(
      shared.method,
      *own,
      seeds=seeds[part],
      every=_STEPS,
      shared=shared.clean,
    ):
      pass

  def seconds(parts) -> float:
    start = time.perf_counter()
    for part in parts:
      train(part)
    return time.perf_counter() - start

  whole = [slice(None)]
  each = [slice(i, i + 1) for i in range(_RUNS)]
  mask = np.ones(config.batch_size, np.float32)
  batch = {k: x[: config.batch_size] for k, x in shared.clean.items()}
  step = timing.Bare(shared.method, {**batch, 'mask': mask})
  return {
    'one after the other over side by side, compiled stretches': (
      timing.alternate(rounds, lambda: seconds(each), lambda: seconds(whole))
    ),
    'one after the other over side by side, step by step': timing.alternate(
      rounds, lambda: step.run(_RUNS * _STEPS), lambda: seconds(whole)
    ),
  }
