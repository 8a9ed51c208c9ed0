"""Host side: numbers of 64 bits for a while, in a process that has 32."""

from collections.abc import Iterator
import contextlib

import jax
import numpy as np


@contextlib.contextmanager
def enabled() -> Iterator[None]:
  """JAX has numbers of 64 bits inside, whatever it had before, and has again.

  with float64.enabled():
    exact = fn(jnp.asarray(x, jnp.float64))
  """
  # Newer than the oldest JAX that this runs on.
  enable = getattr(jax, 'enable_x64', None)
  if enable is not None:
    with enable(True):
      yield
    return
  before = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
  jax.config.update('jax_enable_x64', True)
  try:
    yield
  finally:
    jax.config.update('jax_enable_x64', before)
