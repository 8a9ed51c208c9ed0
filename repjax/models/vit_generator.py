"""Device code: ViTGAN's generator.

Lee, Chang, Jiang, Zhang, Tu and Liu, 'ViTGAN: Training GANs with Vision
Transformers', ICLR 2022 (https://arxiv.org/abs/2107.04589).

A latent z becomes w, which modulates the norms of a transformer whose tokens
begin as positions; a token becomes a patch. What is drawn enters through the
norms alone.
"""

from typing import Literal
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import equalised
from repjax.layers import implicit_patches
from repjax.layers import l2_attention
from repjax.layers import patches
from repjax.layers import spectral_norm
from repjax.layers.positions import fourier_positions
from repjax.models import gan_block
from repjax.types import check_choice
from repjax.types import check_range

Pixels = Literal['implicit', 'linear']


class Mapping(nn.Module):
  """z -> w: a normalised latent through an MLP of slow layers (StyleGAN).

  Attributes:
    dim: Width of all layers, and of w.
    num_layers: How many; 0 gives the normalised z.
    rate: What their learning rates are multiplied with.
  """

  dim: int
  num_layers: int = 8
  rate: float = 0.01

  @nn.compact
  def __call__(self, latent: jax.Array) -> jax.Array:
    """[B, Z] -> [B, dim]; [B, Z] without layers."""
    check_range('[0, 1000]', mapping_layers=self.num_layers)
    x = equalised.pixel_norm(latent)
    for i in range(self.num_layers):
      dense = equalised.EqualisedDense(
        self.dim, rate=self.rate, name=f'layer_{i}'
      )
      x = equalised.leaky_relu(dense(x))
    return x


class VitGenerator(nn.Module):
  """Latents -> images, with values around [-1, 1] and no bound.

  Attributes:
    image_size: Side of the image.
    channels: Channels of the image.
    patch_size: P, a divisor of the side.
    latent_dim: Z, of the latent.
    hidden_dim: Width of the tokens and of w.
    mlp_dim: Width of the blocks' hidden layers.
    num_heads: Attention heads.
    num_layers: Number of blocks.
    mapping_layers: Layers from z to w.
    pixels: How a token becomes a patch: by an 'implicit' network of
      coordinates, or one 'linear' map (the baseline of the paper's ablation).
    attention: Kind of scores. The paper has dot products here; its authors'
      code has 'l2_published' and norm='published' in the generator.
    norm: Spectral norm of the blocks' kernels.
    remat: Whether blocks are computed again in the backward pass.
  """

  image_size: int = 32
  channels: int = 3
  patch_size: int = 4
  latent_dim: int = 384
  hidden_dim: int = 384
  mlp_dim: int = 1536
  num_heads: int = 6
  num_layers: int = 4
  mapping_layers: int = 8
  pixels: Pixels = 'implicit'
  attention: l2_attention.Kind = 'dot'
  norm: spectral_norm.Kind = 'none'
  remat: bool = False

  @nn.compact
  def __call__(self, latent: jax.Array, *, train: bool) -> jax.Array:
    """[B, Z] -> [B, image_size, image_size, channels], float32.

    Raises:
      InputError: If a size is out of range, or patches do not tile the image.
    """
    check_choice('pixels', self.pixels, get_args(Pixels))
    check_range('[1, inf)', latent_dim=self.latent_dim)
    check_range('[1, inf)', channels=self.channels, hidden_dim=self.hidden_dim)
    check_range('[1, 10000]', num_layers=self.num_layers)
    grid = patches.grid_shape(self.image_size, self.patch_size)
    w = Mapping(self.hidden_dim, self.mapping_layers, name='mapping')(latent)
    tokens = fourier_positions.FourierPositions(
      self.hidden_dim, name='positions'
    )(*grid).astype(latent.dtype)[None]
    tokens = jnp.broadcast_to(tokens, (latent.shape[0], *tokens.shape[1:]))

    def run(block, tokens, w):
      return block(tokens, w, train=train)

    run = nn.remat(run) if self.remat else run
    for i in range(self.num_layers):
      block = gan_block.GanBlock(
        self.mlp_dim,
        self.num_heads,
        attention=self.attention,
        norm=self.norm,
        name=f'block_{i}',
      )
      tokens = run(block, tokens, w)
    tokens = gan_block.modulated(tokens, w, name='norm')
    if self.pixels == 'implicit':
      image = implicit_patches.ImplicitPatches(
        self.patch_size, self.channels, self.hidden_dim, name='pixels'
      )(tokens, grid)
    else:
      side = self.patch_size
      x = equalised.EqualisedDense(side * side * self.channels, name='pixels')(
        tokens
      )
      x = x.reshape((x.shape[0], *grid, side, side, self.channels))
      image = patches.join(x)
    return image.astype(jnp.float32)
