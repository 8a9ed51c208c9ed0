"""Device code: does a learner care in which coordinates its rows are given?

Li, Zhang and Arora, 'Why Are Convolutional Nets More Sample-Efficient Than
Fully-Connected Nets?', ICLR 2021, definition 3.2
(https://arxiv.org/abs/2010.08515): a learner A is equivariant under a group if,
in distribution,

    A({(g x_i, y_i)})(g x) = A({(x_i, y_i)})(x)    for all g.

Then it needs as many rows for a task as for the hardest one that the group
makes of it. The equality is checked draw by draw: whatever a learner draws for
its first layer is turned along with the rows, which changes no distribution
where that is one of the group's own (normal numbers, for rotations), and all
other draws are equal. So what is left is rounding, about 1e-12 in float64, or
the learner is not equivariant in this sense.
"""

from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import float64
from repjax import types

# First layer [D, ...] -> the one that sees of g x what this one sees of x.
Act = Callable[[jax.Array], jax.Array]
# (rows [N, ...], targets [N, ...], test rows [M, ...], act) -> outputs [M, ...]
# of what was learnt. Draws nothing that differs from call to call. A learner
# that has no first layer ignores `act`.
TrainFn = Callable[[jax.Array, jax.Array, jax.Array, Act], jax.Array]
# (generator, D) -> a matrix of the group, [D, D].
Group = Callable[[np.random.Generator, int], np.ndarray]


class Equivariance(NamedTuple):
  """How far the two sides of the definition are apart.

  Attributes:
    difference: Largest difference of outputs.
    scale: Largest output of the learner on rows as they are.
    relative: One over the other.
  """

  difference: float
  scale: float
  relative: float


def _orthogonal(rng, dim):
  q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
  return q * np.sign(np.diagonal(r))  # Else not uniform over the group.


def _permutation(rng, dim):
  return np.eye(dim)[rng.permutation(dim)]


def _sign(rng, dim):
  return np.diag(rng.choice((-1.0, 1.0), dim))


_GROUPS: dict[str, Group] = {
  'orthogonal': _orthogonal,
  'permutation': _permutation,
  'sign': _sign,
}


def check_equivariance(
  train_fn: TrainFn,
  rows: np.ndarray,
  targets: np.ndarray,
  test_rows: np.ndarray,
  *,
  group: Literal['orthogonal', 'permutation', 'sign'] | Group,
  seed: int = 0,
  num_elements: int = 1,
) -> Equivariance:
  """Trains on rows as they are, and on rows turned by the group, in float64.

  Args:
    train_fn: The learner, such as `gradient_descent`.
    rows: [N, ...]; the group acts on all axes behind the first, flattened.
    targets: [N, ...], labels or numbers.
    test_rows: [M, ...].
    group: By name, or what draws one of its matrices.
    seed: Of the group's elements.
    num_elements: How many are tried; the worst one counts.

  Raises:
    InputError: The group does not act on the rows, or the learner gives
      outputs that are not finite.
  """
  if isinstance(group, str):
    types.check_choice('group', group, tuple(_GROUPS))
  types.check_range('[1, inf)', num_elements=num_elements)
  draw = _GROUPS[group] if isinstance(group, str) else group
  rows, test_rows = (_numbers(x) for x in (rows, test_rows))
  if rows.shape[1:] != test_rows.shape[1:]:
    raise types.InputError(
      f'rows {rows.shape} and test_rows {test_rows.shape} differ in width'
    )
  rng = np.random.default_rng(seed)
  with float64.enabled():

    def learn(matrix):
      outputs = np.asarray(
        train_fn(
          _turned(rows, matrix),
          jnp.asarray(targets),
          _turned(test_rows, matrix),
          lambda kernel: _acted(matrix, kernel),
        )
      )
      if not np.isfinite(outputs).all():
        raise types.InputError(
          'The learner gives outputs that are not finite: lower its rate.'
        )
      return outputs

    dim = int(np.prod(rows.shape[1:]))
    plain = learn(np.eye(dim))
    difference = max(
      float(abs(learn(_element(draw, rng, dim)) - plain).max())
      for _ in range(num_elements)
    )
  scale = float(abs(plain).max())
  return Equivariance(difference, scale, difference / max(scale, 1e-300))


def gradient_descent(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
  first: str | None,
  steps: int,
  batch_size: int | None = None,
  seed: int = 0,
) -> TrainFn:
  """The learner that descends the mean loss of a network.

  Args:
    model: Called as `model.apply(variables, rows, train=...)`.
    tx: Optax chain.
    loss_fn: (outputs [B, ...], targets [B, ...]) -> one loss a row, [B].
    first: Name of the layer whose 'kernel' [D, ...] sees the rows, the only one
      that does; None leaves all draws as they are.
    steps: Number of updates.
    batch_size: Rows of a step, drawn with replacement; all of them if None.
    seed: Of the initialization and of the order of rows.
  """

  def loss(params, rows, targets):
    outputs = model.apply({'params': params}, rows, train=True)
    return loss_fn(outputs, targets).mean()

  @jax.jit
  def descend(params, rows, targets, order):
    def step(carry, chosen):
      params, opt_state = carry
      grads = jax.grad(loss)(params, rows[chosen], targets[chosen])
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), order)
    return params

  def train(rows, targets, test_rows, act):
    params = model.init(jax.random.key(seed), rows, train=False)['params']
    params = jax.tree.map(lambda x: x.astype(rows.dtype), params)
    if first is not None:
      if 'kernel' not in params.get(first, {}):
        raise types.InputError(
          f'first={first!r} is no layer with a kernel: the network has '
          f'{", ".join(params)}.'
        )
      kernel = act(params[first]['kernel'])
      params = {**params, first: {**params[first], 'kernel': kernel}}
    order = np.tile(np.arange(len(rows)), (steps, 1))
    if batch_size is not None:
      shape = (steps, batch_size)
      order = np.random.default_rng(seed).integers(len(rows), size=shape)
    params = descend(params, rows, targets, jnp.asarray(order))
    return model.apply({'params': params}, test_rows, train=False)

  return train


def _numbers(rows):
  rows = np.asarray(rows)
  if rows.ndim < 2 or not np.issubdtype(rows.dtype, np.floating):
    raise types.InputError(
      f'A group acts on vectors of real numbers [N, ...], not on {rows.dtype} '
      f'{rows.shape}: ids have no coordinates to turn; embed them first.'
    )
  return rows.astype(np.float64)


def _element(draw, rng, dim):
  matrix = np.asarray(draw(rng, dim), np.float64)
  if matrix.shape != (dim, dim):
    raise types.InputError(
      f'The group has matrices {matrix.shape} and does not act on rows of '
      f'{dim} numbers, which take [{dim}, {dim}].'
    )
  if not np.allclose(matrix @ matrix.T, np.eye(dim), atol=1e-9):
    raise types.InputError(
      'A matrix of the group is not orthogonal, and an initial layer cannot be '
      'turned along with it: give a group that keeps lengths.'
    )
  return matrix


def _turned(rows, matrix):
  flat = rows.reshape(len(rows), -1) @ matrix.T
  return jnp.asarray(flat.reshape(rows.shape))


def _acted(matrix, kernel):
  if kernel.shape[0] != len(matrix):
    raise types.InputError(
      f'The group acts on {len(matrix)} numbers, and not on a first layer of '
      f'{kernel.shape[0]}: give first=None for a layer that shares weights.'
    )
  return jnp.tensordot(jnp.asarray(matrix), kernel, 1)
