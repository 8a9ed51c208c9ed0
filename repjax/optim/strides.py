"""Learnt strides in an optimizer group of their own, and what they cost.

Riad et al., 'Learning Strides in Convolutional Neural Networks', ICLR 2022,
sections 2.3 and 2.4. https://arxiv.org/abs/2202.01653
"""

import math
import re

import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.optim import link
from repjax.types import check_range

NAME = 'strides'


def is_stride(path: trees.Path) -> bool:
  """Whether a parameter is one of `layers.diffstride.DiffStride`."""
  return path[-1] == NAME


def stride_group(
  weights: optax.GradientTransformation,
  strides: optax.GradientTransformation,
  *,
  lowest: float = 1.0,
  highest: float = math.inf,
) -> optax.GradientTransformation:
  """An optimizer of weights, one of strides, and strides kept within bounds.

  Bounds are kept after the update, as the authors' constraint does. Without
  learnt strides it is the optimizer of the weights. Links that ask `grad_fn`
  go in front of it.

  Args:
    weights: Of all other parameters; a whole chain, decay included.
    strides: Of the strides.
    lowest: Bound, >= 1. Higher ones bound what a network may cost.
    highest: Bound, >= lowest.
  """
  if link.is_known(lowest) and link.is_known(highest):
    check_range('[1, inf)', lowest=float(lowest))
    check_range(f'[{float(lowest)}, inf]', highest=float(highest))

  def label(params):
    return trees.map_with_path(
      lambda path, x: NAME if is_stride(path) else 'weights', params
    )

  def clamp(updates, params):
    link.check('stride_group', params=params)

    def one(path, update, at):
      if not is_stride(path):
        return update
      return jnp.clip(at + update, lowest, highest) - at

    return trees.map_with_path(one, updates, params)

  return optax.chain(
    optax.partition({'weights': weights, NAME: strides}, label),
    optax.stateless(clamp),
  )


def stride_cost(
  strength: float, *, axes: int = 2
) -> optax.GradientTransformation:
  """Adds the gradient of strength * `relative_places` (the paper's J).

  It goes before the optimizer; the reported loss leaves it out.

  Args:
    strength: lambda, >= 0.
    axes: Of the maps: 2 of images, 1 of series.
  """
  link.check_fixed('stride_cost', axes=axes)
  if link.is_known(strength):
    check_range('[0, inf)', strength=float(strength))

  def add(updates, params):
    link.check('stride_cost', params=params)
    slopes = jax.grad(lambda p: relative_places(p, axes=axes))(params)
    return trees.map_with_path(
      lambda path, update, slope: (
        update + strength * slope if is_stride(path) else update
      ),
      updates,
      slopes,
    )

  return optax.stateless(add)


def relative_places(params: types.PyTree, *, axes: int = 2) -> jax.Array:
  """Sum over layers of the product of 1 / (S_h S_w) of it and those before.

  What maps cost in memory and time, relative to the first one, if smoothness
  added nothing (`layers.crop_sizes`). Layers follow each other in the order of
  their paths, in which stage_2 is before stage_10. 0 without learnt strides.

  Args:
    params: Of a network.
    axes: Of its maps; a shared stride counts once for each.
  """
  total, left = jnp.zeros(()), jnp.ones(())
  for _, strides in in_order(params):
    left = left / jnp.prod(jnp.broadcast_to(strides, (axes,)))
    total = total + left
  return total


def in_order(params: types.PyTree) -> list[tuple[trees.Path, jax.Array]]:
  """(path, strides [n] or [1]) of each layer that learns them, in order."""
  found = [(p, x) for p, x in trees.flatten(params).items() if is_stride(p)]

  def numbers(item):
    return [
      [(not x.isdigit(), int(x) if x.isdigit() else 0, x) for x in parts]
      for parts in (re.split(r'(\d+)', name) for name in item[0])
    ]

  return sorted(found, key=numbers)
