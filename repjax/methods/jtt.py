"""Host side: rows that a first training gets wrong count more in a second.

Liu et al., 'Just Train Twice: Improving Group Robustness without Training Group
Information', ICML 2021 (https://arxiv.org/abs/2107.09044), algorithm 1. Both
trainings are `erm`; what stands between them is here:

    errors = jtt.error_set(logits, label)    # Of the first, on training rows.
    weight = jtt.row_weights(errors, 20)     # A column of the second.
"""

import numpy as np

from repjax import types
from repjax.types import InputError


def error_set(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Which training rows a model gets wrong, bool [N].

  Args:
    logits: Of the first training's model, in evaluation, [N, C].
    label: [N].

  Raises:
    InputError: If no row is wrong, or all are: then the second training would
      be the first once more.
  """
  logits, label = np.asarray(logits), np.asarray(label)
  if logits.ndim != 2 or label.shape != logits.shape[:1]:
    raise InputError(
      f'Need logits [N, C] and label [N]; got {logits.shape}, {label.shape}.'
    )
  if not np.isfinite(logits).all():
    raise InputError('The first training has diverged: logits are not finite.')
  errors = logits.argmax(-1) != label
  if not errors.any():
    raise InputError(
      f'The error set is empty: the first model gets all {len(label)} training '
      'rows right. Train it for fewer steps, or with more weight decay.'
    )
  if errors.all():
    raise InputError(
      f'All {len(label)} training rows are errors: train the first model for '
      'more steps.'
    )
  return errors


def row_weights(errors: np.ndarray, upweight: float) -> np.ndarray:
  """Weights by which each error counts `upweight` times, 1 on average.

  As the column 'weight' of `erm.make`: the loss is that of rows drawn so often,
  without their noise.

  Args:
    errors: bool [N].
    upweight: lambda_up of the paper, >= 1. In the authors' code, which appends
      the error set `up_weight` times, this is 1 + up_weight.

  Returns:
    float32 [N].
  """
  types.check_range('[1, inf)', upweight=upweight)
  weights = np.where(errors, float(upweight), 1.0)
  return (weights / weights.mean()).astype(np.float32)


def row_indices(errors: np.ndarray, up_weight: int) -> np.ndarray:
  """Rows of the second training set of the authors' code.

  All rows, and behind them the error set `up_weight` times: an error is seen
  1 + up_weight times an epoch.

  Args:
    errors: bool [N].
    up_weight: Copies of the error set, >= 0.

  Raises:
    InputError: If it is no such whole number.
  """
  types.check_range('[0, inf)', up_weight=up_weight)
  if up_weight != int(up_weight):
    raise types.InputError(f'copies are whole ones; got {up_weight=}')
  errors = np.asarray(errors, bool)
  copies = [np.flatnonzero(errors)] * int(up_weight)
  return np.concatenate([np.arange(len(errors)), *copies])
