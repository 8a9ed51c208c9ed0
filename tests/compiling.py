"""How tests compile: soon, rather than to fast programs."""

import jaxlib

# XLA ends a process for a flag that it does not know, as newer ones may not.
_KNOWN_BY = ('0.7', '0.8', '0.9', '0.10')
# Together 43 % less CPU for what no cache has yet: no second compiler for fused
# operations, and no module split into parts for cores that other tests use.
_SOON = (
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)


# Half of the optimization takes a fifth off notebooks: they compile large
# programs, and then train by them; without any they would take longer.
_OF_NOTEBOOKS = ('--xla_backend_optimization_level=1',)


def flags(devices: int) -> str:
  """XLA_FLAGS for a process with this many virtual devices."""
  count = f'--xla_force_host_platform_device_count={devices}'
  return ' '.join((count, *(_SOON if _is_known() else ())))


def flags_of_notebooks() -> str:
  """XLA_FLAGS for a notebook's kernel, which has one device."""
  return ' '.join((*_OF_NOTEBOOKS, *_SOON) if _is_known() else ())


def _is_known():
  return jaxlib.__version__.rpartition('.')[0] in _KNOWN_BY
