"""Which tests a machine cannot run, by the marks that they bear."""


def reason_to_skip(item, *, devices: int, backend: str) -> str | None:
  """Why a test does not run here, or None where it does.

  Args:
    item: Of pytest, with marks `devices(n)` and `cpu_bits`.
    devices: How many there are.
    backend: What JAX computes on: 'cpu', 'gpu' or 'tpu'.
  """
  needed = item.get_closest_marker('devices')
  if needed and devices < needed.args[0]:
    return f'needs {needed.args[0]} devices, has {devices}'
  if item.get_closest_marker('cpu_bits') and backend != 'cpu':
    return f'holds bit for bit on CPUs alone, and this is a {backend}'
  return None
