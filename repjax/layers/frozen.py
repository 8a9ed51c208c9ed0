"""Device code: one way to train a part of a linen model.

    model = frozen.train_only(vit.ViT(...), lambda path: path[0] == 'head')

is a linen module with the calls of the model, whose 'params' are what trains.
All other parameters are in the collection `types.FROZEN`, which is no part of
'params': optimizers, clipping of gradients (of examples, too) and weight decay
know nothing of it, and no step changes a bit of it. `repjax.layers.adapters`
adds layers to what is frozen.

Layers inside of `nn.remat` and `nn.scan` are found, too. A method that is
handed over as a function is not supported: use its name, `method='encode'`.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import types as python_types
from typing import Any

from flax import core
from flax import errors
from flax import traverse_util
from flax.core import scope as scope_lib
import flax.linen as nn
import jax.numpy as jnp

from repjax import trees
from repjax import types
from repjax.types import InputError

Predicate = Callable[[trees.Path], bool]


def nothing(path: trees.Path) -> bool:
  """A predicate that selects no leaf."""
  del path  # Whatever it is.
  return False


@dataclasses.dataclass(frozen=True)
class Plan:
  """What `train_only` was told.

  No module itself, so that linen does not make the model a part of what holds
  the plan, with a name of its own.

  Attributes:
    model: The whole model.
    train: Path of a parameter of the model -> whether it is trained.
  """

  model: nn.Module
  train: Predicate

  def is_trained(self, path: trees.Path) -> bool:
    """Whether a leaf is in 'params'."""
    return bool(self.train(path))

  def divide(self, tree: types.PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides one tree of all parameters into ('params', `types.FROZEN`)."""
    trees.mask(tree, self.is_trained)  # Fails if it selects nothing.
    leaves = _flat(tree)
    return tuple(
      traverse_util.unflatten_dict(
        {p: x for p, x in leaves.items() if self.is_trained(p) is trained}
      )
      for trained in (True, False)
    )

  @contextlib.contextmanager
  def calling(
    self, root: core.Scope, kwargs: Mapping[str, Any], *, starting: bool
  ) -> Iterator[None]:
    """What a call of the model runs in; the whole model is called as it is."""
    del root, kwargs, starting  # For plans that change layers.
    yield


class PartlyTrained(nn.Module):
  """A model of which a part is trained; made by `train_only`.

  Has the methods of the model (`method='encode'`) and its fields.
  """

  plan: Plan

  def __call__(self, *args, **kwargs):
    """Calls the model."""
    return self._run('__call__', args, kwargs)

  @nn.nowrap
  def __getattr__(self, name):
    plan = self.__dict__.get('plan')
    if plan is not None and not name.startswith('_'):
      if name in {field.name for field in dataclasses.fields(plan.model)}:
        return getattr(plan.model, name)
      if callable(getattr(type(plan.model), name, None)):
        return python_types.MethodType(
          lambda self, *args, **kwargs: self._run(name, args, kwargs), self
        )
    return super().__getattr__(name)

  def _run(self, method, args, kwargs):
    plan, scope = self.plan, self.scope
    starting = self.is_initializing()
    variables = core.unfreeze(scope.variables())
    still = variables.pop(types.FROZEN, {})
    trained = variables.pop('params', {})
    if not starting:
      _check_trained(plan, trained)
      still = _as_computed(still, trained)
    mutable = scope.mutable
    if not starting:
      mutable = scope_lib.subtract_filters(mutable, ('params', types.FROZEN))
    # The scope that the model would have in place of this module, with the
    # same keys: it draws the same dropout masks.
    inner = core.bind(
      {'params': _union(still, trained), **variables},
      rngs=scope.rngs,
      mutable=mutable,
      flags=scope.flags,
    )
    inner.rng_counters = scope.rng_counters
    try:
      with (
        inner.temporary() as root,
        plan.calling(root, kwargs, starting=starting),
      ):
        model = plan.model.clone(parent=root)
        output = getattr(model, method)(*args, **kwargs)
    except (
      errors.ScopeCollectionNotFound,
      errors.ScopeParamNotFoundError,
      errors.ScopeParamShapeError,
    ) as error:
      hint = f', which needs the collection {types.FROZEN!r}' * (not still)
      raise InputError(
        f'the variables do not fit the model{hint}: {error}'
      ) from error
    changed = dict(inner.mutable_variables())
    if starting:
      changed['params'], changed[types.FROZEN] = plan.divide(changed['params'])
    for collection, tree in changed.items():
      for name, value in tree.items():
        scope.put_variable(collection, name, value)
    return output


