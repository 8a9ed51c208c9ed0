"""Device code: exact attention, and its decoding with a cache of keys."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
from flax.linen import dtypes
import jax
import jax.numpy as jnp
import numpy as np

from repjax.types import InputError


def softmax_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  broadcast_dropout: bool = True,
  dropout_rng: jax.Array | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: jnp.dtype | None = None,
  precision: jax.lax.PrecisionLike = None,
  module: nn.Module | None = None,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al., 2017, eq. 1).

  Stands in for `nn.dot_product_attention`, also as the `attention_fn` of
  `nn.MultiHeadDotProductAttention`. Two things differ: scores and their softmax
  are float32 whatever the inputs are, and heads are moved in front of positions
  once, behind a barrier. Without it XLA:CPU picks a layout for each of the six
  products of a training step, and copies its operands for each.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D].
    value: [..., K, H, V].
    bias: Added to the scores; broadcast to [..., H, Q, K].
    mask: Where a query may look, bool; broadcast to [..., H, Q, K]. A query
      that may look nowhere sees the mean of all values.
    broadcast_dropout: Whether all batch rows and heads drop the same pairs.
    dropout_rng: Key for dropout; needed where it applies.
    dropout_rate: Probability that a weight is dropped, in [0, 1).
    deterministic: Whether to leave dropout out.
    dtype: Type of the products; None infers it from the inputs.
    precision: Of the products; see `jax.lax.Precision`.
    module: Sows the weights [..., H, Q, K], before dropout, in its
      'intermediates' as 'attention_weights'.

  Returns:
    [..., Q, H, V].

  Raises:
    InputError: `bias` or `mask` does not fit.
  """
  for name, array in (('bias', bias), ('mask', mask)):
    _check_fits(name, array, query, key)
  query, key, value = dtypes.promote_dtype(query, key, value, dtype=dtype)
  query = query * query.shape[-1] ** -0.5
  query, key, value = jax.lax.optimization_barrier(
    tuple(x.swapaxes(-3, -2) for x in (query, key, value))
  )  # [..., H, L, D]
  scores = jnp.einsum(
    '...qd,...kd->...qk',
    query,
    key,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  weights = jax.nn.softmax(scores)
  if module is not None:
    module.sow('intermediates', 'attention_weights', weights)
  if dropout_rate > 0 and not deterministic:
    shape = weights.shape
    if broadcast_dropout:
      shape = (1,) * (len(shape) - 2) + shape[-2:]
    keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, shape)
    weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
  output = jnp.einsum(
    '...qk,...kd->...qd',
    weights.astype(value.dtype),
    value,
    precision=precision,
  )
  return output.swapaxes(-3, -2)


