"""Host side: sums of a run -> means, over rows, tokens and seeds."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from repjax import types


def means(sums: types.Sums) -> dict[str, float]:
  """Divides each sum by its weight; NaN where the weight is 0.

  >>> means({'loss': (6.0, 4.0)})
  {'loss': 1.5}
  """
  return {
    name: float(total) / float(weight) if float(weight) else float('nan')
    for name, (total, weight) in sums.items()
  }


def add(first: types.Sums, second: types.Sums) -> dict[str, tuple[Any, Any]]:
  """Adds two sums name by name."""
  return {
    name: (total + second[name][0], weight + second[name][1])
    for name, (total, weight) in first.items()
  }


def of_tokens(
  nll: np.ndarray,
  tokens: np.ndarray,
  hits: np.ndarray,
  num_bytes: float | None = None,
) -> dict[str, float]:
  """Means over all tokens that a model predicted of a text.

  Args:
    nll: Negative log-likelihood of each row's tokens, nats, [N].
    tokens: Number of each row's tokens, [N].
    hits: How many of them are the likeliest ones, [N].
    num_bytes: Bytes of the text; None leaves out 'bits_per_byte', the measure
      that does not depend on the tokenizer.

  Returns:
    'loss' (nats a token), 'perplexity', 'accuracy' and 'bits_per_byte'.
  """
  total = float(np.sum(nll, dtype=np.float64))
  count = float(np.sum(tokens, dtype=np.float64))
  numbers = {
    'loss': total / count,
    'perplexity': float(np.exp(total / count)),
    'accuracy': float(np.sum(hits, dtype=np.float64)) / count,
  }
  if num_bytes is not None:
    numbers['bits_per_byte'] = total / float(np.log(2)) / num_bytes
  return numbers


def mean_and_error(values) -> tuple[float, float]:
  """Mean over seeds and its standard error (0 for a single value)."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return float(values.mean()), 0.0
  return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def interval(
  values: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float]:
  """Mean over seeds and half of its confidence interval (Student's t).

  Of a difference between arms that share seeds this is the paired interval.

  Args:
    values: One a seed; a single one has no interval, half of which is NaN.
    confidence: Of the interval.

  >>> mean, half = interval([1.0, 2.0, 3.0])
  >>> f'{mean:.2f} +- {half:.2f}'
  '2.00 +- 2.48'
  """
  from scipy import special  # Slow to import.

  mean, error = mean_and_error(values)
  if len(values) < 2:
    return mean, float('nan')
  quantile = special.stdtrit(len(values) - 1, (1 + confidence) / 2)
  return mean, float(quantile * error)


def wilson(rate: float, count: int, *, z: float = 1.96) -> tuple[float, float]:
  """The 95 % interval of a share of `count` independent rows (Wilson, 1927).

  https://doi.org/10.1080/01621459.1927.10502953

  >>> tuple(round(x, 3) for x in wilson(0.9, 100))
  (0.826, 0.945)
  """
  if not count:
    return 0.0, 1.0
  middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
  half = np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
  half *= z / (1 + z**2 / count)
  return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def summary(sums: Mapping[str, float]) -> str:
  """'loss 0.1234  accuracy 0.9800' for a progress line.

  Nats that are the loss, where nothing is added to the likelihood, are left
  out.

  >>> summary({'loss': 1.5, 'nats': 1.5, 'accuracy': 0.5})
  'loss 1.5000  accuracy 0.5000'
  """
  shown = {name: f'{value:.4f}' for name, value in sums.items()}
  if 'nats' in shown and shown.get('loss') == shown['nats']:
    del shown['nats']
  return '  '.join(f'{name} {value}' for name, value in shown.items())
