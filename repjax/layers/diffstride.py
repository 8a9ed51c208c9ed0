"""Device code: strides that are learnt.

Riad, Teboul, Grangier and Zeghidour, 'Learning Strides in Convolutional Neural
Networks', ICLR 2022, section 2.3. https://arxiv.org/abs/2202.01653

A stride S keeps the frequencies up to N / (2 S) of an axis of N places
(`layers.spectral_pooling`), and those of the next R, the smoothness, on a ramp
that falls to zero; through the ramp flows the gradient of S. How many places
are kept is no function of S inside of a compiled step: the crop is static, and
wide enough for the ramp. Three ways to choose it (`layers.crop_sizes`):

- all of the map: a mask alone; nothing is saved;
- what the present strides need, chosen on the host as training goes on;
- that, rounded up to a multiple, so that few programs are compiled.

In what is one layer all give one signal, sampled at different rates. Inside of
a network they differ, since the next convolution sees another rate.
"""

from collections.abc import Sequence
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers import crop_sizes
from repjax.layers import spectral_pooling
from repjax.types import InputError
from repjax.types import check_choice


def diffstride(
  x: jax.Array,
  strides: jax.Array,
  *,
  sizes: Sequence[int],
  smoothness: float = 4.0,
  scale: spectral_pooling.Scale = 'amplitude',
  layout: spectral_pooling.Layout = 'centred',
  form: spectral_pooling.Form = 'auto',
) -> jax.Array:
  """Leaves out high frequencies by strides that have gradients.

  Strides of 1 are the identity in the layout 'centred'.

  Args:
    x: [B, N_1, ..., C], such as [B, H, W, C], or [B, L, C] of series and sound.
    strides: S, one for each axis, [n], or one for all, [1].
    sizes: Places that are kept of each axis; what the ramp has beyond is cut.
    smoothness: R, > 0, in frequencies.
    scale: 'amplitude' or 'public_code'.
    layout: 'centred', or 'public_code', see `public_weights`.
    form: As `spectral_pooling` has it; of the layout 'centred'.

  Returns:
    [B, sizes, C].

  Raises:
    InputError: If a map is not larger than the smoothness, or sizes or numbers
      of strides do not fit.
  """
  shape = x.shape[1:-1]
  spectral_pooling.check_sizes(shape, sizes)
  crop_sizes.check_smoothness(shape, smoothness)
  check_choice('layout', layout, ('centred', 'public_code'))
  if strides.shape not in ((1,), (len(shape),)):
    raise InputError(
      f'Strides are one, or one for each of the {len(shape)} axes of the map; '
      f'got an array of shape {strides.shape}.'
    )
  # Half a bit of bfloat16 is a frequency of a map of 256.
  strides = jnp.broadcast_to(
    strides.astype(jnp.promote_types(strides.dtype, jnp.float32)),
    (len(shape),),
  )
  if layout == 'public_code':
    rows, columns = public_weights(shape, strides, smoothness)
    return spectral_pooling.public_pooling(
      x, sizes, weights=(rows, columns), scale=scale
    )
  weights = [
    ramp(jnp.arange(length // 2 + 1), length / (2 * stride), smoothness)
    for length, stride in zip(shape, strides, strict=True)
  ]
  return spectral_pooling.spectral_pooling(
    x, sizes, weights=weights, scale=scale, form=form
  )


def ramp(
  position: jax.Array, threshold: jax.Array, smoothness: float
) -> jax.Array:
  """1 up to the threshold, 0 from threshold + smoothness on, linear between.

  Sukhbaatar et al., 'Adaptive Attention Span in Transformers', ACL 2019, eq. 2
  (https://arxiv.org/abs/1905.07799). Both of its ends belong to the slope, as
  in the authors' code: there are frequencies where strides start, at 2.
  """
  height = (smoothness + threshold - position) / smoothness
  return jnp.where(height < 0, 0.0, jnp.where(height > 1, 1.0, height))


def public_weights(
  shape: Sequence[int], strides: jax.Array, smoothness: float
) -> tuple[jax.Array, jax.Array]:
  """Weights of rows [H] and of columns [W // 2 + 1] in the authors' code.

  https://github.com/google-research/diffstride: columns keep one frequency
  more than rows. Of an even number of rows, -k weighs as much as k - 1; of an
  odd one, all are shifted by one, and the mean weighs as much as frequency 1.

  Args:
    shape: (H, W).
    strides: [2].
    smoothness: R.
  """
  if len(shape) != 2:
    raise InputError(
      "layout='public_code' is of images [B, H, W, C]: take layout='centred' "
      f'for {len(shape)} axes.'
    )
  height, width = shape
  near = jnp.arange(height // 2 + height % 2)
  rows = jnp.concatenate([near[height % 2 :][::-1], near])
  # They shift to where an even number of rows has its zero; an odd one would
  # need the inverse of it.
  rows = jnp.fft.fftshift(rows)
  kept = [
    jnp.maximum(size / stride, 2.0) / 2
    for size, stride in zip(shape, strides, strict=True)
  ]
  return (
    ramp(rows, kept[0], smoothness),
    ramp(jnp.arange(width // 2 + 1), kept[1] + 1, smoothness),
  )


class DiffStride(nn.Module):
  """Pooling by learnt strides; the parameter is `strides`, [n] or [1].

  Before use, strides are brought into what the map and the crop can hold. A
  gradient that leads further out is cut there, one that leads back passes, so
  that no stride is lost outside. (`optim.stride_group` keeps the parameters
  themselves above 1.)

  Attributes:
    strides: Where they start, one for each axis between rows and channels.
    smoothness: R, > 0, in frequencies: places that are kept beyond N / S, on
      each side.
    shared: Whether all axes have one stride, which starts at the first.
    sizes: Places that are kept: numbers; 'initial', for what the first strides
      need; 'full', for all: a mask alone. With fewer places than the map has,
      strides cannot fall below what these hold.
    room: 'initial' is for strides that have fallen by this factor, >= 1.
    scale: 'amplitude', or 'public_code' for the authors' growing constants.
    layout: 'centred', or 'public_code' for the authors' order of frequencies.
    form: 'auto', 'matmul' or 'fft', the same numbers at different speeds.
  """

  strides: Sequence[float] = (2.0, 2.0)
  smoothness: float = 4.0
  shared: bool = False
  sizes: Sequence[int] | Literal['initial', 'full'] = 'initial'
  room: float = 1.0
  scale: spectral_pooling.Scale = 'amplitude'
  layout: spectral_pooling.Layout = 'centred'
  form: spectral_pooling.Form = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N_1, ..., C] -> [B, n_1, ..., C]."""
    shape = x.shape[1:-1]
    if len(self.strides) != len(shape):
      raise InputError(
        f'DiffStride has strides={tuple(self.strides)} for the axes '
        f'{shape} of a map: give one for each.'
      )
    if self.shared and len(set(self.strides)) > 1:
      raise InputError(
        'A shared stride starts at one number on all axes; got '
        f'strides={tuple(self.strides)}.'
      )
    crop_sizes.check_smoothness(shape, self.smoothness)
    for length, stride in zip(shape, self.strides, strict=True):
      spectral_pooling.check_stride(length, stride)
    spectral_pooling.check_sizes(shape, self._sizes(shape))
    low, high = map(jnp.asarray, self.limits(shape))
    first = jnp.asarray(
      self.strides[:1] if self.shared else self.strides, jnp.float32
    )
    strides = self.param('strides', lambda rng: first)
    return diffstride(
      x,
      inside(strides.astype(jnp.float32), low, high),
      sizes=self._sizes(shape),
      smoothness=self.smoothness,
      scale=self.scale,
      layout=self.layout,
      form=self.form,
    )

  @nn.nowrap
  def limits(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest strides in a map of a shape, like the parameter."""
    found = crop_sizes.limits(
      shape, self._sizes(shape), self.smoothness, layout=self.layout
    )
    low, high = np.asarray(found, np.float32).T
    if self.shared:
      return low.max(keepdims=True), high.min(keepdims=True)
    return low, high

  @nn.nowrap
  def _sizes(self, shape):
    return crop_sizes.resolve(
      self.sizes,
      shape,
      self.strides,
      self.smoothness,
      room=self.room,
      layout=self.layout,
    )


@functools.partial(jax.custom_vjp)
def inside(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
  """x, brought into [low, high]; gradients pass that lead back inside."""
  return jnp.clip(x, low, high)


def _inside_fwd(x, low, high):
  return inside(x, low, high), (x, low, high)


def _inside_bwd(saved, gradient):
  x, low, high = saved
  # An update goes against the gradient.
  out = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
  return (
    jnp.where(out, 0.0, gradient),
    jnp.zeros_like(low),
    jnp.zeros_like(high),
  )


inside.defvjp(_inside_fwd, _inside_bwd)
