"""Device code: discrete variational autoencoders, which tokenize images.

DALL-E's (Ramesh et al., 'Zero-Shot Text-to-Image Generation', ICML 2021, stage
one, https://arxiv.org/abs/2102.12092), whose encoder is BEiT's published
tokenizer. `repjax.methods.dvae` trains them.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import patches
from repjax.types import InputError


class ResidualBlock(nn.Module):
  """x + conv1(relu(conv3(relu(conv3(x))))), [B, h, w, C] -> [B, h, w, C]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    branch = nn.relu(nn.Conv(width, (3, 3), name='first')(x))
    branch = nn.relu(nn.Conv(width, (3, 3), name='second')(branch))
    return x + nn.Conv(width, (1, 1), name='out')(branch)


def _call(layer, x):
  return layer(x)


class Encoder(nn.Module):
  """A small encoder: strided convolutions, then residual blocks.

  Attributes:
    vocab_size: Number of visual tokens V.
    hidden_dim: Channels of all layers but the last.
    num_halvings: Number n of convolutions of 4 x 4 with stride 2, >= 0.
    num_blocks: Number of residual blocks.
    remat: Whether these are computed again in the backward pass.
  """

  vocab_size: int
  _: dataclasses.KW_ONLY
  hidden_dim: int
  num_halvings: int
  num_blocks: int = 1
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Images [B, H, W, C] -> logits [B, H / 2^n, W / 2^n, V].

    Raises:
      InputError: The sides are no multiples of 2^n.
    """
    _check_sides(image, 2**self.num_halvings)
    x = image
    for i in range(self.num_halvings):
      x = nn.Conv(
        self.hidden_dim, (4, 4), strides=2, padding=1, name=f'down_{i}'
      )(x)
      x = nn.relu(x)
    if not self.num_halvings:
      x = nn.relu(nn.Conv(self.hidden_dim, (3, 3), name='input')(x))
    run = nn.remat(_call) if self.remat else _call
    for i in range(self.num_blocks):
      x = run(ResidualBlock(name=f'block_{i}'), x)
    return nn.Conv(self.vocab_size, (1, 1), name='logits')(x)


class Decoder(nn.Module):
  """The mirror image of `Encoder`.

  Attributes:
    num_channels: Channels of the images.
    hidden_dim: Channels of all layers but the last.
    num_halvings: Number n of transposed convolutions with stride 2, >= 0.
    num_blocks: Number of residual blocks.
    remat: Whether these are computed again in the backward pass.
  """

  num_channels: int
  _: dataclasses.KW_ONLY
  hidden_dim: int
  num_halvings: int
  num_blocks: int = 1
  remat: bool = False

  @nn.compact
  def __call__(self, weights: jax.Array) -> jax.Array:
    """Images of tokens or of mixtures of them.

    Args:
      weights: Weight of each visual token, summing to 1, [B, h, w, V].

    Returns:
      [B, h 2^n, w 2^n, C].
    """
    # The rows of this kernel are the codebook.
    x = nn.Dense(self.hidden_dim, use_bias=False, name='codebook')(weights)
    run = nn.remat(_call) if self.remat else _call
    for i in range(self.num_blocks):
      x = run(ResidualBlock(name=f'block_{i}'), x)
    for i in range(self.num_halvings):
      x = nn.ConvTranspose(
        self.hidden_dim, (4, 4), strides=(2, 2), name=f'up_{i}'
      )(x)
      x = nn.relu(x)
    return nn.Conv(self.num_channels, (1, 1), name='pixels')(x)


class DalleBlock(nn.Module):
  """Residual block of DALL-E's encoder.

  Attributes:
    width: Channels of the result; the branch has a quarter of them inside.
    gain: What the branch is multiplied by.
  """

  width: int
  gain: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, h, w, width]."""
    branch = x
    for i in range(3):
      branch = nn.Conv(self.width // 4, (3, 3), name=f'conv_{i + 1}')(
        nn.relu(branch)
      )
    branch = nn.Conv(self.width, (1, 1), name='conv_4')(nn.relu(branch))
    if x.shape[-1] != self.width:
      x = nn.Conv(self.width, (1, 1), name='id_path')(x)
    return x + self.gain * branch


