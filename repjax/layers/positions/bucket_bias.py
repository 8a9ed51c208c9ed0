"""Device code: what is added to scores for the distance of two tokens, in T5.

Raffel et al., 'Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer', JMLR 2020 (https://arxiv.org/abs/1910.10683), section
2.1: near distances have a number each, far ones share one, and all beyond
`max_distance` are one.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError
from repjax.types import check_range


def buckets(
  distance: jax.Array,
  *,
  num_buckets: int,
  max_distance: int,
  both_sides: bool,
) -> jax.Array:
  """Which number each distance has.

  Half of the buckets of a side are of one distance each; the others grow as a
  logarithm up to `max_distance`.

  Args:
    distance: Place of the key minus place of the query, integers.
    num_buckets: Of both sides together.
    max_distance: From which on all are alike.
    both_sides: Whether keys behind the query have buckets of their own; if not,
      they are in that of distance 0.

  Returns:
    In [0, num_buckets), like `distance`.
  """
  count, offset = num_buckets, jnp.zeros_like(distance)
  if both_sides:
    count //= 2
    offset = jnp.where(distance > 0, count, 0)
    distance = abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = count // 2
  # The logarithm of 0 is of no use, and is not used.
  ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
  spread = (count - exact) / math.log(max_distance / exact)
  far = exact + (jnp.log(ratio) * spread).astype(distance.dtype)
  far = jnp.minimum(far, count - 1)
  return offset + jnp.where(distance < exact, distance, far)


class BucketBias(nn.Module):
  """One learned number a bucket and head, of all layers of a stack.

  Attributes:
    num_heads: H.
    both_sides: Whether keys behind a query have buckets of their own.
    num_buckets: Numbers a head, even and >= 4.
    max_distance: More than a quarter of `num_buckets` (half, of one side).
    table_init: Initial numbers.
    param_dtype: Of the table 'embedding' [num_buckets, H].
  """

  num_heads: int
  both_sides: bool
  num_buckets: int = 32
  max_distance: int = 128
  table_init: Any = nn.initializers.normal(1.0)
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
    """Places of queries [L] and keys [S] -> [H, L, S]."""
    check_range('[4, inf)', num_buckets=self.num_buckets)
    exact = self.num_buckets // (4 if self.both_sides else 2)
    if self.num_buckets % 2 or self.max_distance <= exact:
      raise InputError(
        f'num_buckets={self.num_buckets} must be even and max_distance='
        f'{self.max_distance} more than {exact}, the distances with a bucket '
        'of their own'
      )
    table = self.param(
      'embedding',
      self.table_init,
      (self.num_buckets, self.num_heads),
      self.param_dtype,
    )
    found = buckets(
      key[None] - query[:, None],
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
      both_sides=self.both_sides,
    )
    return table[found].transpose(2, 0, 1)
