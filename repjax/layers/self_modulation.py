"""Device code: layer normalisation whose scale and shift come from a latent.

Lee, Chang, Jiang, Zhang, Tu and Liu, 'ViTGAN: Training GANs with Vision
Transformers', ICLR 2022 (https://arxiv.org/abs/2107.04589), after
Chen et al., 'On Self Modulation for Generative Adversarial Networks', ICLR 2019
(https://arxiv.org/abs/1810.01365).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import equalised


class SelfModulatedNorm(nn.Module):
  """SLN(h, w) = (1 + gamma(w)) * LN(h) + beta(w), the same for all tokens.

  gamma and beta are linear in w. The paper writes gamma without the 1; the
  authors' code has it, as it has an epsilon of 1e-3.

  Attributes:
    epsilon: Added to variances.
  """

  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, tokens: jax.Array, latent: jax.Array) -> jax.Array:
    """Normalises tokens.

    Args:
      tokens: h, [B, L, D].
      latent: w, [B, W].

    Returns:
      [B, L, D].
    """
    dim = tokens.shape[-1]
    gamma = equalised.EqualisedDense(dim, name='gamma')(latent)
    beta = equalised.EqualisedDense(dim, name='beta')(latent)
    x = tokens.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True)
    normal = (x * jax.lax.rsqrt(variance + self.epsilon)).astype(tokens.dtype)
    return normal * (1 + gamma[:, None]) + beta[:, None]