class Cache(NamedTuple):
  """What `Softmax` remembers of a text, M positions of it at most.

  All rows are equally long, padding included.

  Attributes:
    key: [B, H, M, D], zeros where nothing is written yet.
    value: [B, H, M, V].
    mask: Which positions hold a real key, bool [B, M].
    length: Positions that are written, int32 [B], the same number in each row.
  """

  key: jax.Array
  value: jax.Array
  mask: jax.Array
  length: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax:
  """Exact attention as an object that can decode.

  Call it where `nn.dot_product_attention` is called. `init_state`, `prefill`
  and `step` give the outputs of the causal form one position at a time, with a
  cache that grows with the text: M (D + V) numbers a head.

  Attributes:
    causal: Whether a query sees its own and earlier positions only.
  """

  causal: bool = False

  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: jnp.dtype | None = None,
    precision: jax.lax.PrecisionLike = None,
    module: nn.Module | None = None,
  ) -> jax.Array:
    """Arguments and result are those of `softmax_attention`.

    Raises:
      InputError: `causal`, and there are not as many keys as queries; or
        `bias` or `mask` does not fit.
    """
    if self.causal:
      length, num_keys = query.shape[-3], key.shape[-3]
      if length != num_keys:
        raise InputError(
          'causal attention needs one key a query; got '
          f'{length} queries and {num_keys} keys: use Softmax(causal=False) '
          'for attention to another sequence, and `step` to decode'
        )
      _check_fits('mask', mask, query, key)
      past = jnp.tril(jnp.ones((length, length), bool))
      mask = past if mask is None else past & (mask > 0)
    return softmax_attention(
      query,
      key,
      value,
      bias=bias,
      mask=mask,
      broadcast_dropout=broadcast_dropout,
      dropout_rng=dropout_rng,
      dropout_rate=dropout_rate,
      deterministic=deterministic,
      dtype=dtype,
      precision=precision,
      module=module,
    )

  def init_state(
    self,
    *,
    batch_size: int,
    max_length: int,
    num_heads: int,
    head_dim: int,
    value_dim: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> Cache:
    """An empty cache of `max_length` positions; keys and values in `dtype`."""
    if max_length < 1:
      raise InputError(f'a cache needs max_length >= 1; got {max_length=}')
    shape = (batch_size, num_heads, max_length)
    return Cache(
      key=jnp.zeros((*shape, head_dim), dtype),
      value=jnp.zeros((*shape, value_dim), dtype),
      mask=jnp.zeros((batch_size, max_length), bool),
      length=jnp.zeros((batch_size,), jnp.int32),
    )

  def prefill(
    self,
    state: Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Attends within a whole prompt and fills an empty cache with it.

    Args:
      state: From `init_state`; what it holds is forgotten.
      query: [B, L, H, D].
      key: [B, L, H, D].
      value: [B, L, H, V].
      mask: [B, L], 0 for padding, which no query ever sees.

    Returns:
      (output [B, L, H, V], state).

    Raises:
      InputError: The prompt is longer than the cache, `mask` has another
        shape, or `causal` is False.
    """
    self._check_causal()
    length, max_length = query.shape[1], state.key.shape[2]
    if length > max_length:
      raise InputError(
        f'a prompt of {length} tokens does not fit into a cache of '
        f'{max_length=}: shorten it, or raise max_length'
      )
    if mask is not None and mask.shape != query.shape[:2]:
      raise InputError(
        f'mask must be [batch, length] = {query.shape[:2]}, got {mask.shape}'
      )
    real = jnp.ones(query.shape[:2], bool) if mask is None else mask > 0
    output = self(
      query,
      key,
      value,
      mask=None if mask is None else real[:, None, None, :],
      deterministic=True,
    )
    return output, Cache(
      key=_write(state.key, key.swapaxes(1, 2), 0),
      value=_write(state.value, value.swapaxes(1, 2), 0),
      mask=_write(jnp.zeros_like(state.mask), real, 0),
      length=jnp.full_like(state.length, length),
    )

  def step(
    self,
    state: Cache,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
  ) -> tuple[jax.Array, Cache]:
    """Attends from the next position to all real ones up to and with it.

    Args:
      state: The cache before.
      query: [B, 1, H, D].
      key: [B, 1, H, D].
      value: [B, 1, H, V].

    Returns:
      (output [B, 1, H, V], state). Past the end of the cache, which a compiled
      step cannot refuse, the output is NaN.

    Raises:
      InputError: The cache is full (where its length is known: outside of jit),
        or `causal` is False.
    """
    self._check_causal()
    max_length = state.key.shape[2]
    at = state.length[0]
    if not isinstance(at, jax.core.Tracer) and int(at) >= max_length:
      raise InputError(
        f'the cache of {max_length=} is full: begin with a larger max_length'
      )
    state = Cache(
      key=_write(state.key, key.swapaxes(1, 2), at),
      value=_write(state.value, value.swapaxes(1, 2), at),
      mask=_write(state.mask, jnp.ones_like(state.mask[:, :1]), at),
      length=state.length + 1,
    )
    # The cache has heads in front of positions, so that no step moves it.
    query = query.swapaxes(1, 2) * query.shape[-1] ** -0.5
    scores = jnp.einsum(
      'bhqd,bhkd->bhqk',
      query.astype(state.key.dtype),
      state.key,
      preferred_element_type=jnp.float32,
    )
    scores = jnp.where(
      state.mask[:, None, None], scores, jnp.finfo(scores.dtype).min
    )
    weights = jax.nn.softmax(scores).astype(state.value.dtype)
    output = jnp.einsum('bhqk,bhkd->bhqd', weights, state.value)
    output = jnp.where(at < max_length, output, jnp.nan)
    return output.swapaxes(1, 2).astype(query.dtype), state

  def _check_causal(self):
    if not self.causal:
      raise InputError(
        'only causal attention decodes: use attention.Softmax(causal=True)'
      )


def _check_fits(name, array, query, key):
  """Raises InputError unless an array broadcasts to the scores."""
  if array is None:
    return
  *batch, length, num_heads, _ = query.shape
  scores = (*batch, num_heads, length, key.shape[-3])
  try:
    fits = np.broadcast_shapes(array.shape, scores) == scores
  except ValueError:
    fits = False
  if not fits:
    raise InputError(
      f'{name} of shape {array.shape} does not fit scores [..., heads, '
      f'queries, keys] = {scores}: a mask [batch, keys] of keys alone is '
      'mask[:, None, None, :] here'
    )


def _write(array, part, at):
  """Puts `part` at position `at` of the last axis but one, or of [B, M]."""
  axis = 1 if array.ndim == 2 else 2
  return jax.lax.dynamic_update_slice_in_dim(
    array, part.astype(array.dtype), at, axis
  )
