"""Runs what is measured in PyTorch, in a process of its own.

PyTorch and JAX each keep the memory of a card that they once took. So JAX gives
back what it has before a peer runs, and `share_memory` keeps it from taking
three quarters of the card at its start.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import logging

HOW = 'a process of its own, for which JAX gave back the memory of the card'
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LONGEST = 1800  # Seconds; compilers of PyTorch take minutes.


def share_memory() -> None:
  """Lets JAX take a card's memory as it needs it; before JAX starts."""
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def run(
  name: str, settings: Mapping[str, Any], *, needs: Sequence[str]
) -> dict[str, Any] | str:
  """What a module of `launch.benchmarks.peers` measured.

  Args:
    name: Of the module.
    settings: Keyword arguments of its `measure`, as JSON can hold them.
    needs: Packages without which it cannot be measured.

  Returns:
    What `measure` returned, or 'not measured: ' with the reason.
  """
  import jax
  from jax.extend import backend

  for package in needs:
    if importlib.util.find_spec(package) is None:
      return f'not measured: {package} is not installed'
  device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
  if device == 'cuda':
    backend.clear_backends()  # It would keep what it has taken so far.
  logging.info('%s: %s', name, HOW)
  command = [sys.executable, '-m', f'launch.benchmarks.peers.{name}']
  try:
    ended = subprocess.run(
      [*command, json.dumps({**settings, 'device': device})],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=_LONGEST,
    )
  except subprocess.TimeoutExpired:
    return f'not measured: it took more than {_LONGEST} s'
  if ended.returncode:
    logging.warning('%s', ended.stderr[-2000:])
    last = (ended.stderr.strip() or 'no message').splitlines()[-1]
    return f'not measured: {last}'
  return json.loads(ended.stdout.splitlines()[-1])
