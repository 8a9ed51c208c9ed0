"""The GPU that benchmarks run on, and the peak that they are a share of."""

from collections.abc import Mapping
import functools
import time
from typing import NamedTuple

from absl import logging

_HOPPER = 'https://www.nvidia.com/en-us/data-center/h100/'
_H200 = 'https://www.nvidia.com/en-us/data-center/h200/'
_AMPERE = 'https://www.nvidia.com/en-us/data-center/a100/'
_L4 = 'https://www.nvidia.com/en-us/data-center/l4/'
_VOLTA = 'https://www.nvidia.com/en-us/data-center/v100/'
_ADA = (
  'https://images.nvidia.com/aem-dam/Solutions/geforce/ada/'
  'nvidia-ada-gpu-architecture.pdf'
)

# TFLOP/s in bfloat16, sums in float32, without sparsity: where a maker prints
# the figure with sparsity alone, half of it. Names are whole, as JAX has them:
# a slice of a card, or one of less power, is another card. Those without
# bfloat16 have the figure of float16.
_DOCUMENTED: Mapping[str, tuple[float, str]] = {
  'NVIDIA H200': (989.0, _H200),
  'NVIDIA H100 80GB HBM3': (989.0, _HOPPER),
  'NVIDIA A100-SXM4-40GB': (312.0, _AMPERE),
  'NVIDIA A100-SXM4-80GB': (312.0, _AMPERE),
  'NVIDIA A100-PCIE-40GB': (312.0, _AMPERE),
  'NVIDIA A100 80GB PCIe': (312.0, _AMPERE),
  'NVIDIA L4': (121.0, _L4),
  'NVIDIA GeForce RTX 4090': (165.2, _ADA),
  'Tesla V100-SXM2-16GB': (125.0, f'float16, {_VOLTA}'),
  'Tesla V100-SXM2-32GB': (125.0, f'float16, {_VOLTA}'),
}


class Card(NamedTuple):
  """A device and its peak.

  Attributes:
    name: As JAX has it.
    peak: Of products in bfloat16, TFLOP/s.
    origin: 'documented: ...' with the source, or 'measured: ...' with what was
      measured.
  """

  name: str
  peak: float
  origin: str

  def share(self, tflops: float) -> float:
    """Of the peak."""
    return tflops / self.peak


def named(name: str, size: int) -> Card:
  """The card of this name; one that no table knows is measured.

  Args:
    name: Of the device that JAX computes on.
    size: Rows and columns of the product that an unknown card is measured by.

  Returns:
    The card, with where its peak is from.
  """
  if name in _DOCUMENTED:
    peak, source = _DOCUMENTED[name]
    return Card(name, peak, f'documented: {source}')
  peak = product(size)
  logging.warning(
    '%s: its peak is in no table; %.4g TFLOP/s was measured', name, peak
  )
  return Card(name, peak, f'measured: a product of {size} x {size}')


def this(size: int = 8192) -> Card:
  """The card that JAX computes on; measured once a process where unknown."""
  import jax

  return _this(jax.local_devices()[0].device_kind, size)


_this = functools.cache(named)


@functools.cache
def product(size: int, repeats: int = 20) -> float:
  """TFLOP/s of bfloat16 products of two square matrices, the best of three."""
  import jax
  import jax.numpy as jnp

  x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  multiply = jax.jit(jnp.dot).lower(x, x).compile()
  best = float('inf')
  for _ in range(3):
    start = time.perf_counter()
    for _ in range(repeats):
      result = multiply(x, x)
    jax.block_until_ready(result)
    best = min(best, (time.perf_counter() - start) / repeats)
  return 2 * size**3 / best / 1e12
