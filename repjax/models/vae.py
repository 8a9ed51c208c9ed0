"""Device code: a variational autoencoder of dense layers.

Kingma and Welling, 'Auto-Encoding Variational Bayes', ICLR 2014.
https://arxiv.org/abs/1312.6114
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class Bound(NamedTuple):
  """The two parts of -ELBO, in nats a row; their sum bounds -log p(x).

  Attributes:
    reconstruction: -E log p(x | z), [B].
    kl: KL(q(z | x) || p(z)), [B].
  """

  reconstruction: jax.Array
  kl: jax.Array


class Vae(nn.Module):
  """Dense layers `encoder_0`, ..., `code`, `decoder_0`, ..., `pixels`.

  Pixels in [0, 1] are probabilities of black and white, as is usual for MNIST.

  Attributes:
    features: Widths from the pixels to the code; the decoder's are reversed.
    code_dim: Size of the code z.
  """

  features: Sequence[int] = (128, 64)
  code_dim: int = 8

  @nn.compact
  def __call__(self, image: jax.Array, noise: jax.Array) -> Bound:
    """The bound for images and standard normal noise.

    Args:
      image: [B, ...], in [0, 1].
      noise: [B, code_dim].
    """
    check_range('[1, inf)', code_dim=self.code_dim)
    for width in self.features:
      check_range('[1, inf)', features=width)
    pixels = image.reshape((image.shape[0], -1))
    x = pixels
    for i, width in enumerate(self.features):
      x = nn.relu(nn.Dense(width, name=f'encoder_{i}')(x))
    code = nn.Dense(2 * self.code_dim, name='code')(x)
    mean, log_variance = jnp.split(code.astype(jnp.float32), 2, -1)
    x = mean + jnp.exp(log_variance / 2) * noise
    for i, width in enumerate(reversed(self.features)):
      x = nn.relu(nn.Dense(width, name=f'decoder_{i}')(x))
    logits = nn.Dense(math.prod(image.shape[1:]), name='pixels')(x)
    logits = logits.astype(jnp.float32)
    cross_entropy = jax.nn.softplus(logits) - pixels * logits
    kl = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return Bound(cross_entropy.sum(-1), kl.sum(-1) / 2)