class DalleEncoder(nn.Module):
  """The encoder that was published with DALL-E, 8 pixels a token.

  With its defaults, the layers, widths and numbers of parameters of the
  published file. It wants pixels in [0, 1] as `dalle_pixels` maps them.

  Attributes:
    vocab_size: Number of visual tokens V.
    hidden_dim: Width of the first group; it doubles with each of four.
    blocks_per_group: Residual blocks of a group.
    remat: Whether these are computed again in the backward pass.
  """

  vocab_size: int = 8192
  _: dataclasses.KW_ONLY
  hidden_dim: int = 256
  blocks_per_group: int = 2
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Images [B, H, W, C] -> logits [B, H / 8, W / 8, V].

    Raises:
      InputError: The sides are no multiples of 8.
    """
    _check_sides(image, 8)
    gain = 1 / (4 * self.blocks_per_group) ** 2
    run = nn.remat(_call) if self.remat else _call
    x = nn.Conv(self.hidden_dim, (7, 7), name='input')(image)
    for group in range(4):
      if group:
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
      for i in range(self.blocks_per_group):
        block = DalleBlock(
          self.hidden_dim * 2**group,
          gain,
          name=f'group_{group + 1}_block_{i + 1}',
        )
        x = run(block, x)
    return nn.Conv(self.vocab_size, (1, 1), name='logits')(nn.relu(x))


def dalle_pixels(image: jax.Array, *, epsilon: float = 0.1) -> jax.Array:
  """Pixels in [0, 1] -> [epsilon, 1 - epsilon], as DALL-E's encoder wants."""
  return (1 - 2 * epsilon) * image + epsilon


class Dvae(nn.Module):
  """Encoder and decoder, between them a relaxed draw of one token a place.

  Attributes:
    encoder: Images -> logits [B, h, w, V].
    decoder: Weights of tokens [B, h, w, V] -> images.
    remat: Whether both are computed again in the backward pass, each as a
      whole; by `remat` of their own, block by block.
  """

  encoder: nn.Module
  decoder: nn.Module
  remat: bool = False

  def __call__(
    self,
    image: jax.Array,
    noise: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike,
    *,
    straight_through: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Reconstructs through the Gumbel-softmax (Jang et al., 2017).

    https://arxiv.org/abs/1611.01144

    Args:
      image: [B, H, W, C].
      noise: Standard Gumbel, [B, h, w, V]; 0.0 for the likeliest mixture.
      temperature: How soft the draw is, > 0; broadcast to [B, h, w, V].
      straight_through: Whether the decoder sees one token a place, with the
        gradient of the relaxed draw, in place of that draw.

    Returns:
      (images [B, H, W, C], logits [B, h, w, V]).
    """
    run = nn.remat(_call) if self.remat else _call
    logits = run(self.encoder, image)
    weights = jax.nn.softmax((logits + noise) / temperature)
    if straight_through:
      token = jax.nn.one_hot(weights.argmax(-1), weights.shape[-1])
      weights += jax.lax.stop_gradient(token - weights)
    return run(self.decoder, weights), logits

  def encode(self, image: jax.Array) -> jax.Array:
    """Logits of tokens, [B, H, W, C] -> [B, h, w, V]."""
    return self.encoder(image)

  def decode(self, ids: jax.Array) -> jax.Array:
    """Images of tokens, [B, h, w] -> [B, H, W, C]."""
    return self.decoder(jax.nn.one_hot(ids, self.encoder.vocab_size))


def uniform_kl(logits: jax.Array) -> jax.Array:
  """KL of softmax(logits) from the uniform distribution, [..., V] -> [...]."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return (jnp.exp(log_probs) * log_probs).sum(-1) + jnp.log(logits.shape[-1])


def _check_sides(image, multiple):
  try:
    patches.grid_shape(image.shape[1:3], multiple)
  except InputError as error:
    raise InputError(
      f'images of {image.shape[1]} x {image.shape[2]} pixels cannot be '
      f'tokenized: both sides must be multiples of {multiple}'
    ) from error
