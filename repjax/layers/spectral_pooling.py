"""Device code: maps made smaller by leaving out their high frequencies.

Rippel, Snoek and Adams, 'Spectral Representations for Convolutional Neural
Networks', NeurIPS 2015, section 4.1. https://arxiv.org/abs/1506.03767

A map of N places becomes one of n places, n <= N whatever they are: its lowest
n frequencies. Each axis on its own is a real linear map, so it is applied as an
[n, N] matrix where that is the faster form, and in bfloat16, which has no FFT.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.types import InputError

# 'amplitude': a constant stays that constant. 'public_code': it grows by the
# ratio of the numbers of places, as in the authors' code, which takes the
# inverse transform as it is; and so it jumps whenever a size changes.
Scale = Literal['amplitude', 'public_code']

# 'matmul': one real matrix an axis. 'fft': for long axes. 'auto': by length.
Form = Literal['auto', 'matmul', 'fft']

# 'centred': frequencies k and -k count alike, on every axis. 'public_code': see
# `public_pooling`.
Layout = Literal['centred', 'public_code']

# Two products with such matrices cost less than a 3 x 3 convolution of as many
# channels; on two cores they take half of the FFT's time at 32 and 64.
_LONGEST_PRODUCT = 256


def spectral_pooling(
  x: jax.Array,
  sizes: Sequence[int],
  *,
  weights: Sequence[jax.Array] | None = None,
  scale: Scale = 'amplitude',
  form: Form = 'auto',
) -> jax.Array:
  """Keeps the lowest frequencies of every axis between rows and channels.

  Frequencies |k| < n / 2 stay as they are. At k = n / 2 of an even n < N, of
  which n places see only a cosine, that cosine counts half: it is the mean of
  what is kept at -n / 2 and left out at n / 2. Where n = N nothing changes.

  Args:
    x: [B, N_1, ..., C], such as [B, H, W, C] or [B, L, C].
    sizes: n of each axis, 1 <= n <= N.
    weights: What frequencies 0, 1, ..., N // 2 are multiplied with, one array
      [N // 2 + 1] an axis; None for ones.
    scale: 'amplitude' or 'public_code'.
    form: 'auto', 'matmul' or 'fft'; the result is the same up to rounding.

  Returns:
    [B, n_1, ..., C], of the type of x.

  Raises:
    InputError: If a size does not fit the map.
  """
  x = jnp.asarray(x)
  check_sizes(x.shape[1:-1], sizes)
  types.check_choice('scale', scale, ('amplitude', 'public_code'))
  types.check_choice('form', form, ('auto', 'matmul', 'fft'))
  for place, size in enumerate(sizes):
    axis = place + 1
    own = None if weights is None else weights[place]
    if own is None and size == x.shape[axis]:
      continue
    product = form == 'matmul' or (
      form == 'auto' and x.shape[axis] <= _LONGEST_PRODUCT
    )
    pool = _by_product if product else _by_fft
    x = pool(x, size, own, axis=axis, scale=scale)
  return x


def _by_fft(x, size, weights, *, axis, scale):
  length = x.shape[axis]
  values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  spectrum = jnp.fft.rfft(values, axis=axis)
  spectrum = jax.lax.slice_in_dim(spectrum, 0, size // 2 + 1, axis=axis)
  if weights is not None:
    kept = weights[: size // 2 + 1].astype(values.dtype)
    shape = [1] * x.ndim
    shape[axis] = -1
    spectrum = spectrum * kept.reshape(shape)
  y = jnp.fft.irfft(spectrum, size, axis=axis)
  if scale == 'amplitude':
    y = y * (size / length)
  return y if not jnp.issubdtype(x.dtype, jnp.inexact) else y.astype(x.dtype)


def _by_product(x, size, weights, *, axis, scale):
  # What the transform does to every unit vector is its matrix, [n, N].
  wide = jnp.promote_types(x.dtype, jnp.float32)
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    x = x.astype(wide)  # The matrix is one of fractions.
  units = jnp.eye(x.shape[axis], dtype=wide)
  matrix = _by_fft(units, size, weights, axis=0, scale=scale)
  y = jnp.tensordot(x, matrix.astype(x.dtype), ((axis,), (1,)))
  return jnp.moveaxis(y, -1, axis)


def public_pooling(
  x: jax.Array,
  sizes: Sequence[int],
  *,
  weights: tuple[jax.Array, jax.Array] | None = None,
  scale: Scale = 'public_code',
) -> jax.Array:
  """The crop of the authors' code, bit for bit of its layout.

  https://github.com/google-research/diffstride: of h rows of the spectrum the
  first h // 2 and the last h - h // 2 are kept, of its half of columns the
  first w // 2 + 1. Where h is even the row -h / 2 is kept as it is (not the
  mean of both signs); where it is odd, the frequency (h - 1) / 2 is left out
  and its conjugate -(h + 1) / 2 stays.

  Args:
    x: [B, H, W, C].
    sizes: (h, w).
    weights: What rows [H] and columns [W // 2 + 1] of the spectrum are
      multiplied with; None for ones.
    scale: 'amplitude' or 'public_code'.

  Returns:
    [B, h, w, C], of the type of x; float32 of integers.
  """
  check_sizes(x.shape[1:-1], sizes)
  if len(sizes) != 2:
    raise InputError(
      "layout='public_code' is of images [B, H, W, C]: take layout='centred' "
      f'for {len(sizes)} axes.'
    )
  types.check_choice('scale', scale, ('amplitude', 'public_code'))
  height, width = sizes
  x = jnp.asarray(x)
  values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  spectrum = jnp.fft.rfft2(values, axes=(1, 2))
  if weights is not None:
    rows, columns = (weight.astype(values.dtype) for weight in weights)
    spectrum = spectrum * rows.reshape((1, -1, 1, 1))
    spectrum = spectrum * columns.reshape((1, 1, -1, 1))
  top = height // 2
  kept = jnp.concatenate(
    [spectrum[:, :top], spectrum[:, x.shape[1] - height + top :]], axis=1
  )[:, :, : width // 2 + 1]
  # One axis after the other: that the first column is no spectrum of a real map
  # is then seen alike by all backends (and by TensorFlow).
  y = jnp.fft.irfft(jnp.fft.ifft(kept, axis=1), width, axis=2)
  if scale == 'amplitude':
    y = y * (height * width / np.prod(x.shape[1:3]))
  inexact = jnp.issubdtype(x.dtype, jnp.inexact)
  return y.astype(x.dtype if inexact else values.dtype)


def pooled_size(length: int, stride: float) -> int:
  """Places that a fixed stride leaves: length // stride, but at least 2.

  The authors' code also makes the number of rows even.

  Raises:
    InputError: If the stride is below 1 or beyond the map.
  """
  check_stride(length, stride)
  return min(length, max(2, int(length // stride)))


def check_stride(length: int, stride: float) -> None:
  """Raises InputError for a stride that a map of this length cannot have."""
  if not 1 <= stride <= max(1, length):
    raise InputError(
      f'A stride is from 1 to the {length} places of the map (at least two '
      f'places stay); got {stride}: set strides within.'
    )


def check_sizes(shape: Sequence[int], sizes: Sequence[int]) -> None:
  """Raises InputError unless each axis of a map has a size that fits."""
  if len(shape) != len(sizes):
    raise InputError(
      f'A map of {len(shape)} axes ({tuple(shape)}) needs as many sizes; got '
      f'{tuple(sizes)}.'
    )
  for length, size in zip(shape, sizes, strict=True):
    if not 1 <= size <= length:
      raise InputError(
        f'Sizes are from 1 to that of the map, {tuple(shape)}; got '
        f'{tuple(sizes)}.'
      )
