"""Device code: attention to a learned prefix, and its gated parallel form.

Prefix tuning (Li and Liang, ACL 2021, https://arxiv.org/abs/2101.00190) puts l
learned keys and values in front of those of a sequence. He et al., 'Towards a
Unified View of Parameter-Efficient Transfer Learning', ICLR 2022
(https://arxiv.org/abs/2110.04366), eq. 5 to 7, show that this is an attention
to the prefix alone, mixed into the old output by a gate:

  h <- (1 - gate(x)) h + gate(x) softmax(x Wq Pk' / sqrt(d)) Pv

The gate is the share of the softmax that the prefix takes. It is never 0, so no
prefix leaves a network as it was: zero keys have score 0, like any other key.
"""

from collections.abc import Callable
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from repjax.layers.attention import signature


class PrefixAttention:
  """Puts keys and values in front of those that an `attention_fn` gets.

  A prefix stands at no position (rotary positions do not turn its keys), and
  every query sees it. For causal attention it is a text before the text, which
  has queries of its own that nobody reads; so any attention that is causal, and
  any that decodes, takes a prefix without a change.
  """

  def __init__(
    self,
    attention_fn: signature.AttentionFn,
    prefix: Callable[..., tuple[jax.Array, jax.Array]],
    *,
    length: int,
  ):
    """Binds a prefix.

    Args:
      attention_fn: Attention like `nn.dot_product_attention`. If it is causal,
        it sees `length` more queries.
      prefix: (key [..., K, H, D], value [..., K, H, V]) -> the prefix's keys
        [l, H, D] and values [l, H, V].
      length: l.
    """
    self._fn = attention_fn
    self._prefix = prefix
    self._length = length
    self.causal = signature.is_causal(attention_fn)
    # Whoever asks which arguments there are gets the answer of the original.
    self.__signature__ = inspect.signature(attention_fn)

  def __getattr__(self, name: str) -> Any:
    # Decodes where the original does.
    if name not in ('init_state', 'prefill', 'step') or not hasattr(
      self._fn, name
    ):
      raise AttributeError(name)
    return getattr(self, f'_{name}')

  def __call__(self, query, key, value, bias=None, mask=None, **settings):
    """Arguments and result as those of the `attention_fn`."""
    length = key.shape[-3]
    query, key, value = self._extend(query, key, value)
    if bias is not None:
      settings['bias'] = self._pad(bias, length, 0)
    if mask is not None:
      settings['mask'] = self._pad(mask, length, 1)
    return self._own(self._fn(query, key, value, **settings))

  def _init_state(self, *, max_length, **settings):
    return self._fn.init_state(max_length=max_length + self._length, **settings)

  def _prefill(self, state, query, key, value, *, mask=None):
    query, key, value = self._extend(query, key, value)
    if mask is not None:  # [B, L].
      mask = jnp.pad(mask, ((0, 0), (self._length, 0)), constant_values=1)
    output, state = self._fn.prefill(state, query, key, value, mask=mask)
    return self._own(output), state

  def _step(self, state, query, key, value):
    return self._fn.step(state, query, key, value)

  def _extend(self, query, key, value):
    """The three with the prefix in front, [..., l + L, H, D]."""

    def before(x, rows):
      rows = jnp.broadcast_to(rows, (*x.shape[:-3], *rows.shape))
      return jnp.concatenate([rows.astype(x.dtype), x], axis=-3)

    prefix_key, prefix_value = self._prefix(key, value)
    if self.causal:
      query = before(query, jnp.zeros((self._length, *query.shape[-2:])))
    return query, before(key, prefix_key), before(value, prefix_value)

  def _pad(self, array, length, fill):
    """A mask or bias [..., Q or 1, K or 1] for extended queries and keys."""
    array = jnp.atleast_2d(array)
    if array.shape[-1] == 1:
      array = jnp.broadcast_to(array, (*array.shape[:-1], length))
    rows = self._length if self.causal and array.shape[-2] > 1 else 0
    widths = [(0, 0)] * (array.ndim - 2) + [(rows, 0), (self._length, 0)]
    return jnp.pad(array, widths, constant_values=fill)

  def _own(self, output):
    return output[..., self._length :, :, :] if self.causal else output


def gate(
  query: jax.Array,
  key: jax.Array,
  prefix_key: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Share of the softmax that a prefix takes (He et al., 2022, eq. 6).

  The sum of the prefix's exponentiated scores over that of all scores, computed
  as a sigmoid of a difference of logarithms.

  Args:
    query: [..., Q, H, D].
    key: Of the sequence, [..., K, H, D].
    prefix_key: [l, H, D].
    mask: Where a query may look in the sequence, bool; broadcast to
      [..., H, Q, K].

  Returns:
    [..., Q, H] float32, in (0, 1].
  """
  query = query.astype(jnp.float32) * query.shape[-1] ** -0.5
  scores = jnp.einsum('...qhd,...khd->...hqk', query, key)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  on_prefix = jnp.einsum('...qhd,lhd->...hql', query, prefix_key)
  share = jax.nn.sigmoid(
    jax.nn.logsumexp(on_prefix, axis=-1) - jax.nn.logsumexp(scores, axis=-1)
  )
  return share.swapaxes(-1, -2)
