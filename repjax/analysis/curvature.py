"""Device code: how sharp a minimum is, and the loss around it.

Foret et al., 'Sharpness-Aware Minimization for Efficiently Improving
Generalization', ICLR 2021 (https://arxiv.org/abs/2010.01412), section 4.2 and
figure 3, compare minima by the largest eigenvalue of the Hessian (of a network
without batch norm, which would obscure it). Li et al., 'Visualizing the Loss
Landscape of Neural Nets', NeurIPS 2018 (https://arxiv.org/abs/1712.09913), draw
the loss along random directions.

`loss_fn` maps parameters to a scalar here: the mean over a fixed batch or data
set, the network in evaluation or with a fixed key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types
from repjax.types import InputError

ScalarLossFn = Callable[[types.PyTree], jax.Array]


class Eigenpair(NamedTuple):
  """An approximate eigenpair of a Hessian H.

  Attributes:
    value: Rayleigh quotient v'Hv.
    residual: |Hv - value v|. An eigenvalue lies within it of `value`; large
      against the spectrum means that more steps are needed.
    vector: v, of norm 1, like the parameters.
  """

  value: jax.Array
  residual: jax.Array
  vector: types.PyTree


def hessian_vector_product(
  loss_fn: ScalarLossFn, params: types.PyTree, vector: types.PyTree
) -> types.PyTree:
  """H v at the cost of about two gradients."""
  return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


def top_eigenvalue(
  loss_fn: ScalarLossFn,
  params: types.PyTree,
  *,
  rng: jax.Array,
  num_steps: int = 50,
) -> Eigenpair:
  """The algebraically largest eigenvalue of the Hessian, by power iteration.

  This is the lambda_max that the paper prints. A first run finds the
  eigenvalue that is largest in magnitude. Where that is negative (away from a
  minimum), the second run is on H + c I with c > 0 such that the largest one
  dominates; otherwise c is near 0 and the second run only refines the first.

  Args:
    loss_fn: Twice differentiable.
    params: Where; float32 leaves (half precision loses the residual).
    rng: Key of the first vector.
    num_steps: Hessian-vector products of each of the two runs, >= 1. The error
      shrinks by the ratio of the two largest eigenvalues of H + c I a step.

  Returns:
    The pair. `value` is negative if all eigenvalues are.
  """
  if num_steps < 1:
    raise InputError(f'Need num_steps >= 1; got {num_steps=}')

  def product(vector):
    return hessian_vector_product(loss_fn, params, vector)

  def iterate(start, shift):
    def step(_, vector):
      # Of -c I nothing is left by its shift: all vectors are as good.
      return _unit_or(_add(product(vector), vector, shift), vector)

    return jax.lax.fori_loop(0, num_steps, step, _unit(start))

  start = _unit(_random_like(params, rng))
  vector = iterate(start, 0.0)
  image = product(vector)
  # |Hv| is the magnitude and v'Hv also has the sign: c is 0 where the dominant
  # eigenvalue is positive and its magnitude where it is negative.
  shift = (_norm(image) - _dot(vector, image)) / 2
  vector = iterate(_unit_or(_add(vector, start, 1.0), vector), shift)
  image = product(vector)
  value = _dot(vector, image)
  return Eigenpair(value, _norm(_add(image, vector, -value)), vector)


def random_direction(
  params: types.PyTree, rng: jax.Array, *, norm: str = 'filter'
) -> types.PyTree:
  """A Gaussian direction on the scale of the parameters (Li et al., sec. 4).

  With it, networks of different weight scales can be compared: the loss of a
  network of relus and norms does not change when a filter is rescaled.

  Args:
    params: Where.
    rng: Key of the direction.
    norm: 'filter': each filter d is scaled to the norm of the parameters'
      filter; the last axis of a kernel counts filters (the output channels of
      a convolution, the outputs of a dense layer). Vectors (biases, scales of
      norms) are zero, as in the authors' code. 'none': plain Gaussian.

  Returns:
    A direction like `params`.
  """
  direction = _random_like(params, rng)
  if norm == 'none':
    return direction
  if norm != 'filter':
    raise InputError(f"norm is 'filter' or 'none'; got {norm=}")

  def scale(d, p):
    if p.ndim < 2:
      return jnp.zeros_like(d)
    axes = tuple(range(p.ndim - 1))
    sizes = [jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (d, p)]
    return d * sizes[1] / jnp.where(sizes[0] > 0, sizes[0], 1.0)

  return jax.tree.map(scale, direction, params)


def loss_along(
  loss_fn: ScalarLossFn,
  params: types.PyTree,
  direction: types.PyTree,
  alphas: jax.Array,
) -> jax.Array:
  """The loss at params + alpha * direction for each alpha, [K] -> [K]."""
  return jax.lax.map(
    lambda alpha: loss_fn(_add(params, direction, alpha)), alphas
  )


def _random_like(tree, rng):
  leaves, structure = jax.tree.flatten(tree)
  rngs = jax.random.split(rng, len(leaves))
  return structure.unflatten(
    [
      jax.random.normal(key, x.shape, x.dtype)
      for key, x in zip(rngs, leaves, strict=True)
    ]
  )


def _add(tree, other, factor):
  return jax.tree.map(
    lambda x, y: x + jnp.asarray(factor, x.dtype) * y, tree, other
  )


def _dot(tree, other):
  products = jax.tree.map(lambda x, y: (x * y).sum(), tree, other)
  return sum(jax.tree.leaves(products))


def _norm(tree):
  return jnp.sqrt(_dot(tree, tree))


def _unit_or(tree, other):
  """The other one where nothing is left of a tree."""
  left = _norm(tree) > 0
  return jax.tree.map(lambda a, b: jnp.where(left, a, b), _unit(tree), other)


def _unit(tree):
  norm = _norm(tree)
  # The zero vector (of a Hessian that is zero) stays zero.
  return jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1.0), tree)
