"""Device code: a convolutional generator and discriminator of small images.

After Radford, Metz and Chintala, 'Unsupervised Representation Learning with
Deep Convolutional Generative Adversarial Networks', ICLR 2016
(https://arxiv.org/abs/1511.06434), with the norms of later GANs: of pixels in
the generator (Karras et al., ICLR 2018, https://arxiv.org/abs/1710.10196),
spectral in the discriminator (Miyato et al., ICLR 2018,
https://arxiv.org/abs/1802.05957). No row sees another one.

Convolutions are products over unfolded windows (`layers.unfolded_conv`), which
many models side by side want on CPUs, and cost memory for the windows.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import equalised
from repjax.layers import spectral_norm
from repjax.layers import unfolded_conv
from repjax.types import InputError
from repjax.types import check_range


class ConvGenerator(nn.Module):
  """Latents -> images: dense to a small map, then doubled stage by stage.

  Layers are `dense`, `conv_0`, ..., `pixels`.

  Attributes:
    image_size: Side of the image, a multiple of 2^(number of stages - 1).
    image_channels: Channels of the image.
    latent_dim: Z, of the latent.
    channels: Of each stage, the smallest map first; a stage is one convolution,
      and sides double in front of all but the first.
    remat: Whether stages are computed again in the backward pass, which then
      keeps no windows.
  """

  image_size: int = 32
  image_channels: int = 3
  latent_dim: int = 128
  channels: Sequence[int] = (256, 128, 64)
  remat: bool = False

  @nn.compact
  def __call__(self, latent: jax.Array, *, train: bool) -> jax.Array:
    """[B, Z] -> [B, image_size, image_size, image_channels], float32."""
    del train  # It is the same.
    check_range('[1, inf)', latent_dim=self.latent_dim)
    for width in self.channels:
      check_range('[1, inf)', channels=width)
    side = _smallest(self.image_size, self.channels)
    x = equalised.pixel_norm(latent)
    x = equalised.EqualisedDense(side * side * self.channels[0], name='dense')(
      x
    )
    x = x.reshape((x.shape[0], side, side, -1))
    x = equalised.pixel_norm(equalised.leaky_relu(x))

    def run(conv, x):
      return equalised.pixel_norm(equalised.leaky_relu(conv(_windows(x))))

    run = nn.remat(run) if self.remat else run
    for i, width in enumerate(self.channels):
      if i:
        x = x.repeat(2, 1).repeat(2, 2)
      x = run(equalised.EqualisedDense(width, name=f'conv_{i}'), x)
    x = equalised.EqualisedDense(self.image_channels, name='pixels')(x)
    return x.astype(jnp.float32)


class ConvDiscriminator(nn.Module):
  """Images -> logits of being real; sides are halved behind each convolution.

  Layers are `conv_0`, ..., `hidden`, `head`.

  Attributes:
    channels: Of each stage, the largest map first; a stage is one convolution,
      and the last one keeps the side.
    hidden_dim: Width of the layer in front of the head.
    norm: Spectral norm of all kernels, as matrices of windows by channels.
    remat: Whether stages are computed again in the backward pass, which then
      keeps no windows.
  """

  channels: Sequence[int] = (64, 128, 256)
  hidden_dim: int = 256
  norm: spectral_norm.Kind = 'improved'
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
    """[B, H, W, C] -> [B], float32."""
    for width in (*self.channels, self.hidden_dim):
      check_range('[1, inf)', channels=width)
    _smallest(image.shape[1], self.channels)
    _smallest(image.shape[2], self.channels)

    def layer(width, name):
      return spectral_norm.SpectralDense(width, kind=self.norm, name=name)

    def run(conv, x):
      return equalised.leaky_relu(conv(_windows(x), train=train))

    run = nn.remat(run) if self.remat else run
    x = image
    for i, width in enumerate(self.channels):
      x = run(layer(width, f'conv_{i}'), x)
      if i < len(self.channels) - 1:
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape((x.shape[0], -1))
    hidden = layer(self.hidden_dim, 'hidden')(x, train=train)
    logit = layer(1, 'head')(equalised.leaky_relu(hidden), train=train)
    return logit[:, 0].astype(jnp.float32)


def _windows(x):
  """3 x 3 windows around all places, zeros around the map."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return unfolded_conv.unfold(x, size=3, stride=1)


def _smallest(size, channels):
  if not channels:
    raise InputError('channels is empty: give one number a stage')
  factor = 2 ** (len(channels) - 1)
  if size % factor:
    raise InputError(
      f'{len(channels)} stages of channels={tuple(channels)} need sides that '
      f'are multiples of {factor}; got {size}'
    )
  return size // factor
