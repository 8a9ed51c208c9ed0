"""Device code: what an attention takes, and how layers call it."""

from collections.abc import Callable
import inspect
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax

from repjax.types import InputError

# Attention with the arguments of `Attention.__call__`, or a part of them:
# `nn.dot_product_attention` is one. To decode it also has `init_state`,
# `prefill` and `step`, as `attention.Softmax(causal=True)` has them.
AttentionFn = Callable[..., jax.Array]

# What an attention may leave out and still be right.
_HINTS = ('broadcast_dropout', 'deterministic', 'dtype', 'module')


class Settings(NamedTuple):
  """The arguments of `Attention.__call__` after the three arrays."""

  bias: jax.Array | None
  mask: jax.Array | None
  broadcast_dropout: bool
  dropout_rng: jax.Array | None
  dropout_rate: float
  deterministic: bool
  dtype: jax.typing.DTypeLike | None
  precision: jax.lax.PrecisionLike
  module: nn.Module | None

  @property
  def drops(self) -> bool:
    """Whether weights are dropped."""
    return self.dropout_rate > 0 and not self.deterministic


class Attention:
  """An attention that takes everything; what it makes of it is `_attend`."""

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
    dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    module: nn.Module | None = None,
  ) -> jax.Array:
    """Attends, as `nn.dot_product_attention` does and in its place.

    Args:
      query: [..., Q, H, D].
      key: [..., K, H, D].
      value: [..., K, H, V].
      bias: Added to the scores; broadcast to [..., H, Q, K].
      mask: Where a query may look; broadcast to [..., H, Q, K].
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
      InputError: Shapes do not fit, or this attention cannot do what is asked.
    """
    settings = Settings(
      bias,
      mask,
      broadcast_dropout,
      dropout_rng,
      dropout_rate,
      deterministic,
      dtype,
      precision,
      module,
    )
    return self._attend(query, key, value, settings)

  def _attend(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    settings: Settings,
  ) -> jax.Array:
    raise NotImplementedError


def call(
  attention_fn: AttentionFn,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  module: nn.Module,
  **settings: Any,
) -> jax.Array:
  """Calls an attention with as many of the settings as it takes.

  Args:
    attention_fn: What is called.
    query: [..., Q, H, D].
    key: [..., K, H, D].
    value: [..., K, H, V].
    module: Of the layer. It is passed on where there are weights to show: the
      attention names it, and 'intermediates' are mutable.
    **settings: Those of `Settings` that are to count.

  Raises:
    InputError: One that changes the result is not among its arguments.
  """
  taken = inspect.signature(attention_fn).parameters
  if not any(x.kind is x.VAR_KEYWORD for x in taken.values()):
    lost = [x for x in settings if x not in taken and x not in _HINTS]
    if lost:
      raise InputError(
        f'attention_fn={attention_fn} takes no {" and no ".join(lost)}, which '
        'this layer has for it: give it the arguments of '
        'nn.dot_product_attention'
      )
    settings = {name: x for name, x in settings.items() if name in taken}
  if 'module' in taken and module.is_mutable_collection('intermediates'):
    settings['module'] = module
  return attention_fn(query, key, value, **settings)


def is_causal(attention_fn: AttentionFn) -> bool:
  """Whether an attention says that no query sees later keys."""
  return getattr(attention_fn, 'causal', False)


def check_causal(attention_fn: AttentionFn) -> None:
  """Raises InputError unless an attention is causal."""
  if not is_causal(attention_fn):
    raise InputError(
      'a decoder needs causal self-attention, such as layers.attention.'
      f'Softmax(causal=True); got {attention_fn}'
    )


def check_decodes(attention_fn: AttentionFn) -> None:
  """Raises InputError unless an attention can go on from a state."""
  if not hasattr(attention_fn, 'prefill'):
    raise InputError(
      f'attention_fn={attention_fn} cannot decode: it has no init_state, '
      'prefill and step. layers.attention.Softmax(causal=True) has'
    )
