"""Device code: adapters in any linen model, which itself stays as it is.

`adapt(model, rules)` is a linen module with the calls of `model`. Its layers
are intercepted; `designs` has what may be added to them. Collections:

- 'params' has what is trained: adapters, and what `train` selects. They lie
  where their layer lies, under the adapter's name:
  params['block_0']['attention']['query']['lora'].
- 'base' has the other parameters of the model, as `model.init` names them. It
  is no part of 'params', so that optimizers, clipping of per-example gradients
  and weight decay know nothing of it, and no step changes a bit of it.

    adapted = adapters.adapt(model, {r'.*/(query|value)': designs.lora(8)})
    variables = adapted.init(rng, image, train=False)
    variables = adapters.with_base(adapted, variables, pretrained_params)
    logits = adapted.apply(variables, image, train=False)

Layers inside of `nn.remat` and `nn.scan` are found, too: adapters are scanned
as their layers are. Two things are not supported: `nn.jit` inside of a model,
whose trace may be one from before, without adapters, and a method that is
handed over as a function (use its name: `method='encode'`).
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import re
import types as python_types
from typing import Any

from flax import core
from flax import errors
from flax import traverse_util
from flax.core import scope as scope_lib
import flax.linen as nn

from repjax import trees
from repjax import types
from repjax.layers.adapters import branches
from repjax.layers.adapters import designs
from repjax.layers.adapters import plans
from repjax.types import InputError

BASE = types.FROZEN


class Adapted(nn.Module):
  """A model with adapters; made by `adapt`.

  Has the methods of the model (`method='encode'`) and its fields.
  """

  plan: plans.Plan

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
    base = variables.pop(BASE, {})
    own = variables.pop('params', {})
    if not starting:
      _check_leaves(plan, base, own)
    mutable = scope.mutable
    if not starting:
      mutable = scope_lib.subtract_filters(mutable, ('params', BASE))
    # The scope that the model would have in place of this module, with the
    # same keys: it draws the same dropout masks.
    inner = core.bind(
      {'params': _union(base, own), **variables},
      rngs=scope.rngs,
      mutable=mutable,
      flags=scope.flags,
    )
    inner.rng_counters = scope.rng_counters
    drop = 'dropout' in inner.rngs and plans.is_training(kwargs)
    visit = plans.Visit(plan, drop=drop)
    try:
      with inner.temporary() as root:
        visit.hidden = {
          i: branches.reparametrize(adapter, root.push(plan.shared(i)))
          for i, (_, adapter) in enumerate(plan.rules)
          if adapter.reparametrization is not None
        }
        model = plan.model.clone(parent=root)
        with nn.intercept_methods(visit):
          output = getattr(model, method)(*args, **kwargs)
    except (
      errors.ScopeCollectionNotFound,
      errors.ScopeParamNotFoundError,
      errors.ScopeParamShapeError,
    ) as error:
      raise InputError(
        f'the variables do not fit the adapted model: {error}'
      ) from error
    changed = dict(inner.mutable_variables())
    if starting:
      visit.check()
      changed['params'], changed[BASE] = split(self, changed['params'])
    for collection, tree in changed.items():
      for name, value in tree.items():
        scope.put_variable(collection, name, value)
    return output


def adapt(
  model: nn.Module,
  rules: Mapping[plans.Rule, designs.Adapter],
  *,
  train: Callable[[trees.Path], bool] | None = None,
) -> Adapted:
  """Puts adapters into a model.

  Args:
    model: Any linen module; not changed.
    rules: Which layers -> what they get. A layer may be selected by several
      rules with adapters of different kinds. A layer that the model calls more
      than once has one adapter.
    train: Path of a parameter of the model -> whether it is trained, too, as
      for a new head: `lambda path: path[0] == 'head'`.

  Returns:
    A module whose `init` fails with an InputError where a rule selects no
    layer, and with trees.mask's error where `train` selects no parameter.

  Raises:
    InputError: A rule is no regular expression or predicate, or there is none.
  """
  if isinstance(model, Adapted):
    raise InputError(
      'the model has adapters already: give all rules to one `adapt`'
    )
  if not rules and train is None:
    raise InputError('adapt needs a rule, such as {".*/query": lora(8)}')
  for rule, adapter in rules.items():
    if not isinstance(adapter, designs.Adapter):
      raise InputError(
        f'rule {rule!r}: adapters come from layers.adapter_designs, such as '
        f'lora(8); got {adapter!r}'
      )
    if isinstance(rule, str):
      try:
        re.compile(rule)
      except re.error as error:
        raise InputError(
          f'rule {rule!r} is no regular expression: {error}'
        ) from error
    elif not callable(rule):
      raise InputError(f'a rule is a str or a predicate; got {rule!r}')
  model = model.clone(parent=None, name=None)
  return Adapted(plans.Plan(model, tuple(rules.items()), train))


def split(
  model: Adapted, tree: types.PyTree
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Divides one tree of all parameters into ('params', 'base')."""
  plan = model.plan
  leaves = traverse_util.flatten_dict(core.unfreeze(tree))
  own = {path for path in leaves if plan.is_own(path)}
  if plan.train is not None:
    rest = traverse_util.unflatten_dict(
      {path: leaf for path, leaf in leaves.items() if path not in own}
    )
    trees.mask(rest, plan.train)  # Fails if it selects nothing.
    own |= {path for path in leaves if plan.is_trained(path)}
  return tuple(
    traverse_util.unflatten_dict(
      {path: leaf for path, leaf in leaves.items() if (path in own) is mine}
    )
    for mine in (True, False)
  )


