"""What becomes of trained adapters: plain weights, plain prefixes, a budget."""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

from flax import core
from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.layers.adapters import adapting
from repjax.types import InputError


def merge(model: adapting.Adapted, variables: types.PyTree) -> dict[str, Any]:
  """Parameters of the base model with the changes of LoRA added to them.

  The base model with these parameters computes what the adapted one does, at
  no further cost. What `train` selects is in them, too.

  Args:
    model: The adapted model, whose adapters are all of LoRA.
    variables: Of it.

  Raises:
    InputError: There is another adapter, which is no change of a weight.
  """
  variables = core.unfreeze(variables)
  # Nothing is frozen where all of the base is trained beside.
  leaves = traverse_util.flatten_dict(variables.get(types.FROZEN, {}))
  own = traverse_util.flatten_dict(variables['params'])
  layers: dict[Any, dict[str, jax.Array]] = {}
  for path, leaf in own.items():
    owner = model.plan.owner(path)
    if owner is None:
      if not model.plan.is_trained(path):
        raise InputError(f'merge: {"/".join(path)} is no part of a LoRA')
      leaves[path] = leaf
    elif owner[1].design.form != 'linear':
      raise InputError(
        f'merge: {owner[1].name!r} at {"/".join(owner[0])!r} is no change of a '
        'weight; LoRA alone is'
      )
    else:
      layers.setdefault(owner, {})[path[-2]] = leaf
  for (layer, adapter), parts in layers.items():
    kernel = leaves[(*layer, 'kernel')]
    change = adapter.scale * _product(parts['down'], parts['up'], kernel.ndim)
    leaves[(*layer, 'kernel')] = (kernel + change).astype(kernel.dtype)
  return traverse_util.unflatten_dict(leaves)


def _product(down, up, ndim):
  """Wdown Wup of the rank of a kernel; further axes in front are layers'."""
  if down.ndim + up.ndim - 2 > ndim:  # Scanned or mapped layers.
    return jax.vmap(lambda a, b: _product(a, b, ndim - 1))(down, up)
  return jnp.tensordot(down, up, 1, precision='highest')


def collapse(
  model: adapting.Adapted, params: types.PyTree
) -> tuple[adapting.Adapted, dict[str, Any]]:
  """Makes the prefixes of reparametrizations, which are no longer needed then.

  Args:
    model: The adapted model.
    params: Its 'params'.

  Returns:
    (model with the same adapters and no reparametrization, its 'params'). Both
    models compute the same.
  """
  plan = model.plan
  leaves = traverse_util.flatten_dict(core.unfreeze(params))
  for i, (rule, adapter) in enumerate(plan.rules):
    if adapter.reparametrization is None:
      continue
    parts = {
      path[1:]: leaves.pop(path)
      for path in list(leaves)
      if path[0] == plan.shared(i)
    }
    hidden = jnp.tanh(
      jnp.matmul(
        parts['embedding',], parts['hidden', 'kernel'], precision='highest'
      )
      + parts['hidden', 'bias'][None]
    )
    for path in [p for p in leaves if p[-3:-1] in _MADE and p[-1] == 'kernel']:
      if adapting.fits(rule, path[:-3]):
        kernel, bias = leaves.pop(path), leaves.pop((*path[:-1], 'bias'))
        leaves[path[:-1]] = _rows(hidden, kernel, bias)
  rules = tuple(
    (rule, dataclasses.replace(adapter, reparametrization=None))
    for rule, adapter in plan.rules
  )
  plain = adapting.Adapted(dataclasses.replace(plan, rules=rules))
  return plain, traverse_util.unflatten_dict(leaves)


_MADE = (('prefix', 'key'), ('prefix', 'value'))


def _rows(hidden, kernel, bias):
  """[l, m] and [..., m, H, D] -> [..., l, H, D]."""
  product = jnp.einsum('lm,...mhd->...lhd', hidden, kernel, precision='highest')
  return product + bias[..., None, :, :]


class Budget(NamedTuple):
  """How much an adapted model trains, as the papers count it.

  Attributes:
    base: Parameters of the base model.
    parts: Kind of adapter -> its parameters that are kept after training;
      'base' -> those of the base model that are trained.
    discarded: Parameters of reparametrizations, which are trained, too.
  """

  base: int
  parts: Mapping[str, int]
  discarded: int

  @property
  def percent(self) -> float:
    """Kept parameters in percent of the base model's."""
    return 100 * sum(self.parts.values()) / self.base

  def __str__(self):
    parts = ', '.join(f'{name} {size:,}' for name, size in self.parts.items())
    text = (
      f'{sum(self.parts.values()):,} of {self.base:,} parameters '
      f'({self.percent:.1f} %): {parts}'
    )
    if self.discarded:
      text += f'; while training {self.discarded:,} more'
    return text


def budget(model: adapting.Adapted, variables: types.PyTree) -> Budget:
  """Counts parameters.

  Args:
    model: The adapted model.
    variables: Of it, or their shapes: `jax.eval_shape(model.init, ...)`.
  """
  params = core.unfreeze(variables['params'])
  kept = jax.eval_shape(lambda params: collapse(model, params)[1], params)
  parts: dict[str, int] = {}
  for path, leaf in traverse_util.flatten_dict(kept).items():
    owner = model.plan.owner(path)
    name = 'base' if owner is None else owner[1].name
    parts[name] = parts.get(name, 0) + leaf.size
  base = trees.size(variables.get(types.FROZEN, {})) + parts.get('base', 0)
  return Budget(base, parts, trees.size(params) - sum(parts.values()))


def trained_percent(model: nn.Module, variables: types.PyTree) -> float:
  """Trained parameters in percent of the model's, as the papers count them.

  Of any model; reparametrizations of prefixes do not count.
  """
  if isinstance(model, adapting.Adapted):
    return budget(model, variables).percent
  whole = trees.size(frozen.joined(variables))
  return 100 * trees.size(variables['params']) / whole
