"""Host side: measures of predicted classes, over all rows of a set."""

import numpy as np

from repjax import types


def measure(
  logits: np.ndarray, labels: np.ndarray, *, num_bins: int = 15
) -> dict[str, float]:
  """Accuracy, negative log-likelihood and calibration error.

  Args:
    logits: [N, C].
    labels: [N].
    num_bins: Bins of the calibration error.

  Returns:
    'accuracy', 'loss' (mean NLL in nats) and 'ece'. NaN predicts no class.

  Raises:
    InputError: There is not one label a row.
  """
  labels = _one_a_row(labels, logits)
  log_probs = log_softmax(logits)
  known = ~np.isnan(log_probs).any(-1)
  ece = calibration_error if known.all() else lambda *args, **kwargs: np.nan
  return {
    'accuracy': float(((log_probs.argmax(-1) == labels) & known).mean()),
    'loss': float(-log_probs[np.arange(len(labels)), labels].mean()),
    'ece': ece(np.exp(log_probs), labels, num_bins=num_bins),
  }


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Log-probabilities in float64, [N, C] -> [N, C]."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def calibration_error(
  probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15
) -> float:
  """Expected calibration error (Guo et al., 2017, eq. 3), equal-width bins.

  https://arxiv.org/abs/1706.04599

  Args:
    probabilities: [N, C], rows sum to 1.
    labels: [N].
    num_bins: Number of bins over the confidence, each (low, high].

  Returns:
    Mean |accuracy - confidence| over bins, weighted by their sizes.
  """
  confidence, accuracy, counts = reliability(
    probabilities, labels, num_bins=num_bins
  )
  weights = counts / counts.sum()
  return float(np.sum(weights * np.abs(accuracy - confidence)))


def reliability(
  probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean confidence, accuracy and count of each confidence bin.

  Args:
    probabilities: [N, C].
    labels: [N].
    num_bins: Number of equal-width bins.

  Returns:
    Three arrays [num_bins]; the first two are 0 in empty bins.

  Raises:
    InputError: There is not one label a row.
  """
  labels = _one_a_row(labels, probabilities)
  top = np.asarray(probabilities).max(-1)
  hits = np.asarray(probabilities).argmax(-1) == labels
  bins = np.clip(np.ceil(top * num_bins).astype(int) - 1, 0, num_bins - 1)
  counts = np.bincount(bins, minlength=num_bins)
  share = np.maximum(counts, 1)
  confidence = np.bincount(bins, weights=top, minlength=num_bins) / share
  accuracy = np.bincount(bins, weights=hits, minlength=num_bins) / share
  return confidence, accuracy, counts


def _one_a_row(labels, scores):
  labels = np.asarray(labels)
  if labels.shape != np.shape(scores)[:-1]:  # Which would be broadcast.
    raise types.InputError(
      f'labels are one a row; got {labels.shape} for {np.shape(scores)} scores'
    )
  return labels
