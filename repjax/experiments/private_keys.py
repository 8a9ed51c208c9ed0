"""Host side: keys of the noise of private runs, and where they are.

All are derived from a secret, which is a key of a file or a seed that others
know. Two runs with one key add the same noise, and their difference has none.
"""

from collections.abc import Sequence
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.optim.dp_sgd import DpSgdState

NO_LINK = (
  'The experiment claims privacy, but its optimizer has no link that makes '
  'gradients private: begin the chain with private.Plan.link().'
)
_BYTES = 16  # Of a file with a key, at least.


def secret_of(key_file: str, seed: int) -> bytes:
  """What sampling and noise of a run are derived from.

  Args:
    key_file: A file of 16 bytes or more that nobody else knows, or ''.
    seed: Of the run, which has its own noise also where others share the file.

  Raises:
    InputError: If the file cannot be read, or is too short.
  """
  secret = f'seed {seed}'.encode()
  return _read(key_file) + b'\0' + secret if key_file else secret


def words(secret: bytes, purpose: str, count: int = 2) -> np.ndarray:
  """Data of a key for one purpose, uint32 [count]; up to 8."""
  return np.frombuffer(_digest(secret, purpose), np.uint32)[:count].copy()


def number(secret: bytes, purpose: str) -> int:
  """A seed for one purpose, of 128 bits."""
  return int.from_bytes(_digest(secret, purpose)[:16], 'big')


def of(state: types.TrainState) -> list[np.ndarray]:
  """Keys of all links that add noise."""
  return [
    np.asarray(x.key)
    for x in jax.tree.leaves(state.opt_state, is_leaf=_is_link)
    if _is_link(x)
  ]


def with_own(
  states: types.TrainState, secret: bytes, runs: Sequence[Any]
) -> types.TrainState:
  """States side by side, each with keys of its own.

  Args:
    states: With a leading axis of runs, [S, ...].
    secret: What the keys are derived from.
    runs: S names of runs, all distinct: seeds, or whatever has a `str`.

  Raises:
    InputError: If a name occurs twice, or no link makes gradients private.
  """
  names = [str(run) for run in runs]
  for name in names:
    if names.count(name) > 1:
      raise types.InputError(
        'Private runs side by side need distinct names, or the difference of '
        f'two has no noise; got {name!r} {names.count(name)} times.'
      )
  links = 0

  def own(x):
    nonlocal links
    if not _is_link(x):
      return x
    if len(x.key) != len(names):
      raise ValueError(f'Got {len(names)} names of {len(x.key)} runs')
    links += 1
    purposes = [f'noise of link {links} of run {name}' for name in names]
    keys = [words(secret, purpose, x.key.shape[1]) for purpose in purposes]
    return x._replace(key=jnp.asarray(np.stack(keys)))

  opt_state = jax.tree.map(own, states.opt_state, is_leaf=_is_link)
  if not links:
    raise types.InputError(NO_LINK)
  return states.replace(opt_state=opt_state)


def _is_link(x):
  return isinstance(x, DpSgdState)


def _digest(secret, purpose):
  return hashlib.sha256(purpose.encode() + b'\0' + secret).digest()


def _read(path):
  advice = f'make one by: head -c 32 /dev/urandom > {path}; chmod 600 {path}'
  try:
    secret = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise types.InputError(
      f'The key file {path} cannot be read ({error.strerror}): {advice}'
    ) from error
  if len(secret) < _BYTES:
    raise types.InputError(
      f'The key file {path} holds {len(secret)} bytes, and {_BYTES} random '
      f'ones are the least: {advice}'
    )
  return secret
