"""Many poisoned runs side by side against one after the other."""

import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUNS, _STEPS, _COUNT = 16, 30, 20
_SEEDS = 2


def poisoning(rounds: int) -> dict[str, Any]:
  """Time of 16 poisoned CLIPs of the recipe's `small`, 30 steps each.

  One after the other is the same stretch of 30 steps, compiled once, run by
  run; and, as runs of `launch.train` go, a compiled step at a time. What is
  around the steps, which runs side by side have once, is in `launches`.
  """
  import jax

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


def launches(rounds: int, preset: str = 'small') -> dict[str, Any]:
  """As many launches as a study has runs, over the study of all of them.

  Both are whole processes that start, read, compile (with the programs that
  another launch has left), train, and write what was found. The study attacks,
  and defends the models of one arm, too. Launches are equal but for their
  poison: one is timed, in a third of the rounds, and stands for all.
  """
  from configs.studies import contrastive_poisoning as study

  of = study.get_config(preset).study
  runs = _SEEDS * (len(of.backdoors) + len(of.targeted) + 1)
  launched = [
    *('launch.train', f'--config=configs/contrastive_poisoning.py:{preset}'),
    *('--config.poison.kind=backdoor', f'--config.poison.count={of.attacked}'),
  ]
  together = [
    *('launch.reproduce', '--papers=contrastive_poisoning'),
    *(f'--preset={preset}', f'--seeds={_SEEDS}'),
  ]
  found = []
  for _ in range(1 + max(1, rounds // 3)):
    one = _seconds(*launched, folder='workdir')
    every = _seconds(*together, folder='out')
    logging.info('a launch: %.1f s, the study: %.1f s', one, every)
    found.append((one, every))
  # What the first round compiled, the others read.
  one, every = np.median(found[1:], axis=0)
  return {
    'runs': runs,
    'a launch, seconds': one,
    'launches over the study': runs * one / every,
  }


def _seconds(module: str, *arguments: str, folder: str) -> float:
  """Of a launcher that writes to a new folder."""
  with tempfile.TemporaryDirectory(prefix='repjax-') as made:
    command = [sys.executable, '-m', module, *arguments, f'--{folder}={made}/x']
    start = time.perf_counter()
    ended = subprocess.run(
      command,
      cwd=_ROOT,
      check=False,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    if ended.returncode:
      said = ended.stdout.splitlines()[-1:]
      raise RuntimeError(f'{module} ended with {ended.returncode}: {said}')
    return time.perf_counter() - start
