"""Device code: patches of pixels as functions of their coordinates.

Lee et al., 'ViTGAN', ICLR 2022 (https://arxiv.org/abs/2107.04589):
a token's vector modulates a small network that maps the position of a pixel in
its patch to its colour, in place of one linear map to all pixels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import equalised
from repjax.layers import patches
from repjax.layers.positions import fourier_positions
from repjax.types import check_range


class ModulatedDense(nn.Module):
  """A dense layer whose inputs are scaled by a style, row by row.

  Karras et al., 'Analyzing and Improving the Image Quality of StyleGAN', CVPR
  2020, eq. 1 and 3 (https://arxiv.org/abs/1912.04958), without convolution.

  Attributes:
    features: Width of the output.
    demodulate: Whether outputs are divided by the norm of their scaled weights.
  """

  features: int
  demodulate: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
    """Maps inputs.

    Args:
      x: [B or 1, L or 1, P, D].
      style: One vector for each P of them, [B, L, W].

    Returns:
      [B, L, P, features].
    """
    dim = x.shape[-1]
    scale = equalised.EqualisedDense(dim, bias_init=1.0, name='style')(style)
    kernel = self.param(
      'kernel', nn.initializers.normal(1.0), (dim, self.features)
    )
    kernel = (kernel / math.sqrt(dim)).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    outputs = (x * scale[:, :, None]) @ kernel
    if self.demodulate:
      norms = jnp.square(scale) @ jnp.square(kernel)  # [B, L, features]
      outputs = outputs * jax.lax.rsqrt(norms + 1e-8)[:, :, None]
    return outputs + bias.astype(x.dtype).reshape((1, 1, 1, -1))


class ImplicitPatches(nn.Module):
  """Tokens -> an image of patches, by a network of two modulated layers.

  Attributes:
    patch_size: P.
    channels: C.
    hidden_dim: Width of the network, and of the positions.
  """

  patch_size: int
  channels: int
  hidden_dim: int

  @nn.compact
  def __call__(self, tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Makes an image.

    Args:
      tokens: y, [B, rows * columns, D].
      grid: (rows, columns) of patches.

    Returns:
      [B, rows * P, columns * P, C].
    """
    check_range('[1, inf)', patch_size=self.patch_size, channels=self.channels)
    side = self.patch_size
    places = fourier_positions.FourierPositions(
      self.hidden_dim, name='positions'
    )(side, side).astype(tokens.dtype)
    x = ModulatedDense(self.hidden_dim, name='hidden')(
      places[None, None], tokens
    )
    x = ModulatedDense(self.channels, demodulate=False, name='pixels')(
      equalised.leaky_relu(x), tokens
    )  # [B, L, P * P, C]
    x = x.reshape((x.shape[0], *grid, side, side, self.channels))
    return patches.join(x)
