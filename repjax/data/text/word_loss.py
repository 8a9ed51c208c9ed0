"""Device code: texts that lose some of their tokens, as an augmentation.

The deletion of Wei and Zou, 'EDA: Easy Data Augmentation Techniques for
Boosting Performance on Text Classification Tasks', EMNLP 2019
(https://arxiv.org/abs/1901.11196), of tokens in place of words.
"""

import jax
import jax.numpy as jnp

from repjax import types
from repjax.data.text import tokens as tokenizing


def lose(
  tokens: jax.Array, mask: jax.Array, rngs: jax.Array, *, rate: float
) -> tuple[jax.Array, jax.Array]:
  """Texts without some of their tokens; the others move together.

  The first and the last real token stay: they begin and end a text.

  Args:
    tokens: [B, L], padding behind each text.
    mask: 1 for real tokens, [B, L].
    rngs: One key a row, [B].
    rate: Probability that a token between them is lost, in [0, 1).

  Returns:
    (tokens [B, L], mask [B, L]).
  """
  types.check_range('[0, 1)', rate=rate)

  def one(tokens, mask, rng):
    place = jnp.arange(len(tokens))
    ends = (place == 0) | (place == mask.sum() - 1)
    kept = (mask > 0) & (ends | ~jax.random.bernoulli(rng, rate, mask.shape))
    order = jnp.argsort(~kept, stable=True)
    left = place < kept.sum()
    return jnp.where(left, tokens[order], tokenizing.PAD), left

  tokens, left = jax.vmap(one)(tokens, mask, rngs)
  return tokens, left.astype(mask.dtype)
