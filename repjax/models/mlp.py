"""Device code: a multi-layer perceptron over flattened images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class Mlp(nn.Module):
  """Dense layers `hidden_0`, `hidden_1`, ... with relu, then `head`.

  Attributes:
    num_classes: Width of the logits.
    features: Widths of the hidden layers; () is a linear model.
    use_bias: Whether layers have biases.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_classes: int
  features: Sequence[int] = (128, 128)
  use_bias: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, ...] -> logits [B, num_classes], float32."""
    del train, mask  # Rows do not see each other, and nothing is random.
    for width in self.features:
      check_range('[1, inf)', features=width)
    x = image.reshape((image.shape[0], -1))
    for index, width in enumerate(self.features):
      layer = nn.Dense(
        width,
        use_bias=self.use_bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f'hidden_{index}',
      )
      x = nn.relu(layer(x))
    logits = nn.Dense(
      self.num_classes, use_bias=self.use_bias, dtype=self.dtype, name='head'
    )(x)
    return logits.astype(jnp.float32)
