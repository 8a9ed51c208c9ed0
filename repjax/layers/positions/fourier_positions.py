"""Device code: positions as sines of a learned linear map of coordinates.

Anokhin et al., 'Image Generators with Conditionally-Independent Pixel
Synthesis', CVPR 2021 (https://arxiv.org/abs/2011.13775).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


def coordinates(height: int, width: int) -> jax.Array:
  """(x, y) of the places of a grid, row by row, [height * width, 2].

  Both go from -1 at the first place to 1 at the last one, ends included; a
  single place is at -1, as in ViTGAN's code.
  """
  check_range('[1, inf)', height=height, width=width)
  rows, columns = jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width)
  rows, columns = jnp.meshgrid(rows, columns, indexing='ij')
  return jnp.stack([columns.ravel(), rows.ravel()], -1)


class FourierPositions(nn.Module):
  """sin(W (x, y) + b) of each place of a grid.

  W is drawn from U(-sqrt(9/2), sqrt(9/2)) and b from U(-1/sqrt(2), 1/sqrt(2)),
  as in the code of CIPS and ViTGAN.

  Attributes:
    dim: Size D of a position.
  """

  dim: int

  @nn.compact
  def __call__(self, height: int, width: int) -> jax.Array:
    """Positions of a grid, [height * width, D], row by row."""
    check_range('[1, inf)', dim=self.dim)
    kernel = self.param('kernel', _uniform(math.sqrt(9 / 2)), (2, self.dim))
    bias = self.param('bias', _uniform(math.sqrt(1 / 2)), (self.dim,))
    places = coordinates(height, width).astype(kernel.dtype)
    return jnp.sin(places @ kernel + bias.reshape((1, -1)))


def _uniform(limit):
  def init(rng, shape, dtype=jnp.float32):
    return jax.random.uniform(rng, shape, dtype, -limit, limit)

  return init
