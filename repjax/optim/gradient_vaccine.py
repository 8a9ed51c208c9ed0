"""Gradient surgery between tasks: Gradient Vaccine and PCGrad.

Wang, Tsvetkov, Firat and Cao, 'Gradient Vaccine: Investigating and Improving
Multi-task Optimization in Massively Multilingual Models', ICLR 2021
(https://arxiv.org/abs/2010.05874). PCGrad: Yu et al., 'Gradient Surgery for
Multi-Task Learning', NeurIPS 2020 (https://arxiv.org/abs/2001.06782), which is
the special case of a target of 0.

Both add multiples of the tasks' gradients to each other, and what they ask
about them are inner products. So the surgery works on coefficients: on the
Gram matrix of the T gradients, and on the rows of A, g'_i = sum_j A_ij g_j. The
parameters are touched twice, for the Gram matrix and for the last sum, however
many pairs are visited.
"""

from collections.abc import Callable
import re
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax.optim import link

# Below this part of its terms' size, |g'|^2 is float32 rounding: g' is zero.
_ROUNDING = 1e-6

# The default on TPUs is bfloat16's, which knows cosines to 1e-2 only.
_EXACT = jax.lax.Precision.HIGHEST


class VaccineState(NamedTuple):
  """What surgery remembers.

  Attributes:
    targets: Aim for the cosine of tasks i and j in each of K groups of
      parameters, [K, T, T] float32.
    rng: Data of the key of the visiting orders, uint32, equal on all devices.
      (With a typed key in the state, pmap of JAX 0.7 compiles twice.)
    corrected: Part of the visited pairs, over all groups, whose gradient the
      last update changed, float32.
  """

  targets: jax.Array
  rng: jax.Array
  corrected: jax.Array

  def asks(self) -> str:
    """Name of the link, which asks `grad_fn`."""
    return 'gradient_vaccine or pcgrad'


Groups = (
  Literal['whole_model', 'all_layer', 'all_matrix', 'leaf']
  | Callable[[trees.Path], str]
)


