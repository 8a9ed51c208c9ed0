"""Host side: what a teacher says of rows, once for all, and what that tells.

As in STARTUP: Phoo and Hariharan, 'Self-training for Few-shot Transfer Across
Extreme Task Differences', ICLR 2021, section 3 (https://arxiv.org/abs/2010.07734).
"""

import numpy as np

from repjax.methods import noisy_student
from repjax.types import InputError


def of_teacher(
  logits: np.ndarray, *, num_classes: int, normalized: bool = True
) -> np.ndarray:
  """What a teacher says of rows, on the host: probabilities + 1e-6.

  Args:
    logits: In evaluation, of rows as they are, [N, C].
    num_classes: Of the student, C.
    normalized: Whether a row sums to 1; the authors' code leaves the sum at
      1 + C 1e-6.

  Returns:
    float32 [N, C], > 0.

  Raises:
    InputError: If there are no rows, the classes are not the student's, or the
      teacher has diverged.
  """
  if not len(logits):
    raise InputError(
      'There is no unlabelled row to be taught by: give a split that has some.'
    )
  if logits.shape[1:] != (num_classes,):
    raise InputError(
      f'The teacher tells {logits.shape[1]} classes apart, and the base set '
      f'has {num_classes}: give a teacher of these classes (config.teacher).'
    )
  soft = noisy_student.labels(logits, soft=True)['pseudo_target']
  soft = soft.astype(np.float64) + 1e-6
  if normalized:
    soft /= soft.sum(-1, keepdims=True)
  return soft.astype(np.float32)


def report(soft: np.ndarray) -> dict[str, float]:
  """How much labels tell of the rows that have them, in nats.

  Args:
    soft: Labels, [N, C].

  Returns:
    'entropy', the mean over rows; 'entropy_of_mean', that of the mean label;
    'information', their difference, what a label tells of its row (0 if all
    rows have one label, at most log C); and 'classes', how many are the
    likeliest of some row.
  """
  soft = np.asarray(soft, np.float64)
  soft = soft / soft.sum(-1, keepdims=True)

  def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)

  mean, of_mean = entropy(soft).mean(), entropy(soft.mean(0))
  return {
    'entropy': float(mean),
    'entropy_of_mean': float(of_mean),
    'information': float(of_mean - mean),
    'classes': float(len(np.unique(soft.argmax(-1)))),
  }
