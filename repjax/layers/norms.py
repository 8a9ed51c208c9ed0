"""Device code: batch normalisation that knows padding and other devices."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import parallel
from repjax.types import InputError


class BatchNorm(nn.Module):
  """Batch normalisation over the real rows of all devices.

  Ioffe and Szegedy, 'Batch Normalization', ICML 2015, algorithm 1
  (https://arxiv.org/abs/1502.03167). Sums and counts are added over the devices
  of the step and divided once, so the result does not depend on the number of
  devices, on how many rows of each are padding, or on what the padding holds.
  (A mean of per-device means, as `flax.linen.BatchNorm` takes, is another
  number then, or NaN.)

  Statistics are float32 whatever the input is. A batch without any real row
  leaves the running statistics alone. Where devices go their own ways (SAM with
  `sync=False`), statistics are still those of all devices' rows.

  Attributes:
    momentum: Weight of the OLD value in the running statistics, in [0, 1], as
      in flax. PyTorch's `momentum` is 1 minus this one.
    epsilon: Added to variances, > 0.
    scale_init: Initializer of the scale; zeros make a residual branch start as
      the identity.
    dtype: Type of the output; None keeps the input's.

  Devices are those of a mapped axis called 'devices' (`parallel.AXIS`).
  'batch_stats' holds `mean` and `var` [C], float32. The running variance is the
  biased one (divided by the count), as in flax, and not as in PyTorch.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    mask: jax.Array | None = None,
    prior: float | None = None,
  ) -> jax.Array:
    """Normalises each channel, [B, ..., C] -> [B, ..., C].

    Args:
      x: [B, ..., C].
      train: Whether to use the statistics of this batch and to move the
        running ones ('batch_stats' must be mutable), or to use the running
        ones.
      mask: [B], 1 for a real row; None if all are.
      prior: In evaluation, None for the running statistics. A number N >= 0 is
        for those of this batch, n real rows of all devices, beside which the
        running ones count as N further rows (Schneider et al., NeurIPS 2020,
        section 3, https://arxiv.org/abs/2006.16971). Nothing moves. Where the
        batch has one value a channel, a single real row of [B, C], N = 0 is for
        the running ones: nothing would be left of the row else.

    Raises:
      InputError: `momentum` or `epsilon` is out of range, or `mask` has not one
        value a row.
    """
    if not 0 <= self.momentum <= 1 or self.epsilon <= 0:
      raise InputError(
        'BatchNorm needs 0 <= momentum <= 1 and epsilon > 0; got '
        f'momentum={self.momentum}, epsilon={self.epsilon}'
      )
    if mask is not None and mask.shape != x.shape[:1]:
      raise InputError(f'mask is one a row, {x.shape[:1]}; got {mask.shape}')
    channels = x.shape[-1]
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros_init(), (channels,))
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, (channels,), jnp.float32
    )
    values = x.astype(jnp.float32)
    if mask is not None:  # Or 0 * NaN of padding would be in the gradient.
      real = mask.reshape((-1,) + (1,) * (x.ndim - 1)) > 0
      values = jnp.where(real | jnp.isfinite(values), values, 0.0)
    mean, var = running_mean.value, running_var.value
    if train:
      mean, var, num_rows = _moments(values, mask, around=mean)
      if not self.is_initializing():
        keep = jnp.where(num_rows > 0, self.momentum, 1.0)
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * var
    elif prior is not None:
      own_mean, own_var, num_rows = _moments(values, mask, around=mean)
      own = num_rows / jnp.where(num_rows > 0, num_rows + prior, 1.0)
      alone = num_rows * num_positions(x) < 2
      own = jnp.where(alone & (prior == 0), 0.0, own)
      mean = own * own_mean + (1 - own) * mean
      var = own * own_var + (1 - own) * var
    gain = jax.lax.rsqrt(var + self.epsilon) * scale.astype(jnp.float32)
    mean, gain, bias = (
      _beside(values, x) for x in (mean, gain, bias.astype(jnp.float32))
    )
    normal = (values - mean) * gain + bias
    own = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32
    return normal.astype(own if self.dtype is None else self.dtype)


def num_positions(x: jax.Array) -> int:
  """Values that a row [..., C] of [B, ..., C] has of each channel."""
  return math.prod(x.shape[1:-1])


def _beside(x, channels):
  """A number for each channel [C] with as many axes as x."""
  return jnp.expand_dims(channels, tuple(range(x.ndim - 1)))


def _moments(x, mask, *, around):
  """Mean [C], biased variance [C] and number [] of all devices' real rows.

  Both moments come from one reduction of sums around a constant near the mean
  (the running one), which costs no accuracy once that has settled; sums around
  zero lose the variance of channels whose mean is large.
  """
  axes = tuple(range(x.ndim - 1))
  if mask is None:
    mask = jnp.ones(x.shape[:1])
  real = mask.reshape((-1,) + (1,) * (x.ndim - 1)) > 0
  shifted = jnp.where(real, x - _beside(x, around), 0.0)
  num_rows, first, second = parallel.psum(
    (
      (mask > 0).sum().astype(jnp.float32),
      shifted.sum(axes),
      jnp.square(shifted).sum(axes),
    )
  )
  divisor = jnp.maximum(num_rows * num_positions(x), 1.0)
  offset = first / divisor
  # Rounding may leave a tiny negative variance where all values are equal.
  var = jnp.maximum(second / divisor - jnp.square(offset), 0.0)
  return around + offset, var, num_rows