def gradient_vaccine(
  num_tasks: int,
  *,
  decay: float = 0.01,
  target: float | None = None,
  groups: Groups = 'all_layer',
  reduce: Literal['sum', 'mean'] = 'sum',
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Raises the cosines of the tasks' gradients to what is usual for them.

  Algorithm 1 of the paper. For each task i, the other tasks j are visited in
  random order; in each group of parameters, with phi the cosine of g'_i (as
  changed so far) and g_j (as it was), and T_ij its target,

    where phi < T_ij:  g'_i += a g_j,  which makes the cosine T_ij:
      a = |g'_i| (T_ij sqrt(1 - phi^2) - phi sqrt(1 - T_ij^2))
          / (|g_j| sqrt(1 - T_ij^2))
    then T_ij = (1 - decay) T_ij + decay phi, from T_ij = 0 on.

  Tasks without rows in the batch, and groups in which a gradient is zero (the
  heads of other tasks), are not visited and leave their targets alone.

  Put it first in the chain. It replaces the plain gradient by the sum (or mean)
  of the g'_i over the tasks in the batch, so tasks count alike however many
  rows they have. Cost: one backward pass a task.

  Args:
    num_tasks: T >= 1; batches carry 'task' [B], ids in [0, T).
    decay: Weight of the newest cosine in the targets (beta), in [0, 1].
    target: One target for all pairs that stays, in [-1, 1); None learns them.
      0 is PCGrad.
    groups: What has a cosine of its own, by the paper's names: 'whole_model',
      'all_layer' (each layer, such as a block of a transformer: a name with a
      number), 'all_matrix' (each matrix with its bias), or each 'leaf', or a
      name for every path, such as `lambda path: path[0]`.
    reduce: 'sum', as published, or 'mean' over the tasks in the batch, where
      tasks in agreement give what their plain mean gives.
    seed: Of the visiting orders.

  Returns:
    A transformation with a `VaccineState` whose `update` needs `params` and the
    extra argument `grad_fn`, a `repjax.types.GradFn`.

  Raises:
    ValueError: If an argument is out of range, or, at `update`, if `params` or
      `grad_fn` is missing.
  """
  link.check_fixed('gradient_vaccine', num_tasks=num_tasks, target=target)
  name = 'pcgrad' if target == 0 else 'gradient_vaccine'
  if num_tasks < 1 or (link.is_known(decay) and not 0 <= decay <= 1):
    raise ValueError(
      f'Need num_tasks >= 1 and 0 <= decay <= 1; got {num_tasks=}, {decay=}'
    )
  if target is not None and not -1 <= target < 1:
    raise ValueError(f'Need -1 <= target < 1; got {target=}')
  if reduce not in ('sum', 'mean'):
    raise ValueError(f"reduce is 'sum' or 'mean'; got {reduce=}")
  check_groups(groups)

  def init_fn(params):
    link.begin(name, params)
    num_groups = max(group_indices(params, groups)) + 1
    start = 0.0 if target is None else target
    return VaccineState(
      targets=jnp.full((num_groups, num_tasks, num_tasks), start, jnp.float32),
      rng=jax.random.key_data(jax.random.key(seed)),
      corrected=jnp.zeros(()),
    )

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    link.ask(name, grad_fn, params=params, question='per_task', updates=updates)
    grads, num_rows, _ = grad_fn.per_task(params, num_tasks)
    leaves, structure = jax.tree.flatten(grads)
    indices = group_indices(updates, groups)
    present = num_rows > 0
    rng, rng_order = jax.random.split(jax.random.wrap_key_data(state.rng))
    coefficients, targets, corrected = surgery(
      gram(leaves, indices),
      present,
      visiting_orders(rng_order, num_tasks),
      state.targets,
      decay=decay if target is None else 0.0,
    )
    total = jnp.where(present[:, None], coefficients, 0).sum(1)  # [K, T]
    if reduce == 'mean':
      total /= jnp.maximum(present.sum(), 1)
    combined = [
      jnp.tensordot(
        total[index], leaf.astype(jnp.float32), 1, precision=_EXACT
      ).astype(leaf.dtype)
      for index, leaf in zip(indices, leaves, strict=True)
    ]
    new_state = VaccineState(targets, jax.random.key_data(rng), corrected)
    return jax.tree.unflatten(structure, combined), new_state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def pcgrad(
  num_tasks: int,
  *,
  groups: Groups = 'whole_model',
  reduce: Literal['sum', 'mean'] = 'sum',
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Takes out of each task's gradient what opposes another's (Yu et al.).

  g'_i -= <g'_i, g_j> g_j / |g_j|^2 wherever the product is negative, over all
  other tasks j in random order. (The authors' TensorFlow code discards the
  result of its shuffle, so its order is in fact fixed.) Arguments, results and
  errors are those of `gradient_vaccine` with target 0.
  """
  return gradient_vaccine(
    num_tasks, target=0.0, groups=groups, reduce=reduce, seed=seed
  )


def check_groups(groups: Groups) -> None:
  """Raises a ValueError for a word that names no `Groups`."""
  if not callable(groups) and groups not in _GROUPS:
    raise ValueError(
      f'groups is one of {", ".join(_GROUPS)}, or a function; got {groups=}'
    )


def group_indices(tree, groups: Groups) -> list[int]:
  """Number of the group of each leaf, counted from 0 in tree order.

  >>> dense = {'kernel': 0, 'bias': 0}
  >>> params = {'block_0': {'in': dense, 'out': dense}, 'head': dense}
  >>> for how in ('whole_model', 'all_layer', 'all_matrix', 'leaf'):
  ...   print(group_indices(params, how))
  [0, 0, 0, 0, 0, 0]
  [0, 0, 0, 0, 1, 1]
  [0, 0, 1, 1, 2, 2]
  [0, 1, 2, 3, 4, 5]
  """
  name = _GROUPS[groups] if isinstance(groups, str) else groups
  names = [name(path) for path in trees.flatten(tree)]
  order = {name: index for index, name in enumerate(dict.fromkeys(names))}
  return [order[name] for name in names]


