"""Device code: linear attention as an `attention_fn`.

In the place of `nn.dot_product_attention` in a network, with a state of
constant size for decoding; `performer.Favor` and `rfa.Rfa` are of this kind.
"""

import dataclasses
import functools

from flax.linen import dtypes
import jax
import jax.numpy as jnp

from repjax.layers.attention import signature
from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import rules
from repjax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearAttention(signature.Attention):
  """An `attention_fn` of linear time, with a state of constant size.

  Call it inside a compact method of a linen module, as
  `nn.MultiHeadDotProductAttention(attention_fn=...)` does: its variables then
  belong to that module.

  There are no scores and no weights. So it takes no bias and no dropout, and a
  mask [..., 1, 1, K] of keys alone; `dtype` is that of the result, since
  features and sums are float32; and to sow the weights that it implies takes
  quadratic time.

  Attributes:
    num_features: Rows of the projection, M.
    redraw_every: Training calls between two draws of the projection; 0 keeps
      the first one.
    causal: Whether a query sees no later keys; a [Q, K] mask cannot say so.
    chunk_size: Keys at a time, >= 1; None is 1,024, or if causal 128 on CPUs
      and 256 elsewhere.
  """

  num_features: int
  redraw_every: int
  causal: bool = False
  chunk_size: int | None = None

  def __post_init__(self):
    if (
      self.num_features < 1
      or self.redraw_every < 0
      or (self.chunk_size is not None and self.chunk_size < 1)
    ):
      raise InputError(
        f'{self._name} needs num_features >= 1, redraw_every >= 0 and '
        f'chunk_size >= 1; got {self.num_features=}, {self.redraw_every=}, '
        f'{self.chunk_size=}'
      )

  def _attend(self, query, key, value, settings):
    if settings.bias is not None:
      raise InputError(
        f'{self._name} takes no bias: add positions to queries and keys instead'
      )
    if settings.drops:
      raise InputError(
        f'{self._name} has no attention weights to drop: set the attention '
        f'dropout rate to 0, got {settings.dropout_rate}'
      )
    query, key, value = dtypes.promote_dtype(
      query, key, value, dtype=settings.dtype
    )
    apply = functools.partial(
      rules.attend,
      causal=self.causal,
      mask=self._key_mask(settings.mask, key),
      chunk_size=self.chunk_size,
      precision=settings.precision,
      rule=self._rule(*key.shape[-2:]),
    )
    if settings.module is not None:
      weights = linear_attention.attention_matrix(apply, query, key)
      settings.module.sow('intermediates', 'attention_weights', weights)
    return apply(query, key, value)

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
    return rules.attend_segment(
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

  def _rule(self, num_heads: int, head_dim: int) -> rules.Rule:
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
