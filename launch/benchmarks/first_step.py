"""Time from a launch to its first step, and of compiling large ViTs."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import logging
import numpy as np

from launch.benchmarks import vit_throughput
from launch.lib import recipes
from launch.lib import timing

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_B = vit_throughput.Sizes()
LARGE = {
  'ViT-B/16': _B,
  'ViT-L/16': _B._replace(width=1024, mlp=4096, heads=16, layers=24),
}


def first_step(rounds: int, preset: str = 'small') -> dict[str, Any]:
  """Seconds of `launch.train` to its first step, over those of a bare one.

  The bare one imports JAX, flax and optax, and makes one step of AdamW with the
  ViT of the recipe on random images, in a process of its own. Neither reads
  programs that were compiled before. The ViT is launched without SAM, whose
  second gradient the bare step lacks, and as it is.
  """
  module = recipes.load_config_module(recipes.own_recipe('configs/vit.py'))
  config = module.get_config(preset)
  shape = module.build(config).train.batch(0)['image'].shape
  settings = {
    'image': shape,
    'classes': 10,
    'patch': [side // config.patch_grid for side in shape[1:3]],
    'model': config.model.to_dict(),
  }
  bare = ['-m', 'launch.benchmarks.peers.bare_vit', json.dumps(settings)]
  launched = [
    *('-m', 'launch.train', f'--config=configs/vit.py:{preset}'),
    '--nocompilation_cache',
  ]
  seconds: dict[str, list[float]] = {'bare': [], 'launched': [], 'as it is': []}
  for _ in range(max(1, rounds // 2)):
    seconds['bare'].append(_until(r'made the first step: its loss is \d', bare))
    for name, flags in (
      ('launched', ['--config.sam.rho=0.0']),
      ('as it is', []),
    ):
      with tempfile.TemporaryDirectory(prefix='repjax-') as workdir:
        seconds[name].append(
          _until(
            r'made the first step in \d',
            [*launched, *flags, f'--workdir={workdir}'],
          )
        )
  logging.info('%s', seconds)
  of = {name: np.asarray(x) for name, x in seconds.items()}
  return {
    'seconds, bare': float(np.median(of['bare'])),
    'seconds, without SAM': float(np.median(of['launched'])),
    'without SAM over bare': float(np.median(of['launched'] / of['bare'])),
    'as it is over bare': float(np.median(of['as it is'] / of['bare'])),
  }


def _until(pattern: str, arguments: list[str]) -> float:
  """Seconds until a program says something; it is stopped then."""
  start = time.perf_counter()
  with subprocess.Popen(
    [sys.executable, *arguments],
    cwd=_ROOT,
    env={**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
      said.append(line)
      if re.search(pattern, line):
        seconds = time.perf_counter() - start
        process.kill()
        return seconds
  raise RuntimeError(f'{arguments[1]} ended before its first step: {said[-1:]}')


def compile_large(
  rounds: int, sizes: dict[str, vit_throughput.Sizes] | None = None
) -> dict[str, Any]:
  """Seconds to build and compile a step of ViT-B/16 and L/16, bfloat16.

  Blocks one after another, and as one loop (`scan_layers`).

  The method's first state counts, too; nothing is read of what was compiled
  before. Once, whatever the rounds.
  """
  del rounds
  result = {}
  for name, of_one in (sizes or LARGE).items():
    for scan_layers in (False, True):
      form = f'{name}, blocks as one loop' if scan_layers else name
      made = vit_throughput.training(of_one, scan_layers=scan_layers)
      _, seconds = timing.compiling(functools.partial(timing.Bare, *made))
      logging.info('%s: %.1f s', form, seconds)
      result[f'{form}, seconds'] = seconds
  return result