def with_base(
  model: Adapted, variables: types.PyTree, params: types.PyTree
) -> dict[str, Any]:
  """Variables of an adapted model with other parameters of the base.

  Args:
    model: The adapted model.
    variables: From its `init`; {'params': state.params, **state.model_state}
      of a training state will do.
    params: Parameters of the base model, such as published weights.

  Raises:
    InputError: They are not those of the base model.
  """
  variables = core.unfreeze(variables)
  own = traverse_util.flatten_dict(variables['params'])
  adapters = {path: x for path, x in own.items() if model.plan.is_own(path)}
  trained = {path: x for path, x in own.items() if path not in adapters}
  base = traverse_util.flatten_dict(variables[BASE])
  new = traverse_util.flatten_dict(core.unfreeze(params))
  check_leaves(new, {**base, **trained}, what='parameters of the base model')
  variables['params'] = traverse_util.unflatten_dict(
    {**adapters, **{path: new[path] for path in trained}}
  )
  variables[BASE] = traverse_util.unflatten_dict(
    {path: new[path] for path in base}
  )
  return variables


def check_leaves(
  found: Mapping[trees.Path, Any],
  wanted: Mapping[trees.Path, Any],
  *,
  what: str,
) -> None:
  """Raises an InputError that names missing, extra and misshapen leaves."""

  def names(paths):
    return sorted('/'.join(path) for path in paths)

  missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
  shapes = [
    f'{"/".join(path)} {found[path].shape}, not {wanted[path].shape}'
    for path in wanted.keys() & found.keys()
    if found[path].shape != wanted[path].shape
  ]
  if missing or extra or shapes:
    raise InputError(
      f'{what} do not fit: missing {names(missing)}; unexpected '
      f'{names(extra)}; other shapes {sorted(shapes)}'
    )


def _check_leaves(plan, base, own):
  if not base:
    raise InputError(
      f'variables need the collection {BASE!r}, the parameters of the base '
      f'model: adapters.with_base puts them in'
    )
  strange = [
    '/'.join(path)
    for path in traverse_util.flatten_dict(own)
    if not plan.is_own(path) and not plan.is_trained(path)
  ]
  if strange:
    raise InputError(
      f"'params' of an adapted model are its adapters; no rule makes {strange}"
    )


def _union(base, own):
  """One tree of both."""
  merged = dict(base)
  for name, value in own.items():
    both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
    merged[name] = _union(merged[name], value) if both else value
  return merged
