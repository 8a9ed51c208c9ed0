"""Speed and memory of pyramidal attention against exact attention."""

from typing import Any

from absl import logging
import numpy as np

from launch.benchmarks import attention_speed

_HEADS, _DIM = 4, 32
_LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
_LONGEST_EXACT = 4096  # Its gradient takes a gigabyte there.


def pyramid(rounds: int) -> dict[str, Any]:
  """Time and memory against length, one sequence, 4 heads of 32.

  A = 3, C = 4, S = 4. Exact attention is between the steps alone, pyramidal
  attention has the nodes of coarser levels, too. Exponents are slopes of log
  time and log memory against log length.
  """
  return {
    'forward and backward' if backward else 'forward': _against_length(
      rounds, backward
    )
    for backward in (False, True)
  }


def _against_length(rounds, backward):
  import jax

  from repjax.layers import pyramid as pyramids
  from repjax.layers import pyramid_graph
  from repjax.layers.attention import softmax

  seconds: dict[str, dict[int, float]] = {'pyramid': {}, 'exact': {}}
  memory: dict[str, dict[int, int]] = {'pyramid': {}, 'exact': {}}
  for length in _LENGTHS:
    graph = pyramid_graph.Pyramid(length=length)
    forms: dict[str, Any] = {
      'pyramid': (pyramids.Pyramidal(pyramid=graph), graph.num_nodes)
    }
    if length <= _LONGEST_EXACT:
      forms['exact'] = (softmax.Softmax(), length)
    calls = {}
    for name, (form, nodes) in forms.items():
      calls[name], memory[name][length] = attention_speed.compile_attention(
        form, nodes, backward, heads=_HEADS, dim=_DIM
      )
      calls[name]()
      seconds[name][length] = float('inf')
    slowest = max(call() for call in calls.values())
    # In turn, and the best of all rounds: what disturbs only adds.
    for _ in range(rounds * int(np.clip(0.2 / slowest, 1, 10))):
      for name, call in calls.items():
        seconds[name][length] = min(seconds[name][length], call())
    logging.info(
      '  %6d: %s',
      length,
      ', '.join(
        f'{n} {s[length] * 1e3:.2f} ms'
        for n, s in seconds.items()
        if length in s
      ),
    )
    jax.clear_caches()
  ratios = {
    length: x / seconds['pyramid'][length]
    for length, x in seconds['exact'].items()
  }
  return {
    'exponents of time': {
      name: attention_speed.slope(x) for name, x in seconds.items()
    },
    'exponents of temporary memory': {
      name: attention_speed.slope(x) for name, x in memory.items()
    },
    'exact over pyramid': ratios,
    'exact over pyramid, temporary memory': {
      length: x / memory['pyramid'][length]
      for length, x in memory['exact'].items()
    },
    'crossover': attention_speed.crossover(ratios),
  }
