"""Features from elsewhere: an .npz file of arrays, for few-shot episodes.

    features, labels            [R, D] and [R], of the rows that are judged
    base_features, base_labels  the same of rows of other classes; perhaps none

Whatever wrote them: `numpy.savez(path, features=..., labels=...)`.
"""

import pathlib
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from repjax import types


class Features(NamedTuple):
  """What a file holds.

  Attributes:
    features: [R, D].
    labels: Integers [R].
    base: Features and labels of base classes, if there are any.
  """

  features: np.ndarray
  labels: np.ndarray
  base: tuple[np.ndarray, np.ndarray] | None


def read(path: pathlib.Path) -> Features:
  """Reads a file; executes nothing that it holds.

  Raises:
    InputError: It cannot be read, an array is missing or none of finite
      numbers, labels are no integers, or shapes do not fit.
  """
  if not path.is_file():
    raise types.InputError(f'--features={path}: there is no such file.')
  if not zipfile.is_zipfile(path):
    raise types.InputError(
      f'--features={path} is no .npz file, or damaged: numpy.savez writes such.'
    )
  try:
    with np.load(path, allow_pickle=False) as stored:
      features, labels = _rows(path, stored, '')
      base = None
      if any(x.startswith('base_') for x in stored.files):
        base = _rows(path, stored, 'base_')
  except types.InputError:
    raise
  except Exception as error:  # Whatever a damaged archive makes of itself.
    raise types.InputError(f'--features={path} is damaged: {error}.') from error
  if base is None:
    return Features(features, labels, None)
  if base[0].shape[1] != features.shape[1]:
    raise types.InputError(
      f'--features={path}: rows of features have {features.shape[1]} numbers, '
      f'those of base_features {base[0].shape[1]}: both are of one network.'
    )
  shared = np.intersect1d(labels, base[1])
  if len(shared):
    logging.warning(
      '%s: labels and base_labels share %d numbers, such as %d: if that is the '
      'same class, episodes are not of new ones.',
      path,
      len(shared),
      shared[0],
    )
  return Features(features, labels, base)


def _rows(path, stored, prefix):
  """Features and labels of a kind of rows."""
  names = f'{prefix}features', f'{prefix}labels'
  features, labels = (_array(path, stored, x) for x in names)
  said = f'--features={path}: {names[0]}'
  if features.ndim != 2 or features.dtype.kind not in 'fiu':
    raise types.InputError(
      f'{said} must be numbers, a row each, [R, D]; got {_kind(features)}.'
    )
  if labels.dtype.kind not in 'iu':
    raise types.InputError(
      f'--features={path}: {names[1]} must be integers, the class of each row; '
      f'got {_kind(labels)}.'
    )
  if labels.shape != features.shape[:1] or not features.size:
    raise types.InputError(
      f'{said} {_kind(features)} needs rows, and {names[1]} a label for each; '
      f'got {_kind(labels)}.'
    )
  with np.errstate(over='ignore'):  # What float32 does not hold is infinite.
    features = features.astype(np.float32)
  bad = ~np.isfinite(features).all(1)
  if bad.any():
    raise types.InputError(
      f'{said} has NaN or infinite numbers in {bad.sum()} rows, the first of '
      f'them row {bad.argmax()}: leave these out.'
    )
  return features, labels


def _array(path, stored, name):
  if name not in stored.files:
    raise types.InputError(
      f'--features={path} has no array {name!r}; it has '
      f'{", ".join(map(repr, stored.files)) or "none"}.'
    )
  try:
    return np.asarray(stored[name])
  except ValueError as error:  # Objects are pickles, which are code.
    raise types.InputError(
      f'--features={path}: the array {name!r} cannot be read as numbers '
      f'({error}): pickled objects are refused.'
    ) from error


def _kind(array):
  return f'{array.dtype} {list(array.shape)}'
