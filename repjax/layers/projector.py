"""Device code: what stands between features and a contrastive loss.

Chen, Kornblith, Norouzi and Hinton, 'A Simple Framework for Contrastive
Learning of Visual Representations', ICML 2020, section 2.1
(https://arxiv.org/abs/2002.05709); biases as in the code of Phoo and Hariharan,
ICLR 2021 (https://arxiv.org/abs/2010.07734).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Projector(nn.Module):
  """What is contrasted: two dense layers with a relu, as in SimCLR.

  Biases begin uniform in +- 1 / sqrt(inputs): what is made of features that are
  all 0 has a direction, too.

  Attributes:
    features: Width of the embedding; that of the hidden layer is the input's.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, D] -> [B, features]."""
    reach = x.shape[-1] ** -0.5

    def biases(rng, shape, dtype=jnp.float32):
      return jax.random.uniform(rng, shape, dtype, -reach, reach)

    x = nn.Dense(x.shape[-1], bias_init=biases, name='hidden')(x)
    return nn.Dense(self.features, bias_init=biases, name='out')(nn.relu(x))
