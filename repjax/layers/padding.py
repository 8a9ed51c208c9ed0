"""Device code: other padding in the convolutions of any linen model.

    model = padding.Padded(resnet.ResNet(num_classes=10), 'circular')

has the calls and the parameters of the model, which itself stays as it is.
Modes are those that Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind
Spots', ICLR 2021 (https://openreview.net/forum?id=m1CD7tPubNy), compare:

- 'zero': what is usual; also for layers built with 'CIRCULAR' or 'REFLECT'.
- 'circular': the opposite side of the map.
- 'symmetric': the map mirrored, its outermost place repeated.
- 'reflect': the map mirrored at its outermost place.
- 'replicate': the outermost place again and again.
- 'partial': zeros, and sums scaled up by the share of the window that lies in
  the map (Liu et al., 2018, https://arxiv.org/abs/1811.11718).
- 'balanced': zeros, as many on both sides and all of them consumed.

All but 'balanced' pad by as many places as the layer does, so that maps keep
their sizes, and so does 'balanced', or refuses. Layers without padding stay as
they are, and so do causal ones. Pooling is no layer of its own in linen and is
not changed: its padding is -inf, which no maximum sees.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import flax.linen as nn
from flax.linen import linear
import jax
import jax.numpy as jnp
import numpy as np

from repjax import interceptors
from repjax import types
from repjax.layers import pad_arithmetic
from repjax.layers.pad_arithmetic import MODES as MODES
from repjax.layers.pad_arithmetic import Mode as Mode

Sides = Sequence[tuple[int, int]]


def pad(
  x: jax.Array, sides: Sides, mode: Mode, *, where: str = 'this map'
) -> jax.Array:
  """A map with padding around it.

  Args:
    x: [..., *spatial, C].
    sides: (before, after) of each spatial dimension.
    mode: One of `MODES`. Zeros for 'zero', 'partial' and 'balanced'.
    where: What is padded, for messages.

  Returns:
    [..., *padded, C].

  Raises:
    InputError: If there is no such mode, or it takes more than the map has.
  """
  types.check_choice('padding mode', mode, MODES)
  spatial = x.shape[-len(sides) - 1 : -1]
  for size, (before, after) in zip(spatial, sides, strict=True):
    window = pad_arithmetic.Window(size, 1, before=before, after=after)
    pad_arithmetic.check_reach(window, mode, where)
  around = [(0, 0)] * (x.ndim - len(sides) - 1) + [*sides, (0, 0)]
  if mode in pad_arithmetic.FILLED:
    return jnp.pad(x, around, mode=pad_arithmetic.FILLED[mode])
  return jnp.pad(x, around)


def windows(
  conv: nn.Conv, shape: Sequence[int]
) -> tuple[pad_arithmetic.Window, ...]:
  """The window of a convolution along each spatial dimension.

  Args:
    conv: The layer.
    shape: Of its input, [..., *spatial, C].

  Raises:
    InputError: If it dilates its input, or its padding crops.
  """
  size = conv.kernel_size
  kernel = (size,) if isinstance(size, int) else tuple(size)
  strides = _each(conv.strides, len(kernel))
  dilations = _each(conv.kernel_dilation, len(kernel))
  extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
  spatial = tuple(shape[-len(kernel) - 1 : -1])
  sides = linear.canonicalize_padding(conv.padding, len(kernel))
  if sides in ('CIRCULAR', 'REFLECT'):
    sides = [((e - 1) // 2, e // 2) for e in extents]
  elif sides == 'CAUSAL':
    sides = [(extents[0] - 1, 0)]
  elif isinstance(sides, str):
    sides = jax.lax.padtype_to_pads(spatial, extents, strides, sides)
  if (
    max(_each(conv.input_dilation, len(kernel))) > 1 or min(map(min, sides)) < 0
  ):
    raise types.InputError(
      f'The convolution {_name(conv)} dilates or crops its input: what its '
      'padding reads is not defined here.'
    )
  return tuple(
    pad_arithmetic.Window(size, k, s, d, before, after)
    for size, k, s, d, (before, after) in zip(
      spatial, kernel, strides, dilations, sides, strict=True
    )
  )


@contextlib.contextmanager
def padded(mode: Mode) -> Iterator[set[str]]:
  """Convolutions that are called inside are padded in another way.

  Args:
    mode: One of `MODES`.

  Yields:
    Names of the layers that had padding, which fills up as they are called.

  Raises:
    InputError: If there is no such mode. When a layer is called: it pads more
      than its map has, or cannot be balanced.
  """
  types.check_choice('padding mode', mode, MODES)
  found: set[str] = set()

  def interceptor(next_fn, args, kwargs, context):
    conv = context.module
    if (
      context.method_name != '__call__'
      or not isinstance(conv, nn.Conv)
      or conv.padding == 'CAUSAL'
    ):
      return next_fn(*args, **kwargs)
    x = args[0] if args else kwargs['inputs']
    own = windows(conv, x.shape)
    if not any(w.before or w.after for w in own):
      return next_fn(*args, **kwargs)
    found.add(_name(conv))
    if mode == 'partial':
      return _partial(conv, x, own)
    if mode in pad_arithmetic.FILLED:
      filled = pad(x, _sides(own), mode, where=_name(conv))
      return _like(conv, padding='VALID')(filled)
    if mode == 'balanced':
      wanted = [_balanced(w, _name(conv)) for w in own]
    else:
      wanted = _sides(own)
    if _is_zero(conv) and wanted == _sides(own):
      return next_fn(*args, **kwargs)
    return _like(conv, padding=wanted)(x)

  # Others see the layer that is called in place of the first one, with its
  # padded input: what rules of gradient norms and bases of inputs go by.
  with interceptors.outermost(interceptor):
    yield found


class Padded(nn.Module):
  """A model whose convolutions pad in another way; called as the model is.

  Its parameters are those of the model, under the same names.

  Attributes:
    model: Any linen module.
    mode: One of `MODES`.
  """

  model: nn.Module
  mode: Mode

  def setup(self):
    nn.share_scope(self, self.model)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the model.

    Raises:
      InputError: When it is initialized: none of its convolutions pads.
    """
    with padded(self.mode) as found:
      outputs = self.model(*args, **kwargs)
    if self.is_initializing() and not found:
      raise types.InputError(
        f'{type(self.model).__name__} calls no convolution (flax.linen.Conv) '
        f'with padding: there is none that mode={self.mode!r} could change.'
      )
    return outputs


