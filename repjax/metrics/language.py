"""Host side: measures of predicted tokens, over all tokens of a text."""

import numpy as np


def measure(
  nll: np.ndarray,
  tokens: np.ndarray,
  hits: np.ndarray,
  num_bytes: float | None = None,
) -> dict[str, float]:
  """Means over all tokens of a text.

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
