"""Which tests a machine cannot run, by their marks; and which ones are dear.

`dear.txt` holds, a line each, the tests that have cost 0.8 s of CPU or more,
all their cases together and no program in a cache: a fifth of the tests, most
of the time. `make test` leaves them to `make test-all`. Each file keeps a test,
the contract and the house keep all. `summary.py` names tests that have become
dear.
"""

import functools
import pathlib

import pytest

SECONDS = 0.8
# Of what every recipe passes, and of the tree.
_NEVER = ('test_contract.py', 'test_house.py')


@functools.cache
def dear() -> frozenset[str]:
  """Names of dear tests, as pytest has them, without their cases."""
  file = pathlib.Path(__file__).with_name('dear.txt')
  return frozenset(
    f'tests/{x}' for x in file.read_text('utf-8').splitlines() if x
  )


def name_of(nodeid: str) -> str:
  """Of a test's function."""
  return nodeid.partition('[')[0]


def mark_dear(items) -> None:
  """Marks the dear ones of pytest's items."""
  for item in items:
    if name_of(item.nodeid) in dear():
      item.add_marker(pytest.mark.dear)


def may_be_dear(name: str) -> bool:
  """Whether `make test` would do without it."""
  file = name.partition('::')[0].rpartition('/')[2]
  return file.startswith('test_') and file not in _NEVER


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
