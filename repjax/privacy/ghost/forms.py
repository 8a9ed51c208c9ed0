"""Device code: three ways to the sum of clipped gradients, all exact.

A unit is what is clipped as a whole: one row, or all rows of one user. Every
form gets the same arguments and gives the same `Result`.

`vmap` holds the gradients of all units. The ghost forms hold those of no unit:
norms follow from the inputs and the cotangents of layers (`rules`). In
`one_backward` both are kept from a single backward pass, and the weighted sums
are products of them (book-keeping: Bu et al., 'Differentially Private
Optimization on Large Model at Small Cost', ICML 2023,
https://arxiv.org/abs/2210.00038). In `two_backwards` they are not kept: a
second backward pass weighs each unit's loss (Li et al., ICLR 2022, section 4,
https://arxiv.org/abs/2110.05679), which also works where layers are
rematerialised or scanned.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types
from repjax.privacy.ghost import coverage
from repjax.privacy.ghost import taps

# (params, rows of one unit, its key, weights of its rows) -> (loss, aux).
UnitLoss = Callable[..., tuple[jax.Array, Any]]


class Units(NamedTuple):
  """Data of N units of U rows.

  Attributes:
    batch: Tree of arrays [N, U, ...].
    rngs: One key a unit, or None.
    weights: Weights of rows in their unit's loss, [N, U]; 0 for padding.
  """

  batch: types.PyTree
  rngs: jax.Array | None
  weights: jax.Array

  @property
  def mask(self) -> jax.Array:
    """1 for units that have rows, float32 [N]."""
    return (self.weights > 0).any(1).astype(jnp.float32)


class Clip(NamedTuple):
  """How gradients are clipped.

  Attributes:
    groups: Number of the group of each leaf, which is clipped on its own.
    factor: Squared norms [N, number of groups] -> factors of the same shape.
  """

  groups: Sequence[int]
  factor: Callable[[jax.Array], jax.Array]

  @property
  def num_groups(self) -> int:
    """Number of groups."""
    return max(self.groups) + 1


class Result(NamedTuple):
  """What a form returns.

  Attributes:
    grads: Sum of the units' clipped gradients.
    norms: Gradient norms before clipping, [N]; 0 for units without rows.
    aux: What else the loss returns, a unit an entry.
  """

  grads: types.PyTree
  norms: jax.Array
  aux: types.PyTree


def vmap(
  loss_fn: UnitLoss, params: types.PyTree, units: Units, clip: Clip
) -> Result:
  """Gradients of all units at once."""

  def one(*unit):
    return jax.grad(loss_fn, has_aux=True)(params, *unit)

  grads, aux = jax.vmap(one)(*units)
  grads = jax.tree.leaves(grads)
  factors, norms = _factors(_squared(grads, clip.groups, clip), units, clip)
  leaves = _weighted_sums(grads, clip.groups, factors, units.mask)
  return Result(_like(params, leaves), norms, aux)


def two_backwards(
  found: coverage.Coverage,
  loss_fn: UnitLoss,
  params: types.PyTree,
  units: Units,
  clip: Clip,
) -> Result:
  """Norms by one backward pass, the sum by another one."""
  leaves, rebuild, leftover, rest = _divide(found, params, units, clip)
  covered = {i: leaves[i] for i in found.covered}
  carrier = jnp.zeros((units.mask.size, clip.num_groups))

  def losses(covered, leftover, carrier, weigh=None):
    def one(leftover, carrier, weigh, *unit):
      with taps.tapped(found, clip.groups, carrier, weigh):
        return loss_fn(rebuild({**covered, **leftover}), *unit)

    return jax.vmap(one)(leftover, carrier, weigh, *units)

  _, backward, aux = jax.vjp(losses, covered, leftover, carrier, has_aux=True)
  _, grads, squared = backward(units.mask)
  grads = list(grads.values())
  squared += _squared(grads, rest, clip)
  factors, norms = _factors(squared, units, clip)
  if clip.num_groups == 1:
    sums, _, _ = backward(factors[:, 0])
  else:  # Layers with factors of their own need a forward pass that has them.
    sums = jax.grad(
      lambda covered: losses(covered, leftover, carrier, factors)[0].sum()
    )(covered)
  own = _weighted_sums(grads, rest, factors, units.mask)
  sums.update(zip(found.leftover, own, strict=True))
  return Result(_like(params, _complete(sums, leaves)), norms, aux)


def one_backward(
  found: coverage.Coverage,
  loss_fn: UnitLoss,
  params: types.PyTree,
  units: Units,
  clip: Clip,
) -> Result:
  """Inputs and cotangents of layers are kept; norms and sums follow from them.

  Needs `found.outputs`.
  """
  leaves, rebuild, leftover, rest = _divide(found, params, units, clip)
  covered = {i: leaves[i] for i in found.covered}
  probes = {
    key: jnp.zeros((units.mask.size, *out.shape), out.dtype)
    for key, out in found.outputs.items()
  }
  record = taps.Record(found)

  def losses(leftover, probes):
    def one(leftover, probes, *unit):
      with record.inputs(probes) as inputs:
        loss, aux = loss_fn(rebuild({**covered, **leftover}), *unit)
      return loss, (aux, inputs)

    return jax.vmap(one)(leftover, probes, *units)

  _, backward, (aux, inputs) = jax.vjp(losses, leftover, probes, has_aux=True)
  grads, cotangents = backward(units.mask)
  grads = list(grads.values())
  squared = jax.vmap(lambda x, g: record.squared(x, g, clip.groups))(
    inputs, cotangents
  )
  squared += _squared(grads, rest, clip)
  factors, norms = _factors(squared, units, clip)

  def products(covered):
    """Its gradient is the weighted sum; all but the layers is dead code."""

    def one(inputs, cotangents, factors, *unit):
      with record.products(inputs, cotangents, factors, clip.groups) as total:
        loss_fn(rebuild(covered), *unit)
      return sum(total)

    return jax.vmap(one)(inputs, cotangents, factors, *units).sum()

  sums = jax.grad(products)(covered)
  own = _weighted_sums(grads, rest, factors, units.mask)
  sums.update(zip(found.leftover, own, strict=True))
  return Result(_like(params, _complete(sums, leaves)), norms, aux)


def _divide(found, params, units, clip):
  """(leaves, {number: leaf} -> tree, leftover leaves a unit, their groups)."""
  leaves, treedef = jax.tree.flatten(params)

  def rebuild(some):
    own = [some.get(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, own)

  # Their gradients come out one a unit; the values are all the same.
  leftover = {
    i: jnp.broadcast_to(leaves[i], (units.mask.size, *leaves[i].shape))
    for i in found.leftover
  }
  return leaves, rebuild, leftover, [clip.groups[i] for i in found.leftover]


def _factors(squared, units, clip):
  """(factors [N, groups], norms [N]) of units; those of padding are 0."""
  mask = units.mask
  squared = jnp.where(mask[:, None] > 0, squared, 0.0)
  factors = clip.factor(squared) * mask[:, None]
  return factors, jnp.sqrt(squared.sum(1)) * mask


def _squared(grads, groups, clip):
  """Squared norms of the units' gradients, [N, groups]."""
  total = 0.0
  for grad, group in zip(grads, groups, strict=True):
    square = jnp.square(grad.astype(jnp.float32))
    square = square.reshape((square.shape[0], -1)).sum(1)
    total += square[:, None] * jax.nn.one_hot(group, clip.num_groups)[None]
  return total


def _weighted_sums(grads, groups, factors, mask):
  """Sums of the units' gradients; a NaN in a unit of padding is harmless."""

  def one(grad, group):
    real = mask.reshape((-1,) + (1,) * (grad.ndim - 1)) > 0
    grad = jnp.where(real, grad, 0).astype(jnp.float32)
    return jnp.einsum(
      'b,b...->...', factors[:, group], grad, precision='highest'
    )

  return [one(grad, i) for grad, i in zip(grads, groups, strict=True)]


def _complete(sums, leaves):
  """What has no influence on the loss has gradient 0."""
  return [sums.get(i, jnp.zeros_like(x)) for i, x in enumerate(leaves)]


def _like(params, leaves):
  old, treedef = jax.tree.flatten(params)
  leaves = [x.astype(p.dtype) for x, p in zip(leaves, old, strict=True)]
  return jax.tree.unflatten(treedef, leaves)