def train_only(model: nn.Module, predicate: Predicate) -> PartlyTrained:
  """A model of which a part is trained, and the rest never changes.

  Args:
    model: Any linen module; not changed.
    predicate: Path of a parameter -> whether it is trained, for example
      `lambda path: path[0] == 'head'`.

  Returns:
    A module whose `init` fails with `trees.mask`'s error where nothing is
    selected.

  Raises:
    InputError: A part of the model is frozen already.
  """
  return PartlyTrained(Plan(whole(model), predicate))


def whole(model: nn.Module) -> nn.Module:
  """The model by itself, for a plan.

  Raises:
    InputError: A part of it is frozen already.
  """
  if isinstance(model, PartlyTrained):
    raise InputError(
      'a part of the model is frozen already, or it has adapters: give all '
      'rules, and what trains beside them, to one `train_only` or `adapt`'
    )
  return model.clone(parent=None, name=None)


def joined(variables: types.PyTree) -> dict[str, Any]:
  """All parameters of a model in one tree: trained and frozen ones.

  Args:
    variables: Of any model; {'params': state.params, **state.model_state} of a
      training state will do.
  """
  variables = core.unfreeze(variables)
  return _union(variables.get(types.FROZEN, {}), variables['params'])


def with_params(
  variables: types.PyTree,
  params: types.PyTree,
  *,
  keep: Predicate = nothing,
  what: str = 'the given parameters',
) -> dict[str, Any]:
  """Variables with other parameters, be they trained or frozen.

  Args:
    variables: Of any model, as its `init` gives them.
    params: One tree of all parameters, as of the same model without
      `train_only`. They get the types of the old ones.
    keep: Path of a parameter -> whether it stays as it is (a new head); what
      `params` may have there does not count.
    what: What `params` are, for the error.

  Raises:
    InputError: A leaf is missing, left over or of another shape; names it.
  """
  variables = core.unfreeze(variables)
  new = {p: x for p, x in _flat(params).items() if not keep(p)}
  old = {p: x for p, x in _flat(joined(variables)).items() if not keep(p)}
  trees.check_leaves(new, old, what=what)
  for collection in {'params', types.FROZEN} & variables.keys():
    variables[collection] = traverse_util.unflatten_dict(
      {
        path: jnp.asarray(new[path], x.dtype) if path in new else x
        for path, x in _flat(variables[collection]).items()
      }
    )
  return variables


def _flat(tree):
  return traverse_util.flatten_dict(core.unfreeze(tree))


def _check_trained(plan, trained):
  strange = [
    '/'.join(path) for path in _flat(trained) if not plan.is_trained(path)
  ]
  if strange:
    raise InputError(
      f"'params' of this model are its adapters and what trains beside them; "
      f'no rule makes {strange}'
    )


def _as_computed(still, trained):
  """Frozen parameters in the type that a step has cast the trained ones to.

  In float32 beside bfloat16 they would have all products in float32.
  """
  kinds = {
    x.dtype
    for path, x in _flat(trained).items()
    if path[-1] not in trees.SINGLE and jnp.issubdtype(x.dtype, jnp.floating)
  }
  if len(kinds) != 1 or min(kinds).itemsize >= 4:
    return still
  return trees.cast(still, min(kinds))


def _union(still, trained):
  """One tree of both."""
  merged = dict(still)
  for name, value in trained.items():
    both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
    merged[name] = _union(merged[name], value) if both else value
  return merged
