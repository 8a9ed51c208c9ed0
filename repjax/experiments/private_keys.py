"""Host side: keys of the noise of private runs, and where they are.

The difference of two runs that add the same noise has none: with one key, at
two epsilons, the first step alone gives the gradient away. So all keys are
derived from random bytes that each run draws when it begins (`of_run`), and
from a key of a file and a seed besides.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import json
import os
import pathlib
import secrets
import stat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import agreement
from repjax import parallel
from repjax import types
from repjax.optim.dp_sgd import DpSgdState

NO_LINK = (
  'The experiment claims privacy, but its optimizer has no link that makes '
  'gradients private: begin the chain with private.Plan.link().'
)
NAME = 'noise_key'  # In the work directory of a private run.

# Bytes of a file with a key, and how many different ones: of 16 random bytes,
# fewer than 8 are never seen, nor of 32 random hexadecimal digits.
_LEAST, _MOST, _DISTINCT = 16, 4096, 8


def secret_of(key_file: str, seed: int) -> bytes:
  """What sampling and noise of runs with this file and seed have in common.

  Args:
    key_file: A file of 16 bytes or more that nobody else knows, or ''.
    seed: Of the run.

  Raises:
    InputError: If the file cannot be read, is no key, or others may read it.
  """
  secret = f'seed {seed}'.encode()
  return read(key_file) + b'\0' + secret if key_file else secret


def given_or_drawn(nonce: bytes | None) -> bytes:
  """The nonce that is given, or one that is equal on all processes."""
  if nonce is None:
    return parallel.gather(_drawn())[0]
  if 0 < len(nonce) < _LEAST:
    raise types.InputError(
      f'The nonce of a private run is {_LEAST} random bytes or more '
      f'(secrets.token_bytes(32)); got {len(nonce)}.'
    )
  return nonce


def joined(secret: bytes, nonce: bytes) -> bytes:
  """What a run with a nonce derives its keys from; without one, `secret`."""
  return _digest(secret, 'nonce') + _digest(nonce, 'nonce') if nonce else secret


def of_run(
  workdir: pathlib.Path | None,
  secret: bytes,
  identity: Mapping[str, Any],
  rows: str,
) -> bytes:
  """The nonce of a run, equal on all its processes.

  Random bytes that are drawn when it begins, and kept in its work directory,
  where nobody but the user may read them, so that a resumed run finds them.
  What the run is comes with them, so that nothing else is trained with the same
  noise, say after a run that was killed before its first checkpoint.

  Args:
    workdir: Of the run; None keeps the random bytes nowhere.
    secret: From `secret_of`.
    identity: What the run is, as `run.identity` has it.
    rows: Fingerprint of what it is trained on.

  Raises:
    InputError: If processes have different secrets, or the work directory a
      file of random bytes that is no key or that others may read.
  """
  agreement.check({'key_file or seed': _digest(secret, 'name').hex()[:16]})
  nonce, refused = b'', None
  if jax.process_index() == 0:
    try:
      nonce = _drawn() if workdir is None else _kept(workdir / NAME)
    except types.InputError as error:
      refused = error
  if parallel.any_process(refused is not None):
    raise refused or types.InputError(
      f'{NAME} in --workdir={workdir} is refused: see what process 0 says.'
    )
  said = json.dumps([identity, rows], sort_keys=True)
  return parallel.gather(nonce)[0] + said.encode()


def _drawn():
  return secrets.token_bytes(32)


def _kept(path):
  if not path.exists():
    # Whole or not at all.
    part = path.with_name(f'{NAME}.{secrets.token_hex(8)}')
    made = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(made, 'wb') as file:
      file.write(_drawn())
      file.flush()
      os.fsync(made)
    part.rename(path)
  return read(str(path))


def words(secret: bytes, purpose: str, count: int = 2) -> np.ndarray:
  """Data of a key for one purpose, uint32 [count]; up to 8."""
  return np.frombuffer(_digest(secret, purpose), np.uint32)[:count].copy()


def number(secret: bytes, purpose: str) -> int:
  """A seed for one purpose, of 128 bits."""
  return int.from_bytes(_digest(secret, purpose)[:16], 'big')


def links(state: types.TrainState) -> list[DpSgdState]:
  """States of all links that add noise."""
  leaves = jax.tree.leaves(state.opt_state, is_leaf=_is_link)
  return [x for x in leaves if _is_link(x)]


def of(state: types.TrainState) -> list[np.ndarray]:
  """Keys of all links that add noise."""
  return [np.asarray(x.key) for x in links(state)]


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

  def own(key, link):
    if len(key) != len(names):
      raise ValueError(f'Got {len(names)} names of {len(key)} runs')
    purposes = [f'{link} of run {name}' for name in names]
    return np.stack([words(secret, x, key.shape[1]) for x in purposes])

  return _with_keys(states, own)


def with_run(state: types.TrainState, secret: bytes) -> types.TrainState:
  """A state whose links have keys that are derived from `secret`.

  Outside of compiled programs, which would hold the keys, and be kept in the
  cache of compiled programs with them.
  """
  return _with_keys(state, lambda key, link: words(secret, link, len(key)))


def _with_keys(states, key_of):
  """`key_of(old key, name of the link)` in the place of all keys."""
  links = 0

  def own(x):
    nonlocal links
    if not _is_link(x):
      return x
    links += 1
    key = key_of(x.key, f'noise of link {links}')
    return x._replace(key=jnp.asarray(key))

  opt_state = jax.tree.map(own, states.opt_state, is_leaf=_is_link)
  if not links:
    raise types.InputError(NO_LINK)
  return states.replace(opt_state=opt_state)


def _is_link(x):
  return isinstance(x, DpSgdState)


def _digest(secret, purpose):
  return hashlib.sha256(purpose.encode() + b'\0' + secret).digest()


def read(path: str) -> bytes:
  """The content of a key file.

  Raises:
    InputError: If it cannot be read, is no regular file (a device or a pipe
      has no end), is too short, too long or made of few bytes, or if others
      may read or write it.
  """
  file = pathlib.Path(path).expanduser()
  advice = f'make one by: head -c 32 /dev/urandom > {path}; chmod 600 {path}'
  try:
    # Without waiting for the writer of a pipe.
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), 'rb') as opened:
      found = os.fstat(opened.fileno())
      if not stat.S_ISREG(found.st_mode):
        raise types.InputError(
          f'The key file {path} is no file, and may have no end: make one by: '
          'head -c 32 /dev/urandom > KEY; chmod 600 KEY'
        )
      secret = opened.read(_MOST + 1)
  except OSError as error:
    raise types.InputError(
      f'The key file {path} cannot be read ({error.strerror}): {advice}'
    ) from error
  if found.st_mode & 0o077:
    raise types.InputError(
      f'The key file {path} can be read or written by others (mode '
      f'{found.st_mode & 0o777:04o}): chmod 600 {path}, and make another key '
      'if somebody may have read it.'
    )
  if not _LEAST <= len(secret) <= _MOST:
    size = f'more than {_MOST}' if len(secret) > _MOST else len(secret)
    raise types.InputError(
      f'The key file {path} holds {size} bytes, and {_LEAST} to {_MOST} '
      f'random ones are a key: {advice}'
    )
  if len(set(secret)) < _DISTINCT:
    raise types.InputError(
      f'The key file {path} holds {len(set(secret))} different byte(s), which '
      f'is no random key: {advice}'
    )
  return secret
