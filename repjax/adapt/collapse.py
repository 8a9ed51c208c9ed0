"""Host side: an alarm for adaptation that ends in one class.

Predicting one class of everything, surely, is the least entropy that there is:
a stream that is long, or of few classes, may lead there (Niu et al., ICLR 2023,
section 3, https://arxiv.org/abs/2302.12400). Labels are not needed to see it.
"""

from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.metrics import classification


class Look(NamedTuple):
  """What is predicted of some rows.

  Attributes:
    entropy: Mean entropy of a row's prediction, as a share of log C.
    histogram: Share of rows that each class is predicted of, [C].
    classes: How many classes are predicted, in effect: the exponential of the
      histogram's entropy, between 1 and C.
  """

  entropy: float
  histogram: np.ndarray
  classes: float


def look(logits: np.ndarray) -> Look:
  """Measures the predictions of some rows, logits [N, C]."""
  log_probs = classification.log_softmax(logits)
  num_classes = logits.shape[-1]
  entropy = -(np.exp(log_probs) * log_probs).sum(-1).mean()
  histogram = np.bincount(log_probs.argmax(-1), minlength=num_classes) / len(
    logits
  )
  seen = histogram[histogram > 0]
  return Look(
    float(entropy / np.log(num_classes)),
    histogram,
    float(np.exp(-(seen * np.log(seen)).sum())),
  )


def alarm(
  adapted: np.ndarray,
  reference: np.ndarray,
  *,
  window: int,
  least: float = 0.5,
) -> int | None:
  """Where adaptation has collapsed, if it has.

  A window of the stream counts as collapsed if fewer classes are predicted, in
  effect, than `least` times those of the reference, and more surely. A stream
  that is sorted by class is none: there the reference predicts few classes,
  too.

  Args:
    adapted: Logits of the adapted network in the order of the stream, [N, C].
    reference: Logits of these rows without updates: of the network as it was
      trained, or with statistics of the batch, [N, C].
    window: Rows that are looked at together, >= 1. The last ones are looked at
      with those before them, so that they are as many; a few alone may well be
      of one class.
    least: In [0, 1].

  Returns:
    The first row of the first window, or None.

  Raises:
    InputError: If a setting is out of range, or shapes differ.
  """
  types.check_range('[1, inf)', window=window)
  types.check_range('[0, 1]', least=least)
  if np.shape(adapted) != np.shape(reference):
    raise types.InputError(
      'adapted and reference are logits of the same rows, [N, C]; got '
      f'{np.shape(adapted)} and {np.shape(reference)}.'
    )
  last = max(0, len(adapted) - window)
  for start in range(0, len(adapted), window):
    start = min(start, last)
    part = slice(start, start + window)
    ours, theirs = look(adapted[part]), look(reference[part])
    if ours.classes < least * theirs.classes and ours.entropy < theirs.entropy:
      return start
  return None
