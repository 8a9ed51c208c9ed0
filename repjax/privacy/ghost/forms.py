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

A unit whose gradient is not finite has no norm to be clipped by and counts as
0. A factor of 0 is not enough for that, as 0 * NaN is NaN: such numbers are
left out wherever units meet. `two_backwards`, where they meet on the way, then
takes one unit after the other, which is slow and costs no memory.

Products of the ghost forms keep all of float32, but for those of the loss in
`one_backward`, which norms and sums see alike. In TF32, the default of GPUs, a
weighed unit would have another gradient than the one whose norm was found. Only
products outside of covered layers that name another precision keep theirs.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types
from repjax.privacy.ghost import coverage
from repjax.privacy.ghost import products
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
    norms: Gradient norms before clipping, [N]; 0 for units without rows, and
      not finite for those that count as 0.
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
  scale = _scale(_squared(grads, clip.groups, clip), units, clip)
  leaves = _weighted_sums(grads, clip.groups, scale)
  return Result(_like(params, leaves), scale.norms, aux)


@jax.default_matmul_precision('highest')
def two_backwards(
  found: coverage.Coverage,
  loss_fn: UnitLoss,
  params: types.PyTree,
  units: Units,
  clip: Clip,
) -> Result:
  """Norms by one backward pass, the sum by another one.

  Not where `found.narrow`: the sum would be rounded.
  """
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
  scale = _scale(squared, units, clip)

  def weighted():
    if clip.num_groups == 1:
      return backward(scale.factors[:, 0])[0]
    # Layers with factors of their own need a forward pass that has them.
    return jax.grad(
      lambda x: losses(x, leftover, carrier, scale.factors)[0].sum()
    )(covered)

  def one_by_one():
    def add(total, unit):
      unit = jax.tree.map(lambda x: x[None], unit)
      own = jax.tree.leaves(vmap(loss_fn, params, unit, clip).grads)
      return {i: x + own[i] for i, x in total.items()}, None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, covered), units)[0]

  sums = jax.lax.cond(scale.finite.all(), weighted, one_by_one)
  own = _weighted_sums(grads, rest, scale)
  sums.update(zip(found.leftover, own, strict=True))
  return Result(_like(params, _complete(sums, leaves)), scale.norms, aux)


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
  scale = _scale(squared, units, clip)
  inputs, cotangents = _only(scale.real, (inputs, cotangents))

  def weights(covered):
    """All but the way from leaves to layers is dead code."""
    with record.weights() as called_with:
      loss_fn(rebuild(covered), *jax.tree.map(lambda x: x[0], units))
    return called_with

  called_with, to_leaves = jax.vjp(weights, covered)
  of_layers = products.of_layers(
    found,
    record.modules(),
    called_with,
    (inputs, cotangents),
    scale.factors,
    clip.groups,
  )
  sums = products.to_leaves(found, to_leaves, called_with, of_layers)
  own = _weighted_sums(grads, rest, scale)
  sums.update(zip(found.leftover, own, strict=True))
  return Result(_like(params, _complete(sums, leaves)), scale.norms, aux)


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


class _Scale(NamedTuple):
  """By what units are multiplied.

  Attributes:
    factors: Of units and groups, [N, groups]; 0 for those that are not real.
    norms: Of gradients before clipping, [N]; 0 for padding.
    finite: Whether the gradient of a unit is finite, of padding too, [N].
    real: Of units that have rows and a finite gradient, [N].
  """

  factors: jax.Array
  norms: jax.Array
  finite: jax.Array
  real: jax.Array


def _scale(squared, units, clip):
  """`_Scale` of squared norms [N, groups]."""
  # Differences are rounded. Sums began as wide as JAX's numbers are by default.
  squared = jnp.maximum(squared, 0.0).astype(jnp.float32)
  # Roots, which XLA computes once, and not anew wherever they are used.
  norms = jnp.sqrt(squared.sum(1))
  finite = jnp.isfinite(norms)
  real = finite & (units.mask > 0)
  factors = clip.factor(jnp.where(real[:, None], squared, 0.0))
  return _Scale(
    factors=jnp.where(real[:, None], factors, 0.0).astype(jnp.float32),
    norms=jnp.where(units.mask > 0, norms, 0.0),
    finite=finite,
    real=real,
  )


def _only(real, tree):
  """0 in the place of what belongs to other units."""

  def one(x):
    return jnp.where(real.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)

  return jax.tree.map(one, tree)


def _squared(grads, groups, clip):
  """Squared norms of the units' gradients, [N, groups]."""
  total = 0.0
  for grad, group in zip(grads, groups, strict=True):
    square = jnp.square(grad.astype(jnp.float32))
    square = square.reshape((square.shape[0], -1)).sum(1)
    total += square[:, None] * jax.nn.one_hot(group, clip.num_groups)[None]
  return total


def _weighted_sums(grads, groups, scale):
  """Sums of the units' gradients."""

  def one(grad, group):
    return jnp.einsum(
      'b,b...->...',
      scale.factors[:, group],
      grad.astype(jnp.float32),
      precision='highest',
    )

  grads = _only(scale.real, grads)
  return [one(grad, i) for grad, i in zip(grads, groups, strict=True)]


def _complete(sums, leaves):
  """What has no influence on the loss has gradient 0."""
  return [sums.get(i, jnp.zeros_like(x)) for i, x in enumerate(leaves)]


def _like(params, leaves):
  old, treedef = jax.tree.flatten(params)
  leaves = [x.astype(p.dtype) for x, p in zip(leaves, old, strict=True)]
  return jax.tree.unflatten(treedef, leaves)
