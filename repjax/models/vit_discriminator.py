"""Device code: ViTGAN's discriminator, a ViT that is Lipschitz by layers.

Lee, Chang, Jiang, Zhang, Tu and Liu, 'ViTGAN: Training GANs with Vision
Transformers', ICLR 2022 (https://arxiv.org/abs/2107.04589).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import l2_attention
from repjax.layers import patches
from repjax.layers import spectral_norm
from repjax.layers.positions import fourier_positions
from repjax.models import gan_block
from repjax.types import check_range


class VitDiscriminator(nn.Module):
  """Images -> logits of being real, from a class token.

  Images are of any size that patches tile. A training pass moves the estimates
  of spectral norms, which are in the collection 'spectral'.

  Attributes:
    patch_size: P.
    overlap: Pixels that a patch sees of its neighbours on each side; None is
      half a patch, as in the paper.
    hidden_dim: Width of the tokens.
    mlp_dim: Width of the blocks' hidden layers.
    num_heads: Attention heads.
    num_layers: Number of blocks.
    attention: Kind of scores; see `layers.l2_attention`.
    norm: Spectral norm of all kernels; see `layers.spectral_norm`.
    border: What lies around the image, 'zero' or 'reflect'.
    remat: Whether blocks are computed again in the backward pass.
  """

  patch_size: int = 4
  overlap: int | None = None
  hidden_dim: int = 384
  mlp_dim: int = 1536
  num_heads: int = 6
  num_layers: int = 4
  attention: l2_attention.Kind = 'l2'
  norm: spectral_norm.Kind = 'improved'
  border: patches.Border = 'zero'
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B], float32.

    Raises:
      InputError: If a size is out of range, or patches do not tile the image.
    """
    check_range('[1, inf)', hidden_dim=self.hidden_dim)
    check_range('[1, 10000]', num_layers=self.num_layers)

    def dense(x, width, name):
      made = spectral_norm.SpectralDense(width, kind=self.norm, name=name)
      return made(x, train=train)

    overlap = self.patch_size // 2 if self.overlap is None else self.overlap
    x = patches.extract_overlapping(
      image, self.patch_size, overlap=overlap, border=self.border
    )
    batch, rows, columns, _ = x.shape
    x = dense(x.reshape((batch, rows * columns, -1)), self.hidden_dim, 'embed')
    places = fourier_positions.FourierPositions(
      self.hidden_dim, name='positions'
    )(rows, columns)
    x = x + places.astype(x.dtype)[None]
    first = self.param(
      'token', nn.initializers.normal(1.0), (1, 1, self.hidden_dim)
    )
    first = jnp.broadcast_to(first.astype(x.dtype), (batch, 1, x.shape[-1]))
    x = jnp.concatenate([first, x], 1)

    def run(block, x):
      return block(x, train=train)

    run = nn.remat(run) if self.remat else run
    for i in range(self.num_layers):
      block = gan_block.GanBlock(
        self.mlp_dim,
        self.num_heads,
        attention=self.attention,
        norm=self.norm,
        name=f'block_{i}',
      )
      x = run(block, x)
    x = nn.LayerNorm(name='norm')(x[:, 0])
    x = nn.gelu(dense(x, self.hidden_dim, 'head_hidden'))
    return dense(x, 1, 'head')[:, 0].astype(jnp.float32)
