"""Device code: the transformer block of ViTGAN's generators and discriminators.

Lee et al., 'ViTGAN: Training GANs with Vision Transformers', ICLR 2022
(https://arxiv.org/abs/2107.04589).
"""

import flax.linen as nn
import jax

from repjax.layers import l2_attention
from repjax.layers import self_modulation
from repjax.layers import spectral_norm
from repjax.types import check_range


class GanBlock(nn.Module):
  """h + MSA(norm(h)), then h + MLP(norm(h)).

  Norms are modulated where a latent is given, as in generators; else they are
  plain layer norms.

  Attributes:
    mlp_dim: Width of the MLP's hidden layer.
    num_heads: Attention heads.
    attention: Kind of scores; see `layers.l2_attention`.
    norm: Spectral norm of all kernels; see `layers.spectral_norm`.
  """

  mlp_dim: int
  num_heads: int
  attention: l2_attention.Kind
  norm: spectral_norm.Kind

  @nn.compact
  def __call__(
    self, tokens: jax.Array, latent: jax.Array | None = None, *, train: bool
  ) -> jax.Array:
    """Maps tokens.

    Args:
      tokens: h, [B, L, D].
      latent: w, [B, W], or None.
      train: Whether estimates of spectral norms move.

    Returns:
      [B, L, D].
    """
    check_range('[1, inf)', mlp_dim=self.mlp_dim)
    attend = l2_attention.SelfAttention(
      self.num_heads, kind=self.attention, norm=self.norm, name='attention'
    )
    x = modulated(tokens, latent, name='attention_norm')
    tokens = tokens + attend(x, train=train)
    x = modulated(tokens, latent, name='mlp_norm')
    for width, name in ((self.mlp_dim, 'hidden'), (tokens.shape[-1], 'out')):
      dense = spectral_norm.SpectralDense(width, kind=self.norm, name=name)
      x = dense(x, train=train)
      x = nn.gelu(x) if name == 'hidden' else x
    return tokens + x


def modulated(
  tokens: jax.Array, latent: jax.Array | None, *, name: str
) -> jax.Array:
  """Layer normalisation, modulated by a latent where there is one.

  To be called in a compact method of the module that has the layer.

  Args:
    tokens: [B, L, D].
    latent: [B, W], or None.
    name: Of the layer.

  Returns:
    [B, L, D].
  """
  if latent is None:
    return nn.LayerNorm(name=name)(tokens)
  return self_modulation.SelfModulatedNorm(name=name)(tokens, latent)
