"""Device code: exact attention, and its decoding with a cache of keys."""

import dataclasses
from typing import NamedTuple

from flax.linen import dtypes
import jax
import jax.numpy as jnp

from repjax.layers.attention import signature
from repjax.types import InputError


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
class Softmax(signature.Attention):
  """Exact attention (Vaswani et al., eq. 1, https://arxiv.org/abs/1706.03762).

  Call it where `nn.dot_product_attention` is called. Two things differ: scores
  and their softmax are float32 whatever the inputs are, and heads are moved in
  front of positions once, behind a barrier. Without it XLA:CPU picks a layout
  for each of the six products of a training step, and copies its operands for
  each. A query that may look nowhere sees the mean of all values.

  `init_state`, `prefill` and `step` give the outputs of the causal form one
  position at a time, with a cache that grows with the text: M (D + V) numbers a
  head.

  Attributes:
    causal: Whether a query sees its own and earlier positions only, which needs
      as many keys as queries.
  """

  causal: bool = False

  def _check_lengths(self, query, key):
    if self.causal and query.shape[-3] != key.shape[-3]:
      raise InputError(
        'causal attention needs one key a query; got '
        f'{query.shape[-3]} queries and {key.shape[-3]} keys: use '
        'causal=False for attention to another sequence, and `step` to decode'
      )

  def _attend(self, query, key, value, settings):
    self._check_lengths(query, key)
    bias = fitting('bias', settings.bias, query, key)
    mask = fitting('mask', settings.mask, query, key)
    if self.causal:
      past = jnp.tril(jnp.ones((query.shape[-3],) * 2, bool))
      past = jnp.expand_dims(past, tuple(range(query.ndim - 2)))
      mask = past if mask is None else past & (mask > 0)
    query, key, value = dtypes.promote_dtype(
      query, key, value, dtype=settings.dtype
    )
    query = query * query.shape[-1] ** -0.5
    query, key, value = jax.lax.optimization_barrier(
      tuple(x.swapaxes(-3, -2) for x in (query, key, value))
    )  # [..., H, L, D]
    scores = jnp.einsum(
      '...qd,...kd->...qk',
      query,
      key,
      precision=settings.precision,
      preferred_element_type=jnp.float32,
    )
    if bias is not None:
      scores = scores + bias
    if mask is not None:
      scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores)
    if settings.module is not None:
      settings.module.sow('intermediates', 'attention_weights', weights)
    if settings.drops:
      shape = weights.shape
      if settings.broadcast_dropout:
        shape = (1,) * (len(shape) - 2) + shape[-2:]
      kept = 1 - settings.dropout_rate
      keep = jax.random.bernoulli(settings.dropout_rng, kept, shape)
      weights = jnp.where(keep, weights / kept, 0)
    output = jnp.einsum(
      '...qk,...kd->...qd',
      weights.astype(value.dtype),
      value,
      precision=settings.precision,
    )
    return output.swapaxes(-3, -2)

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


softmax_attention = Softmax()  # Where a function is wanted.


def fitting(
  name: str, array: jax.Array | None, query: jax.Array, key: jax.Array
) -> jax.Array | None:
  """An array with as many axes as the scores; InputError if it cannot fit."""
  if array is None:
    return None
  *batch, length, num_heads, _ = query.shape
  scores = (*batch, num_heads, length, key.shape[-3])
  try:
    fits = jnp.broadcast_shapes(array.shape, scores) == scores
  except ValueError:
    fits = False
  if not fits:
    raise InputError(
      f'{name} of shape {array.shape} does not fit scores [..., heads, '
      f'queries, keys] = {scores}: a mask [batch, keys] of keys alone is '
      'mask[:, None, None, :] here'
    )
  return jnp.expand_dims(array, tuple(range(len(scores) - array.ndim)))


def _write(array, part, at):
  """Puts `part` at position `at` of the last axis but one, or of [B, M]."""
  axis = 1 if array.ndim == 2 else 2
  return jax.lax.dynamic_update_slice_in_dim(
    array, part.astype(array.dtype), at, axis
  )
