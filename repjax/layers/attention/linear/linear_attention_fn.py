"""Device code: what Performer and RFA share as an `attention_fn` of linen.

A `Rule` says what makes a linear attention; `attend` applies it to whole
sequences, and `LinearAttention` puts it into a network in the place of
`nn.dot_product_attention`, with a state of constant size for decoding.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import flax.linen as nn
from flax.linen import dtypes
import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import random_features
from repjax.types import InputError


class Rule(NamedTuple):
  """What makes one linear attention.

  Attributes:
    query_map: Queries [..., H, L, D] -> features.
    key_map: Keys [..., H, L, D] -> features.
    divide: `attention_sums.Totals` -> outputs [..., Q, H, V].
    gates: Keys [..., L, H, D] -> (log_weight, log_decay), each [..., L, H], as
      in `linear_attention.causal`; None for neither.
  """

  query_map: random_features.FeatureMap
  key_map: random_features.FeatureMap
  divide: Callable[[attention_sums.Totals], jax.Array]
  gates: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rule: Rule,
  *,
  causal: bool,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
  """Applies a rule to whole sequences.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D]; K = Q where `causal` or with `segments`.
    value: [..., K, H, V].
    rule: The attention.
    causal: Whether a query sees no later keys.
    mask: Which keys there are, [..., K] bool. A query that sees no key gives 0.
    segments: Ids >= 0, [..., L] int32, of sequences packed side by side.
    chunk_size: See `linear_attention`; None is its choice.
    precision: Of the sums' products; features are float32 in any case.

  Returns:
    [..., Q, H, V], in the inputs' type.

  Raises:
    InputError: Shapes do not fit.
  """
  _check(query, key, value, mask=mask, segments=segments, causal=causal)
  dtype = jnp.result_type(query, key, value)
  maps = dict(query_map=rule.query_map, chunk_size=chunk_size)
  maps['precision'] = precision
  if causal:
    totals, _ = linear_attention.causal(
      query,
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      segments=segments,
      **_gates(rule, key, mask),
      **maps,
    )
  elif segments is not None:
    totals = linear_attention.segmented(
      query,
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      segments=segments,
      **maps,
    )
  else:
    state = linear_attention.summarize(
      key,
      value,
      key_map=rule.key_map,
      mask=mask,
      chunk_size=chunk_size,
      precision=precision,
    )
    totals = linear_attention.read(query, state, **maps)
  return rule.divide(totals).astype(dtype)


def attend_segment(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  rule: Rule,
  state: attention_sums.State,
  *,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, attention_sums.State]:
  """Causal attention that goes on from a state: (outputs, state after).

  One call over a whole sequence, and one for each of its parts, are the same.
  No gradient flows into the state that comes in. Arguments as in `attend`.
  """
  _check(query, key, value, mask=mask, segments=None, causal=True)
  totals, state = linear_attention.causal(
    query,
    key,
    value,
    query_map=rule.query_map,
    key_map=rule.key_map,
    mask=mask,
    state=state,
    chunk_size=chunk_size,
    precision=precision,
    **_gates(rule, key, mask),
  )
  return rule.divide(totals).astype(jnp.result_type(query, key, value)), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearAttention:
  """An `attention_fn` with the signature of `nn.dot_product_attention`.

  Call it inside a compact method of a linen module, as
  `nn.MultiHeadDotProductAttention(attention_fn=...)` does: its variables then
  belong to that module.

  Attributes:
    causal: Whether a query sees no later keys; a [Q, K] mask cannot say so.
    chunk_size: See `linear_attention`; None is its choice.
  """

  causal: bool = False
  chunk_size: int | None = None

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
    """Attends in linear time.

    Args:
      query: [..., Q, H, D].
      key: [..., K, H, D].
      value: [..., K, H, V].
      bias: Must be None: there are no scores to add it to.
      mask: Which keys there are, broadcast to [..., 1, 1, K].
      broadcast_dropout: Ignored.
      dropout_rng: Ignored.
      dropout_rate: Of attention weights, which never exist here: must be 0
        unless `deterministic`.
      deterministic: Whether dropout is off.
      dtype: Of the result; None infers it from the inputs. Features and sums
        are float32.
      precision: Of the sums' products; see `jax.lax.Precision`.
      module: Sows the implied weights [..., H, Q, K] in its 'intermediates' as
        'attention_weights', which takes quadratic time.

    Returns:
      [..., Q, H, V].

    Raises:
      InputError: Something is asked for that a linear attention cannot do, or
        shapes do not fit.
    """
    del broadcast_dropout, dropout_rng  # No weights, no dropout.
    if bias is not None:
      raise InputError(
        f'{self._name} takes no bias: add positions to queries and keys instead'
      )
    if dropout_rate > 0 and not deterministic:
      raise InputError(
        f'{self._name} has no attention weights to drop: set the attention '
        f'dropout rate to 0, got {dropout_rate}'
      )
    query, key, value = dtypes.promote_dtype(query, key, value, dtype=dtype)
    settings = dict(
      causal=self.causal,
      mask=self._key_mask(mask, key),
      chunk_size=self.chunk_size,
      precision=precision,
    )
    rule = self._rule(*key.shape[-2:])
    if module is not None:
      weights = linear_attention.attention_matrix(
        lambda *arrays: attend(*arrays, rule, **settings), query, key
      )
      module.sow('intermediates', 'attention_weights', weights)
    return attend(query, key, value, rule, **settings)

  def init_state(
    self,
    *,
    batch_size: int,
    max_length: int,
    num_heads: int,
    head_dim: int,
    value_dim: int,
    dtype: jnp.dtype | None = None,
  ) -> attention_sums.State:
    """The state before the first token, of a size that does not grow."""
    del max_length, dtype  # Nothing is stored per token; sums are float32.
    return attention_sums.empty_state(
      (batch_size,), num_heads, self._num_features(head_dim), value_dim
    )

  def prefill(
    self,
    state: attention_sums.State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, attention_sums.State]:
    """Goes through a prompt, or the next segment of a long sequence.

    Args:
      state: What came before; no gradient flows into it.
      query: [B, L, H, D].
      key: [B, L, H, D].
      value: [B, L, H, V].
      mask: 0 for padding, whose keys never count, [B, L].

    Returns:
      (outputs [B, L, H, V], the state after).

    Raises:
      InputError: `causal` is False, or a shape does not fit.
    """
    if not self.causal:
      raise InputError(f'{self._name} decodes with causal=True only')
    *batch, _, num_heads, head_dim = key.shape
    needed = (*batch, num_heads, self._num_features(head_dim), value.shape[-1])
    if state.values.shape != needed:
      raise InputError(
        f'the decoding state is {state.values.shape}, these inputs need '
        f'{needed}, [batch, heads, features, size of values]: make it by '
        'init_state of the same settings'
      )
    return attend_segment(
      query,
      key,
      value,
      self._rule(*key.shape[-2:]),
      state,
      mask=None if mask is None else mask > 0,
      chunk_size=self.chunk_size,
    )

  def step(
    self,
    state: attention_sums.State,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
  ) -> tuple[jax.Array, attention_sums.State]:
    """One token: inputs [B, 1, H, D] -> (output [B, 1, H, V], state)."""
    return self.prefill(state, query, key, value)

  # What a system defines.

  def _rule(self, num_heads: int, head_dim: int) -> Rule:
    """Makes the variables, in the module that is running, and the rule."""
    raise NotImplementedError

  def _num_features(self, head_dim: int) -> int:
    """M."""
    raise NotImplementedError

  @property
  def _name(self):
    return type(self).__name__

  def _inside(self, module):
    """The module, which must have found one that it belongs to."""
    if module.scope is None:
      raise InputError(
        f'{self._name} keeps variables and must run inside a linen module; '
        'outside of one there are pure functions beside it'
      )
    return module

  def _key_mask(self, mask, key):
    """[..., 1, 1, K] -> [..., K] bool."""
    if mask is None:
      return None
    length = key.shape[-3]
    if mask.ndim < 3 or mask.shape[-3:] != (1, 1, length):
      raise InputError(
        f'{self._name} takes a key mask of shape [..., 1, 1, {length}], got '
        f'{mask.shape}: a mask that differs between queries or heads cannot '
        'be kept in linear time (causal=True and segments are other arguments)'
      )
    mask = mask[..., 0, 0, :] > 0
    try:
      return jnp.broadcast_to(mask, (*key.shape[:-3], length))
    except ValueError as error:
      raise InputError(
        f'{self._name}: a mask of batch shape {mask.shape[:-1]} does not fit '
        f'keys of batch shape {key.shape[:-3]}'
      ) from error


def check_head_dim(projection: jax.Array, head_dim: int) -> None:
  """Raises InputError unless the projection is for heads of that size."""
  if projection.shape[-1] != head_dim:
    raise InputError(
      f'the projection is for heads of size {projection.shape[-1]}, queries '
      f'and keys have {head_dim}: draw another, or change num_heads'
    )


def _gates(rule, key, mask):
  if rule.gates is None:
    return {}
  if mask is not None:  # Padding may hold anything, NaN for one.
    key = jnp.where(mask[..., None, None], key, 0)
  log_weight, log_decay = rule.gates(key)
  return dict(log_weight=log_weight, log_decay=log_decay)


def _check(query, key, value, *, mask, segments, causal):
  if min(query.ndim, key.ndim, value.ndim) < 3:
    raise InputError(
      'queries, keys and values are [..., length, heads, size], got '
      f'{query.shape}, {key.shape}, {value.shape}'
    )
  if query.shape[-2:] != key.shape[-2:]:
    raise InputError(
      'queries and keys need equal heads of equal size, got [..., heads, size] '
      f'of {query.shape} and {key.shape}'
    )
  if key.shape[:-1] != value.shape[:-1] or query.shape[:-3] != key.shape[:-3]:
    raise InputError(
      'batch, length and heads of keys and values must agree, and the batch '
      f'of queries: got {query.shape}, {key.shape}, {value.shape}'
    )
  if (causal or segments is not None) and query.shape[-3] != key.shape[-3]:
    raise InputError(
      'causal attention and segments need as many queries as keys, got '
      f'{query.shape[-3]} and {key.shape[-3]}'
    )
  for name, ids in (('mask', mask), ('segments', segments)):
    if ids is None:
      continue
    fits = ids.ndim >= 1 and ids.shape[-1] == key.shape[-3]
    batch = key.shape[:-3]
    if not fits or ids.shape[:-1] not in (batch, (1,) * len(batch), ()):
      raise InputError(
        f"{name} must be [..., {key.shape[-3]}] with the keys' batch "
        f'{batch}, got {ids.shape}'
      )