def _like(conv, **changes):
  """A layer with other attributes and with the variables of this one."""
  return conv.clone(parent=conv.scope, **changes)


def _partial(conv, x, own):
  scale: Any = 1.0
  for window in own:
    scale = np.multiply.outer(scale, pad_arithmetic.scales(window))
  filled = pad(x, _sides(own), 'zero')
  # Sums are scaled without their bias, which is added by itself: it has a
  # gradient that no scale changes.
  sums = _like(conv, padding='VALID', use_bias=False)(filled)
  sums = sums * _under(scale[..., None], sums)
  if not conv.use_bias:
    return sums
  shape = (conv.features,)
  bias = conv.scope.param('bias', conv.bias_init, shape, conv.param_dtype)
  return sums + _under(bias, sums)


def _under(x, sums):
  """In the type and with the rank of `sums`, its dimensions the last ones."""
  return jnp.reshape(x, (1,) * (sums.ndim - x.ndim) + x.shape).astype(
    sums.dtype
  )


def _balanced(window, where):
  sides = pad_arithmetic.balanced(window)
  if sides is None:
    raise types.InputError(pad_arithmetic.unbalanced(window, where))
  return sides, sides


def _is_zero(conv):
  return conv.padding not in ('CIRCULAR', 'REFLECT')


def _sides(own):
  return [(w.before, w.after) for w in own]


def _each(setting, rank):
  setting = 1 if setting is None else setting
  return (setting,) * rank if isinstance(setting, int) else tuple(setting)


def _name(conv):
  return '/'.join(conv.path) or type(conv).__name__