def _layer(path):
  """The path to the first name with a number, or to the matrix."""
  numbered = [i for i, x in enumerate(path[:-1]) if re.search(r'_\d+$', x)]
  return path[: numbered[0] + 1] if numbered else path[:-1]


_GROUPS: dict[str, Callable[[trees.Path], Any]] = {
  'whole_model': lambda path: '',
  'all_layer': _layer,
  'all_matrix': lambda path: path[:-1],
  'leaf': lambda path: path,
}


def visiting_orders(rng: jax.Array, num_tasks: int) -> jax.Array:
  """In which order each task visits all of them, [T, T] (itself is skipped)."""
  return jax.vmap(lambda rng: jax.random.permutation(rng, num_tasks))(
    jax.random.split(rng, num_tasks)
  )


def gram(leaves: list[jax.Array], indices: list[int]) -> jax.Array:
  """Inner products of the tasks' gradients in each group, [K, T, T].

  Args:
    leaves: Gradients with a leading task axis, [T, ...].
    indices: Group of each leaf.
  """
  products: list[jax.Array | float] = [0.0] * (max(indices) + 1)
  for index, leaf in zip(indices, leaves, strict=True):
    flat = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
    products[index] += jnp.matmul(flat, flat.T, precision=_EXACT)
  return jnp.stack(products)


@jax.default_matmul_precision('highest')
def surgery(
  gram: jax.Array,
  present: jax.Array,
  orders: jax.Array,
  targets: jax.Array,
  *,
  decay: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The loop over pairs, in the space of coefficients.

  Args:
    gram: [K, T, T].
    present: Which tasks have rows, bool [T].
    orders: Which tasks each one visits, [T, T].
    targets: [K, T, T].
    decay: Weight of the newest cosine.

  Returns:
    (A [K, T, T] with g'_i = sum_j A_ij g_j, new targets [K, T, T], part of the
    visited pairs that were corrected).
  """
  num_tasks = present.shape[0]

  def one_task(gram, task, order, targets):
    norms = jnp.sqrt(jnp.diagonal(gram))

    def visit(carry, other):
      row, targets = carry
      products = gram @ row  # <g'_i, g_j> for all j.
      square, size = row @ products, jnp.abs(row) @ norms
      norm = jnp.sqrt(jnp.maximum(square, 0))
      real = (
        present[task]
        & present[other]
        & (other != task)
        & (norms[other] > 0)
        & (square > _ROUNDING * size**2)
      )
      scale = jnp.where(real, norm * norms[other], 1)
      cosine = jnp.clip(products[other] / scale, -1, 1)
      aim = jnp.minimum(targets[other], 1 - 1e-6)
      sine, sine_aim = jnp.sqrt(1 - cosine**2), jnp.sqrt(1 - aim**2)
      # A target of -1 has sine 0, but then no cosine is below it.
      step = norm / jnp.where(norms[other] > 0, norms[other], 1)
      step *= (aim * sine - cosine * sine_aim) / jnp.maximum(sine_aim, 1e-6)
      acts = real & (cosine < aim)
      row = row.at[other].add(jnp.where(acts, step, 0))
      moved = (1 - decay) * targets[other] + decay * cosine
      targets = targets.at[other].set(jnp.where(real, moved, targets[other]))
      return (row, targets), (acts, real)

    start = (jnp.eye(num_tasks, dtype=gram.dtype)[task], targets)
    (row, targets), counts = jax.lax.scan(visit, start, order)
    return row, targets, *counts

  over_tasks = jax.vmap(one_task, (None, 0, 0, 0))
  rows, targets, acts, real = jax.vmap(over_tasks, (0, None, None, 0))(
    gram, jnp.arange(num_tasks), orders, targets
  )
  return rows, targets, acts.sum() / jnp.maximum(real.sum(), 1)
