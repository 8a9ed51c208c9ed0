"""What benchmarks share: a compiled step, and fair timing of two sides."""

from collections.abc import Callable
import time
from typing import Any
from typing import TypeVar

import numpy as np

_T = TypeVar('_T')


class Bare:
  """A method's update, compiled by plain jit, on one batch on the device."""

  def __init__(self, method, batch):
    import jax

    from repjax import loop

    self._state = loop.init(method, batch, 0, jax.local_devices()[:1])
    self._batch = jax.device_put(dict(batch))
    self._rng = jax.random.key(0)

    def step(state, batch, rng):
      return method.update(state, batch, jax.random.fold_in(rng, state.step))

    start = time.perf_counter()
    self._step = (
      jax.jit(step, donate_argnums=0)
      .lower(self._state, self._batch, self._rng)
      .compile()
    )
    self.seconds_to_compile = time.perf_counter() - start
    self.text = self._step.as_text()
    self.flops = self._step.cost_analysis()['flops']
    self.temporary_bytes = self._step.memory_analysis().temp_size_in_bytes

  def run(self, steps: int) -> float:
    """Seconds for some steps."""
    import jax

    start = time.perf_counter()
    for _ in range(steps):
      self._state, sums = self._step(self._state, self._batch, self._rng)
    jax.block_until_ready((self._state, sums))
    return time.perf_counter() - start


def alternate(
  rounds: int, one: Callable[[], float], other: Callable[[], float]
) -> float:
  """Median over rounds of the seconds of `one` over those of `other`."""
  one()
  other()
  return float(np.median([one() / other() for _ in range(rounds)]))


def compiling(make: Callable[[], _T]) -> tuple[_T, float]:
  """What a call returned, and its seconds with no program kept from before."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  settings: Any = jax.config  # Its type does not name the settings.
  before = settings.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # It asks for the setting but once.
  start = time.perf_counter()
  try:
    return make(), time.perf_counter() - start
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
