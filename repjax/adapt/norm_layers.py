"""Device code: the norms of whatever a method predicts with.

Found and changed by intercepting calls of linen modules, so that no network
knows of it: `predict` is that of any `types.Method`, and stays in evaluation
mode, in which nothing drops out.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax

from repjax import interceptors
from repjax import trees
from repjax import types
from repjax.layers import norms

Predict = Callable[[types.TrainState, types.Batch], Mapping[str, jax.Array]]

Kind = Literal['batch', 'group', 'layer', 'other batch']

_KINDS: tuple[tuple[Kind, tuple[type[nn.Module], ...]], ...] = (
  ('batch', (norms.BatchNorm,)),
  ('group', (nn.GroupNorm, nn.InstanceNorm)),
  ('layer', (nn.LayerNorm, nn.RMSNorm)),
  # Flax's own: its statistics do not know padding, nor how to stand still.
  ('other batch', (nn.BatchNorm,)),
)
_AFFINE = ('scale', 'bias')


class Norm(NamedTuple):
  """A norm that a network calls.

  Attributes:
    path: Names of the module.
    kind: 'batch' is `layers.norms.BatchNorm`.
  """

  path: trees.Path
  kind: Kind


def find(
  predict: Predict, state: types.TrainState, batch: types.Batch
) -> tuple[Norm, ...]:
  """The norms that are called, in their order; computes nothing.

  Args:
    predict: Of the method.
    state: Its state.
    batch: Any batch; its shapes count.
  """
  found: dict[trees.Path, Norm] = {}

  def record(call, args, kwargs, context):
    for kind, classes in _KINDS:
      if isinstance(context.module, classes):
        path = tuple(context.module.path)
        found.setdefault(path, Norm(path, kind))
    return call(*args, **kwargs)

  def traced(state, batch):
    with nn.intercept_methods(record):
      return predict(state, batch)

  jax.eval_shape(traced, state, batch)
  return tuple(found.values())


def least_rows(
  predict: Predict, state: types.TrainState, batch: types.Batch
) -> int:
  """Real rows that a batch must have for statistics of its own, 1 or 2.

  Two if a batch norm has one value a row and channel, as on [B, D]; one row of
  several positions has statistics.

  Args:
    predict: Of the method.
    state: Its state.
    batch: Any batch; its shapes count.
  """
  least = [1]

  def record(call, args, kwargs, context):
    if isinstance(context.module, norms.BatchNorm):
      x = args[0] if args else kwargs['x']
      least.append(2 if norms.num_positions(x) < 2 else 1)
    return call(*args, **kwargs)

  def traced(state, batch):
    with nn.intercept_methods(record):
      return predict(state, batch)

  jax.eval_shape(traced, state, batch)
  return max(least)


def affine(
  variables: types.PyTree,
  layers: tuple[Norm, ...],
  select: Callable[[trees.Path], bool] = lambda path: True,
) -> tuple[trees.Path, ...]:
  """Paths of the scales and biases of norms, in tree order.

  Args:
    variables: Of the model; paths begin with the collection, 'params' or
      `types.FROZEN`.
    layers: As `find` gives them.
    select: Path of a scale or bias, without the collection -> whether it is
      wanted.

  Raises:
    InputError: There is none.
  """
  modules = {x.path for x in layers}
  paths = [
    path
    for path in trees.flatten(variables)
    if path[0] in ('params', types.FROZEN)
    and path[-1] in _AFFINE
    and not modules.isdisjoint(interceptors.module_paths(path[1:-1]))
  ]
  if not paths:
    raise types.InputError(
      'This network calls no norm with a scale or bias: there is nothing that '
      'could adapt. Norms are those of repjax.layers.norms, and GroupNorm, '
      'LayerNorm, InstanceNorm and RMSNorm of flax.linen.'
    )
  wanted = tuple(path for path in paths if select(path[1:]))
  if not wanted:
    names = ['/'.join(path[1:]) for path in paths]
    raise types.InputError(
      'No scale or bias of a norm is selected; there are '
      f'{", ".join(names[:8])}{", ..." if len(names) > 8 else ""}.'
    )
  return wanted


def with_statistics(predict: Predict, prior: float) -> Predict:
  """The same predictions with statistics of the batch in all batch norms.

  Where padding leaves one real row, as in the last batch of a stream, norms on
  [B, D] keep the running statistics if `prior` is 0: nothing would be left of
  the row else. A stream of such batches alone is refused.

  Args:
    predict: Of a method whose networks have `layers.norms.BatchNorm`.
    prior: Rows that the running statistics count as, >= 0.

  Raises:
    InputError: `prior` is out of range. When it is called: the statistics would
      be of a single row, or the network has no batch norm, or flax's own.
  """
  types.check_range('[0, inf)', prior=prior)

  def adapted(state, batch):
    _check(find(predict, state, batch), batch, prior)
    with _statistics(prior):
      return predict(state, batch)

  return adapted


@contextlib.contextmanager
def _statistics(prior: float) -> Iterator[None]:
  def change(call, args, kwargs: dict[str, Any], context):
    if isinstance(context.module, norms.BatchNorm):
      if kwargs.get('mask') is None:
        name = '/'.join(context.module.path)
        raise types.InputError(
          f'The norm {name!r} is called without the mask of real rows, so that '
          'padding and rows of other domains would enter its statistics: pass '
          'mask on to it.'
        )
      kwargs = {**kwargs, 'prior': prior}
    return call(*args, **kwargs)

  with nn.intercept_methods(change):
    yield


def _check(layers, batch, prior):
  kinds = {x.kind for x in layers}
  if 'other batch' in kinds:
    raise types.InputError(
      "This network has flax's BatchNorm, whose statistics count padding and "
      'cannot be those of a batch in evaluation: build it with '
      'repjax.layers.norms.BatchNorm.'
    )
  if 'batch' not in kinds:
    raise types.InputError(
      'This network has no batch norm, so that there are no statistics to take '
      f'from a batch; its norms are: {", ".join(sorted(kinds)) or "none"}.'
    )
  if batch['mask'].shape[0] < 2 and not prior:
    raise types.InputError(
      'Statistics of a batch of one row would take from it all that tells it '
      'from others: give larger batches, or a prior > 0.'
    )
