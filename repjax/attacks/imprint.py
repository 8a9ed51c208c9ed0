"""Plants an imprint in a network, and reads inputs from its gradient.

Fowl et al., 'Robbing the Fed', ICLR 2022, section 3
(https://arxiv.org/abs/2110.13057). Row i of the first matrix W of an imprint
(`repjax.layers.imprint`) answers to inputs x above the edge c_i. Every input
has one upstream gradient g for all rows, so that the gradient of W_i is the sum
of g x over inputs above c_i, that of its bias the sum of g, and what is between
two edges

    (dW_i - dW_{i+1}) / (db_i - db_{i+1})

is an input itself where the bin holds one, and else a mean of several by g.
Means instead of sums, learning rates and clip norms cancel in the ratio.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

from flax import core
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from repjax import trees
from repjax import types
from repjax.layers import imprint

Order = Literal['weight', 'bias']

# A bin of cumulative rows is empty if its two rows' bias gradients differ by
# rounding. Relative to the largest bias gradient of a row.
_EMPTY = {'float64': 1e-13, 'float32': 1e-7}


class Trap(NamedTuple):
  """What a server plants.

  Attributes:
    direction: What rows look along, [d] (`imprint_bins.direction`).
    edges: Of the bins, increasing, [k + 1] (`imprint_bins.of_public`).
    kind: 'cumulative' or 'sparse'.
    gain: Factor of the rows' weights and biases, > 0.
  """

  direction: np.ndarray
  edges: np.ndarray
  kind: imprint.Kind = 'cumulative'
  gain: float = 1.0

  def scores(self, inputs: np.ndarray) -> np.ndarray:
    """Inputs [n, ...] along the direction, [n], float64."""
    flat = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    return flat @ np.asarray(self.direction, np.float64)

  def layer(self, connection: imprint.Connection) -> imprint.Imprint:
    """The layer that it is planted in."""
    return imprint.Imprint(
      len(self.edges) - 1, self.kind, connection, float(self.gain)
    )


class Found(NamedTuple):
  """What was read from a gradient.

  Attributes:
    inputs: One a bin, [k, d]; 0 of empty bins.
    weight: Mean of a bin's weight gradient, [k].
    bias: A bin's bias gradient, [k].
    hit: Whether a bin is not empty, [k].
  """

  inputs: np.ndarray
  weight: np.ndarray
  bias: np.ndarray
  hit: np.ndarray


def params(trap: Trap, connection: imprint.Connection) -> dict[str, Any]:
  """Parameters of `trap.layer(connection)`, float64.

  A sparse row is divided by the width of its bin, and begins at its lower edge.
  (The authors' code begins at the upper edge with the width of the bin below,
  so that windows overlap on the left and leave gaps on the right.)

  Raises:
    InputError: If there are fewer than 2 bins, or edges do not increase.
  """
  direction = np.asarray(trap.direction, np.float64)
  edges = np.asarray(trap.edges, np.float64)
  types.check_choice('kind', trap.kind, imprint.KINDS)
  types.check_choice('connection', connection, imprint.CONNECTIONS)
  types.check_range('[2, inf)', num_bins=len(edges) - 1)
  types.check_range('(0, inf)', gain=trap.gain)
  width = np.diff(edges)
  if not (width >= 0).all() or (trap.kind == 'sparse' and not width.all()):
    raise types.InputError(
      'edges of bins must increase: public inputs have too many ties along '
      "this direction; take direction='randn' or fewer bins."
    )
  scale = np.full(len(width), trap.gain)
  if trap.kind == 'sparse':
    scale /= width
  planted = {
    'rows': {
      'kernel': direction[:, None] * scale,
      'bias': -edges[:-1] * scale,
    }
  }
  if connection == 'linear':
    planted['back'] = {
      'kernel': np.full((len(width), len(direction)), 1 / trap.gain),
      'bias': np.full(len(direction), -edges[:-1].mean()),
    }
  return planted


def plant(
  variables: types.PyTree,
  trap: Trap,
  connection: imprint.Connection,
  *,
  at: Sequence[str] = ('imprint',),
) -> dict[str, Any]:
  """A model's variables with a trap in the place of its imprint's parameters.

  Args:
    variables: Of a model with an imprint, such as `imprint.Imprinted`.
    trap: What is planted.
    connection: That of the imprint.
    at: Where the imprint stands in 'params'.

  Raises:
    InputError: If there is no imprint there, or its input is of another size.
  """
  variables = core.unfreeze(variables)
  flat = traverse_util.flatten_dict(variables['params'])
  new = {
    (*at, *path): x
    for path, x in traverse_util.flatten_dict(params(trap, connection)).items()
  }
  old = {path: x for path, x in flat.items() if path[: len(at)] == tuple(at)}
  trees.check_leaves(
    new,
    old,
    what=f'An imprint of {len(trap.edges) - 1} rows over '
    f'{len(trap.direction)} numbers and the layer {"/".join(at)!r}',
  )
  flat |= {path: jnp.asarray(new[path], x.dtype) for path, x in old.items()}
  return {**variables, 'params': traverse_util.unflatten_dict(flat)}


def read(
  gradient: types.PyTree,
  kind: imprint.Kind,
  *,
  at: Sequence[str] = ('imprint',),
  top: bool = True,
) -> Found:
  """Reads inputs from a gradient, or from the change of parameters.

  Args:
    gradient: Of all parameters, or any multiple of it.
    kind: Of the imprint.
    at: Where it stands in the tree.
    top: Whether the top bin is read, too, which is that of the last row. The
      authors' code reads, in its place, all inputs at once.
  """
  for name in at:
    gradient = gradient[name]
  rows = jax.device_get(gradient['rows'])
  return invert(rows['kernel'], rows['bias'], kind, top=top)


def invert(
  kernel: np.ndarray, bias: np.ndarray, kind: imprint.Kind, *, top: bool = True
) -> Found:
  """`read`, of the gradients of the rows' kernel [d, k] and bias [k]."""
  types.check_choice('kind', kind, imprint.KINDS)
  kernel, bias = np.asarray(kernel.T), np.asarray(bias)
  # A sparse row stands alone: without an input its gradient is 0 exactly.
  empty = 0.0
  if kind == 'cumulative':
    largest = np.abs(bias).max(initial=0.0)
    empty = _EMPTY.get(str(bias.dtype), 1e-7) * largest
    kernel, bias = (
      np.concatenate([x[:-1] - x[1:], x[-1:]]) for x in (kernel, bias)
    )
  hit = np.abs(bias) > empty
  if not top:
    hit[-1] = False
  inputs = np.zeros_like(kernel)
  inputs[hit] = kernel[hit] / bias[hit, None]
  return Found(inputs, kernel.mean(1), bias, hit)


def best(found: Found, count: int, order: Order = 'bias') -> np.ndarray:
  """At most so many inputs, as the authors' code chooses them, [m, d].

  Args:
    found: From `read`.
    count: n, of private inputs, where the server knows it.
    order: 'bias', least first (clean gradients, few bins: where several inputs
      share a bin, more gradient is left), or 'weight', largest first (noisy
      gradients: in bins without an input noise alone is left).
  """
  types.check_choice('order', order, ('weight', 'bias'))
  hits = np.flatnonzero(found.hit)
  size = np.abs(found.bias) if order == 'bias' else -np.abs(found.weight)
  return found.inputs[hits[np.argsort(size[hits], kind='stable')[:count]]]
