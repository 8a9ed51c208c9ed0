"""Host side: weights of rows by which all groups count alike."""

import numpy as np

from repjax.types import InputError


def row_weights(group: np.ndarray, num_groups: int) -> np.ndarray:
  """1 / n_g for a row of a group of n_g rows, scaled to 1 on average.

  As the column 'weight' of `erm.make` they make the mean loss over rows the
  mean of the groups' mean losses, in expectation over batches.

  Args:
    group: Of all training rows, [N] in [0, G).
    num_groups: G.

  Returns:
    float32 [N].

  Raises:
    InputError: If a group has no rows, or an id is out of range.
  """
  group = np.asarray(group)
  if len(group) and (group.min() < 0 or group.max() >= num_groups):
    raise InputError(
      f'Groups are in [0, {num_groups}); got {group.min()} to {group.max()}.'
    )
  counts = np.bincount(group, minlength=num_groups)
  if not counts.all():
    raise InputError(
      f'Group {np.flatnonzero(counts == 0)[0]} of {num_groups} has no row, '
      'which no weight can make up for: lower num_groups, or take other rows.'
    )
  weights = len(group) / num_groups / counts
  return weights[group].astype(np.float32)
