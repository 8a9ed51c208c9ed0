"""Device code: losses whose best action is known, for `h_divergence`.

Zhao et al., 'Comparing Distributions by Measuring Differences that Affect
Decision Making', ICLR 2022. Those that need training stand in
`fitted_losses`. https://openreview.net/forum?id=KB5onONJIAU
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from repjax import types
from repjax.analysis import kernels
from repjax.analysis.h_divergence import Loss
from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

_SMALLEST = 1e-30  # What stands for the kernel of a row without neighbours.


def squared() -> Loss:
  """|x - a|^2 for any point a: H is the total variance.

  H-JS is |mean of p - mean of q|^2 / 4.
  """

  @jax.default_matmul_precision('highest')
  def entropy(rows, weights):
    share = weights / weights.sum()
    mean = share[None] @ rows
    return share @ jnp.square(rows - mean).sum(-1)

  return Loss('squared loss', _flat, entropy)


def kernel(bandwidth: float | jax.Array) -> Loss:
  """|phi(x) - a|^2 in the space of a Gaussian kernel: H-JS is MMD^2 / 4.

  Args:
    bandwidth: > 0.
  """
  _check_bandwidth(bandwidth)

  def prepare(rows):
    distances = kernels.squared_distances(rows)
    return kernels.gaussian(distances, bandwidth)

  return Loss(
    f'kernel loss (bandwidth {_number(bandwidth)})', prepare, _rkhs_entropy
  )


@jax.default_matmul_precision('highest')
def _rkhs_entropy(kernel, weights):
  share = weights / weights.sum()
  return share @ jnp.diagonal(kernel) - share @ (kernel @ share)


def kde(
  bandwidth: float | jax.Array,
  *,
  rows: Literal['in_sample', 'leave_one_out'] = 'in_sample',
) -> Loss:
  """-log density, over Gaussian kernel density estimates of one bandwidth.

  The H-entropy is an estimate of the differential entropy, in nats. Actions are
  not all densities, but those that the rows make: in sample, a row is its own
  nearest neighbour, and H is too low by what the paper's bound allows for.

  Args:
    bandwidth: > 0, the same for p, q and the mixture; `best_bandwidth` chooses
      one. (The authors' code has three, so that its H are not of one loss.)
    rows: 'in_sample' counts a row among its own neighbours, 'leave_one_out'
      does not: a row without any others then has the density of a neighbour
      about 12 bandwidths away, so that the loss is bounded.
  """
  _check_bandwidth(bandwidth)
  check_choice('rows', rows, tuple(_DENSITIES))

  def prepare(x):
    distances = kernels.squared_distances(x)
    dim = math.prod(jax.tree.leaves(x)[0].shape[1:])
    constant = dim * (jnp.log(2 * jnp.pi) / 2 + jnp.log(bandwidth))
    return kernels.gaussian(distances, bandwidth), constant

  return Loss(
    f'KDE ({rows.replace("_", " ")}, bandwidth {_number(bandwidth)})',
    prepare,
    _ENTROPIES[rows],
  )


def _in_sample(kernel, weights):
  return kernel @ weights / weights.sum()


def _leave_one_out(kernel, weights):
  # Not by subtracting a row from its sum, where nothing of others is left.
  others = (kernel - jnp.diag(jnp.diagonal(kernel))) @ weights
  rest = weights.sum() - weights
  return others / jnp.where(rest > 0, rest, 1)


@jax.default_matmul_precision('highest')
def _kde_entropy(prepared, weights, *, density):
  kernel, constant = prepared
  found = jnp.log(jnp.maximum(density(kernel, weights), _SMALLEST))
  # Rows of weight 0 may be anywhere.
  return constant - weights @ found / weights.sum()


_DENSITIES = {'in_sample': _in_sample, 'leave_one_out': _leave_one_out}
# One function each, so that tests are compiled once.
_ENTROPIES = {
  name: functools.partial(_kde_entropy, density=density)
  for name, density in _DENSITIES.items()
}


@jax.default_matmul_precision('highest')
def best_bandwidth(rows: jax.Array, bandwidths: jax.Array) -> jax.Array:
  """The bandwidth under which rows are likeliest given all others.

  The limit of the cross-validation in the authors' code (ten folds, 30 values
  from .01 to 1), without folds to draw. Choose it on rows that are not the
  test's.

  Args:
    rows: [N, ...].
    bandwidths: To choose from, [M].

  Returns:
    A scalar.
  """
  distances = kernels.squared_distances(rows)
  num_rows, dim = len(rows), math.prod(rows.shape[1:])

  def loss(bandwidth):
    kernel = kernels.gaussian(distances, bandwidth)
    density = _leave_one_out(kernel, jnp.ones(num_rows))
    found = jnp.log(jnp.maximum(density, _SMALLEST))
    return dim * jnp.log(bandwidth) - found.mean()

  return bandwidths[jax.lax.map(loss, bandwidths).argmin()]


@jax.default_matmul_precision('highest')
def scott(rows: jax.Array, num_rows: int) -> tuple[jax.Array, float]:
  """Rows of unit covariance and Scott's bandwidth n^(-1 / (D + 4)) for them.

  What the paper has for HIGGS, but whitened by the pool of both samples, so
  that p, q and the mixture have one loss.

  Args:
    rows: Pooled rows, [N, D].
    num_rows: Of one sample, n.

  Returns:
    Rows [N, D] and the bandwidth.

  Raises:
    InputError: A column is the same in all rows, or depends on others
      linearly: nothing gives that a unit covariance. (Rows that are traced are
      not checked.)
  """
  centred = rows - rows.mean(0, keepdims=True)
  covariance = centred.T @ centred / len(rows)
  root = jnp.linalg.cholesky(covariance)
  if not isinstance(root, jax.core.Tracer):
    _check_spread(rows, covariance, root)
  white = jax.scipy.linalg.solve_triangular(root, centred.T, lower=True).T
  return white, num_rows ** (-1 / (rows.shape[1] + 4))


def _check_spread(rows, covariance, root):
  same = (rows == rows[:1]).all(0)
  if same.any():
    raise InputError(
      f'Column {same.argmax()} is the same in all rows and cannot be whitened: '
      'leave it out.'
    )
  # Below this share of a variance, what others leave of it is rounding.
  share = jnp.square(jnp.diagonal(root)) / jnp.diagonal(covariance)
  if not (share > len(root) * jnp.finfo(root.dtype).eps).all():
    raise InputError(
      f'The {len(root)} columns depend on each other linearly and cannot be '
      'whitened: leave some out.'
    )


def histogram(num_values: int) -> Loss:
  """-log probability, over all distributions on values 0, 1, ...

  H is Shannon's entropy in nats, H-JS the Jensen-Shannon divergence. Rows are
  integers [N].

  Args:
    num_values: Values are in [0, num_values); others are refused, or make all
      entropies NaN where rows are traced.
  """
  check_range('[1, inf)', num_values=num_values)

  def prepare(rows):
    one_hot = jax.nn.one_hot(rows, num_values, dtype=jnp.zeros(()).dtype)
    known = one_hot.any(-1)
    if not isinstance(known, jax.core.Tracer) and not known.all():
      raise InputError(
        f'Row {known.argmin()} is {jnp.asarray(rows)[known.argmin()]}, but '
        f'values of this histogram are integers in [0, {num_values}): raise '
        'num_values, or number the values from 0.'
      )
    return jnp.where(known[..., None], one_hot, jnp.nan)

  return Loss(f'log loss over {num_values} values', prepare, _shannon_entropy)


@jax.default_matmul_precision('highest')
def _shannon_entropy(one_hot, weights):
  share = weights @ one_hot / weights.sum()
  return -jax.scipy.special.xlogy(share, share).sum()


def actions(
  name: str, costs: Callable[[types.PyTree], jax.Array], names: Sequence[str]
) -> Loss:
  """A user's own decision among finitely many actions.

  Args:
    name: Of the decision, for results.
    costs: Rows, a pytree of arrays [N, ...] -> what each action costs for each
      row, [N, A].
    names: Of the A actions; `best_action` gives an index into them.
  """

  def prepare(rows):
    found = costs(rows)
    if found.ndim != 2 or found.shape[1] != len(names):
      raise InputError(
        f'{name}: costs of {len(names)} actions are [rows, {len(names)}]; got '
        f'{found.shape}.'
      )
    return found

  return Loss(name, prepare, _least_cost)


@jax.default_matmul_precision('highest')
def _least_cost(costs, weights):
  return (weights @ costs / weights.sum()).min()


@jax.default_matmul_precision('highest')
def best_action(costs: jax.Array, weights: jax.Array) -> jax.Array:
  """Index of the action that costs least on average.

  Args:
    costs: [N, A].
    weights: Of the rows, [..., N].

  Returns:
    [...].
  """
  return (weights @ costs).argmin(-1)


def _flat(rows):
  return rows.reshape((rows.shape[0], -1))


def _number(bandwidth):
  return bandwidth if isinstance(bandwidth, float | int) else 'chosen'


def _check_bandwidth(bandwidth):
  if not isinstance(bandwidth, jax.Array):
    check_range('(0, inf)', bandwidth=bandwidth)
