"""Four virtual CPU devices for all tests, set before JAX starts."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compilation is most of the time of a small test, and optimization most of
# that. The demo, the parity tests and the notebooks run optimized programs.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
_flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _flags:
  os.environ['XLA_FLAGS'] = (
    f'{_flags} --xla_force_host_platform_device_count=4'
  ).strip()

import jax

# Several virtual devices on few cores deadlock when steps are queued.
jax.config.update('jax_cpu_enable_async_dispatch', False)
