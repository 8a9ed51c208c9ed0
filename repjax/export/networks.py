"""Host side: the network that a method predicts with, found by watching it.

A `Method` is three functions, which do not say what they apply. What is applied
shows while they run: linen tells of every call of a module. So the network of
any recipe is found, whatever method has trained it, and none has to name it.

    network = networks.of(experiment.method, state, batch)
    network.module.apply(network.variables, *args, train=False)
"""

from collections.abc import Mapping
import contextlib
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen


class Network(NamedTuple):
  """What a method predicts with.

  Attributes:
    module: The linen module, unbound.
    variables: Of it: averaged parameters where the method predicts with those.
    args: Shapes of what it is called with, by position.
  """

  module: nn.Module
  variables: Mapping[str, Any]
  args: tuple[Any, ...]

  @property
  def base(self) -> nn.Module:
    """The module without adapters, and without a division of its parameters."""
    if isinstance(self.module, frozen.PartlyTrained):
      return self.module.plan.model
    return self.module

  @property
  def params(self) -> dict[str, Any]:
    """All parameters of `base` in one tree: trained and frozen ones.

    Those of adapters are left out.
    """
    joined = frozen.joined(self.variables)
    return _without(joined, adapters.added(self.module))

  @property
  def merged(self) -> 'Network':
    """The network with its LoRA as a part of the weights.

    Raises:
      InputError: It has other adapters, which are no change of a weight.
    """
    if not isinstance(self.module, adapters.Adapted):
      return self
    rest = {
      name: x
      for name, x in self.variables.items()
      if name not in ('params', types.FROZEN)
    }
    params = adapters.merge(self.module, self.variables)
    return Network(self.base, {'params': params, **rest}, self.args)


def of(
  method: types.Method | types.Predictor,
  state: types.TrainState,
  batch: types.Batch | types.HostBatch,
  *,
  name: str = '',
) -> Network:
  """The one network that a method's `predict` applies.

  Nothing is computed: `predict` is only traced.

  Args:
    method: Of any recipe.
    state: What it predicts with.
    batch: Any rows, or their shapes.
    name: Class of the wanted one, where there are several; '' for the only one.

  Raises:
    InputError: It applies none of that name, or several.
  """
  found: list[Network] = []
  # Traced arrays, by their identity, and the leaves that they stand for.
  leaves: dict[int, Any] = {}

  def predict(traced, batch):
    for leaf, array in zip(
      jax.tree.leaves(traced), jax.tree.leaves(state), strict=True
    ):
      leaves[id(leaf)] = array
    with _watching(found):
      return method.predict(traced, batch)

  def arrays(network):
    return network._replace(
      variables=jax.tree.map(lambda x: leaves[id(x)], network.variables)
    )

  def traced(state, batch):
    outputs = predict(state, batch)
    # While the traced arrays live: identities are told by nothing else.
    found[:] = [arrays(x) for x in _distinct(found, leaves)]
    return outputs

  jax.eval_shape(traced, state, batch)
  kinds = [type(x.base).__name__ for x in found]
  if name:
    found = [x for x, kind in zip(found, kinds, strict=True) if kind == name]
  if len(found) != 1:
    several = f'the networks {", ".join(kinds)}' if kinds else 'no network'
    raise types.InputError(
      f'A run of this recipe predicts with {several}: name one of them by '
      f'--network, not {name!r}, or write the prediction by --format=jax.'
    )
  return found[0]


@contextlib.contextmanager
def _watching(found):
  """Notes the outermost calls of modules."""
  depth = 0

  def interceptor(next_fn, args, kwargs, context):
    nonlocal depth
    if not (depth or context.module.path or context.method_name == 'setup'):
      module, variables = context.module.unbind()
      found.append(Network(module, variables, jax.tree.map(_shape, args)))
    depth += 1
    try:
      return next_fn(*args, **kwargs)
    finally:
      depth -= 1

  with nn.intercept_methods(interceptor):
    yield


def _shape(x):
  if isinstance(x, jax.Array | np.ndarray):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
  return x  # Such as a name.


def _distinct(found, leaves):
  """One of those calls that have the same leaves of the state."""
  seen: dict[tuple[int, ...], Network] = {}
  for network in found:
    own = tuple(id(x) for x in jax.tree.leaves(network.variables))
    # A loop that decodes sees the same parameters as arrays of its own.
    if leaves.keys() >= {*own}:
      seen.setdefault(own, network)
  return list(seen.values())


def _without(tree, drop, path=()):
  kept = {}
  for name, x in tree.items():
    here = (*path, name)
    if isinstance(x, Mapping):
      x = _without(x, drop, here)
      if not x:
        continue
    elif drop(here):
      continue
    kept[name] = x
  return kept
