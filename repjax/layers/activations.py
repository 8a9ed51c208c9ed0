"""Device code: activations by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_choice


def gelu_exact(x: jax.Array) -> jax.Array:
  """Exact gelu (Hendrycks and Gimpel, 2016): x Phi(x), by erf, in float32.

  https://arxiv.org/abs/1606.08415

  `nn.gelu(approximate=False)` takes erfc, which takes XLA:CPU 3 times as long.
  """
  wide = x.astype(jnp.float32)
  return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def gelu_quick(x: jax.Array) -> jax.Array:
  """X sigmoid(1.702 x) (Hendrycks and Gimpel, 2016, section 2), as in CLIP.

  https://arxiv.org/abs/1606.08415
  """
  return x * nn.sigmoid(1.702 * x)


_BY_NAME = {
  'gelu_tanh': nn.gelu,
  'gelu_exact': gelu_exact,
  'gelu_quick': gelu_quick,
  'relu': nn.relu,
}


def by_name(name: str) -> Callable[[jax.Array], jax.Array]:
  """'gelu_tanh' (GPT-2), 'gelu_exact' (BERT), 'gelu_quick' (CLIP) or 'relu'.

  The last is that of Vaswani et al. (https://arxiv.org/abs/1706.03762).

  Raises:
    InputError: There is no such activation.
  """
  check_choice('activation', name, tuple(_BY_NAME))
  return _BY_NAME[name]
