"""Device code: spectral norms of kernels, followed by power iteration.

| kind | effective kernel | source |
|---|---|---|
| 'improved' | s0 W / s(W), s0 that at the beginning | ViTGAN |
| 'plain' | W / s(W) | Miyato et al. |
| 'published' | 'improved', with vectors that are never stored | ViTGAN's code |
| 'none' | W | |

s(W) is the largest singular value. Lee et al., 'ViTGAN', ICLR 2022
(https://arxiv.org/abs/2107.04589); Miyato et al., 'Spectral Normalization for
Generative Adversarial Networks', ICLR 2018 (https://arxiv.org/abs/1802.05957).

The authors' code takes one step of power iteration from the same random vector
at every call, which finds no singular value: their norm is another function of
W. Here the vector is kept, moves by one step a training pass, and is saved.
"""

import math
from typing import Literal
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_choice
from repjax.types import check_range

Kind = Literal['improved', 'plain', 'published', 'none']

# The collection with the state of the iteration.
COLLECTION = 'spectral'


class SpectralDense(nn.Module):
  """A dense layer whose kernel has a spectral norm of its own.

  The kernel is drawn from N(0, 1) and scaled by 1 / sqrt(D), so that rates are
  equal (`layers.equalised`). The collection 'spectral' holds `vector`
  [features], the estimate of the right singular vector, and `initial`, the norm
  at the beginning. Gradients go through W and s(W), not through the vectors.

  Attributes:
    features: Width of the output.
    kind: Which norm.
    use_bias: Whether there is a bias.
  """

  features: int
  kind: Kind = 'improved'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [..., D] to [..., features].

    Args:
      x: Inputs.
      train: Whether the estimate moves by a step, where 'spectral' is mutable.
    """
    check_choice('kind', self.kind, get_args(Kind))
    check_range('[1, inf)', features=self.features)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      x = x.astype(jnp.float32)
    dim = x.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.normal(1.0), (dim, self.features)
    )
    kernel = kernel / math.sqrt(dim)
    if self.kind != 'none':
      kernel = self._normalised(kernel.astype(jnp.float32), train=train)
    outputs = x @ kernel.astype(x.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
      outputs += bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return outputs

  @jax.default_matmul_precision('highest')
  def _normalised(self, kernel, *, train):
    published = self.kind == 'published'
    constant = jax.lax.stop_gradient(kernel)

    def begin():
      # Random where nothing is to converge, as in the authors' code.
      if published:
        draw = jax.random.normal(self.make_rng('params'), (self.features,))
        return _unit(draw)
      return right_vector(constant)

    vector = self.variable(COLLECTION, 'vector', begin)
    initial = self.variable(COLLECTION, 'initial', lambda: norm(constant))
    left = _unit(constant @ vector.value)
    right = vector.value
    if train or published:
      right = _unit(constant.T @ left)
    moves = train and not published and not self.is_initializing()
    if moves and self.is_mutable_collection(COLLECTION):
      vector.value = right
    sigma = left @ (kernel @ right)
    target = 1.0 if self.kind == 'plain' else initial.value
    return kernel * (target / jnp.maximum(sigma, 1e-12))


@jax.default_matmul_precision('highest')
def right_vector(kernel: jax.Array) -> jax.Array:
  """The right singular vector of the largest singular value.

  By 64 steps of power iteration, done as six squarings of a Gram matrix.

  Args:
    kernel: [D, F].

  Returns:
    [F], of norm 1.
  """
  wide = kernel.shape[0] < kernel.shape[1]
  gram = kernel @ kernel.T if wide else kernel.T @ kernel
  for _ in range(6):
    gram = gram / jnp.maximum(jnp.trace(gram), 1e-30)
    gram = gram @ gram
  # A power of a positive matrix of one large eigenvalue: its largest column.
  vector = gram[:, jnp.argmax(jnp.diagonal(gram))]
  return _unit(kernel.T @ vector if wide else vector)


@jax.default_matmul_precision('highest')
def norm(kernel: jax.Array) -> jax.Array:
  """The largest singular value of a matrix, a scalar."""
  return jnp.sqrt(jnp.square(kernel @ right_vector(kernel)).sum())


def _unit(x):
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(), 1e-24))
