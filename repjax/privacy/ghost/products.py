"""Device code: weighted sums of gradients, as products of what layers kept.

A layer is linear in its parameters: the weighted sum over units of their
gradients is one product of inputs and cotangents. It is float32 whatever the
layer computes in. In bfloat16 the sum would be rounded as a whole, where a
single unit tips the rounding of numbers that all units have made: with 1,024
units alike it moved by 2.5 times what each of them is clipped to. And it is
float32 whatever a device's products are rounded to by default: where positions
of a unit cancel out, TF32 leaves more than the unit's norm is.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.privacy.ghost import coverage
from repjax.privacy.ghost import intercept
from repjax.privacy.ghost import rules

# Layer -> name of a parameter -> an array of its shape.
Tree = Mapping[intercept.Key, Mapping[str, jax.Array]]


def of_layers(
  found: coverage.Coverage,
  modules: Mapping[intercept.Key, nn.Module],
  weights: Tree,
  kept: tuple[
    Mapping[intercept.Key, jax.Array], Mapping[intercept.Key, jax.Array]
  ],
  factors: jax.Array,
  groups: Sequence[int],
) -> Tree:
  """Sums of the weighted gradients of layers' weights.

  Args:
    found: Which layers are covered.
    modules: Of the layers.
    weights: All that they are called with.
    kept: Inputs and cotangents of the layers, a unit an entry.
    factors: Of units and groups, [N, groups].
    groups: Number of the group of each leaf.
  """
  inputs, cotangents = kept
  sums = {}
  for key, leaves in found.layers.items():
    own = {name: groups[leaf] for name, leaf in leaves.items()}
    x, g = inputs[key], cotangents[key]
    wide = jnp.promote_types(g.dtype, jnp.float32)
    layer = intercept.exact(modules[key].clone(dtype=wide), key[1])
    x, g = rules.multiplied(x, g.dtype), g.astype(wide)
    zeros = {name: jnp.zeros(w.shape, wide) for name, w in weights[key].items()}
    sums[key] = {
      name: grad
      for group in sorted(set(own.values()))
      for name, grad in _of_layer(
        layer,
        zeros,
        [name for name in own if own[name] == group],
        (factors[:, group], x, g),
      ).items()
    }
  return sums


@jax.default_matmul_precision('highest')
def _of_layer(layer, zeros, names, units):
  """Gradients of sum <factor * cotangent, layer(input)>."""

  def product(some):
    def one(factor, x, g):
      return jnp.vdot(factor.astype(g.dtype) * g, layer({**zeros, **some}, x))

    return jax.vmap(one)(*units).sum()

  return jax.grad(product)({name: zeros[name] for name in names})


def to_leaves(
  found: coverage.Coverage,
  backward: Callable[[Tree], tuple[dict[int, jax.Array]]],
  weights: Tree,
  sums: Tree,
) -> dict[int, jax.Array]:
  """Sums for the leaves that layers' weights are made of.

  Backward through a cast to bfloat16 a number is rounded to it. So it goes in
  three pieces that bfloat16 can hold (3 x 8 bits are float32's 24), which add
  up again behind the cast.

  Args:
    found: Which layers are covered; they are in the open.
    backward: Cotangents of weights -> those of the covered leaves, by number.
    weights: All that layers are called with.
    sums: As `of_layers` gives them.
  """
  heads = {(path, 'attend') for path, _ in found.tied}
  total: dict[int, Any] = {}
  # What a tied table gets from its two ends would be added in bfloat16.
  for chosen in (sums.keys() - heads, heads) if heads else (sums.keys(),):
    rest = {key: sums[key] for key in chosen}
    for _ in range(3 if found.narrow else 1):
      piece = jax.tree.map(_leading, rest) if found.narrow else rest
      rest = jax.tree.map(jnp.subtract, rest, piece)
      cotangents = {
        key: {
          name: piece[key][name].astype(w.dtype)
          if key in chosen and name in found.layers[key]
          else jnp.zeros_like(w)
          for name, w in own.items()
        }
        for key, own in weights.items()
      }
      for leaf, grad in backward(cotangents)[0].items():
        total[leaf] = total[leaf] + grad if leaf in total else grad
  return total


def _leading(x):
  """The part of float32 numbers that bfloat16 holds; no compiler skips it."""
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
