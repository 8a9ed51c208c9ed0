"""Four virtual CPU devices for all tests, set before JAX starts."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in _flags:
  os.environ['XLA_FLAGS'] = (
    f'{_flags} --xla_force_host_platform_device_count=4'
  ).strip()

import jax

# Several virtual devices on few cores deadlock when steps are queued.
jax.config.update('jax_cpu_enable_async_dispatch', False)
