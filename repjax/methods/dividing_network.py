"""Device code: the network that divides the rows of a class into two groups.

Dense layers of spectral norm 1 with layer normalisation and relu, as in the
authors' code of 'Systematic generalisation with group invariant predictions'
(Ahmed et al., ICLR 2021, https://openreview.net/forum?id=b9PoimzZFJ).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from repjax import types


def init(
  rng: jax.Array, dim: int, widths: Sequence[int]
) -> tuple[types.PyTree, list[jax.Array]]:
  """(parameters, left singular vectors) of the dense layers.

  Args:
    rng: Of both.
    dim: Of a row of features.
    widths: Of the hidden layers.
  """
  params, sides = [], []
  glorot = jax.nn.initializers.glorot_uniform()
  for index, width in enumerate((*widths, 1)):
    rng_kernel, rng_side = jax.random.split(jax.random.fold_in(rng, index))
    layer = {'kernel': glorot(rng_kernel, (dim, width))}
    if index < len(widths):
      # One bias before and one after normalisation.
      layer.update(bias=jnp.zeros(width), shift=jnp.zeros(width))
    params.append(layer)
    sides.append(jax.random.normal(rng_side, (dim,)))
    dim = width
  return params, sides


def apply(
  params: types.PyTree, sides: list[jax.Array], x: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
  """(output [n], moved vectors) of features [n, D]."""
  moved = []
  for layer, side in zip(params, sides, strict=True):
    kernel, side = _of_norm_one(layer['kernel'], side)
    moved.append(side)
    x = x @ kernel
    if 'bias' in layer:
      x = x + layer['bias'][None]
      x = jax.nn.standardize(x, epsilon=1e-5) + layer['shift'][None]
      x = jax.nn.relu(x)
  return x[:, 0], moved


@jax.default_matmul_precision('highest')
def _of_norm_one(kernel, side):
  """(a kernel over its spectral norm, its left singular vector)."""
  # One power iteration a step, which goes on where the last one ended.
  right = _unit(side @ kernel)
  side = jax.lax.stop_gradient(_unit(kernel @ right))
  return kernel / (side @ kernel @ jax.lax.stop_gradient(right)), side


def _unit(x):
  return x / (jnp.linalg.norm(x) + 1e-12)
