"""Device code: adapters in any linen model, which itself stays as it is.

`adapt(model, rules)` is a linen module with the calls of `model`. Its layers
are intercepted; `designs` has what may be added to them. Collections:

- 'params' has what is trained: adapters, and what `train` selects. They lie
  where their layer lies, under the adapter's name:
  params['block_0']['attention']['query']['lora'].
- `types.FROZEN` has the other parameters of the model, as `model.init` names
  them; see `repjax.layers.frozen`, which trains a part without adapters.

    adapted = adapters.adapt(model, {r'.*/(query|value)': adapters.lora(8)})
    variables = adapted.init(rng, image, train=False)
    variables = adapters.with_base(adapted, variables, pretrained_params)
    logits = adapted.apply(variables, image, train=False)

Layers inside of `nn.remat` and `nn.scan` are found, too: adapters are scanned
as their layers are. `nn.jit` inside of a model is not supported, since its
trace may be one from before, without adapters.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import re
from typing import Any

from flax import core
from flax import traverse_util
import flax.linen as nn

from repjax import interceptors
from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.layers.adapters import branches
from repjax.layers.adapters import designs
from repjax.types import InputError

# Which layers: a regular expression that matches the whole path, its names
# joined by '/', or a predicate on the tuple of names. The model itself has the
# path '', which no predicate sees.
Rule = str | Callable[[trees.Path], bool]


@dataclasses.dataclass(frozen=True)
class Plan(frozen.Plan):
  """What `adapt` was told.

  Attributes:
    model: The base model.
    train: Path of a parameter of the model -> whether it is trained, too.
    rules: (rule, adapter) pairs.
  """

  rules: tuple[tuple[Rule, designs.Adapter], ...]

  def at(self, path: trees.Path) -> dict[str, designs.Adapter]:
    """Adapters of a layer, by name."""
    return {
      self.rules[i][1].name: self.rules[i][1] for i in self.selected(path)
    }

  def selected(self, path: trees.Path) -> list[int]:
    """Numbers of the rules that select a layer."""
    found = [i for i, (rule, _) in enumerate(self.rules) if fits(rule, path)]
    names = [self.rules[i][1].name for i in found]
    if len(set(names)) < len(names):
      raise InputError(
        f'rules {[self.rules[i][0] for i in found]} give layer '
        f'{"/".join(path)!r} two adapters of one kind: {names}'
      )
    return found

  def shared(self, rule: int) -> str:
    """Top name of what the prefixes of a rule share."""
    return f'reparametrization_{rule}'

  def is_trained(self, path: trees.Path) -> bool:
    """Whether a leaf is an adapter's, or selected beside them."""
    return self.is_own(path) or super().is_trained(path)

  def divide(self, tree: types.PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides one tree of all parameters into ('params', `types.FROZEN`)."""
    if self.train is not frozen.nothing:
      leaves = traverse_util.flatten_dict(core.unfreeze(tree))
      rest = {path: x for path, x in leaves.items() if not self.is_own(path)}
      # Fails if it selects nothing.
      trees.mask(traverse_util.unflatten_dict(rest), self.train)
    return super().divide(tree)

  @contextlib.contextmanager
  def calling(
    self, root: core.Scope, kwargs: Mapping[str, Any], *, starting: bool
  ) -> Iterator[None]:
    """Changes layers while the model is called."""
    visit = _Visit(self, drop='dropout' in root.rngs and _is_training(kwargs))
    visit.hidden = {
      i: branches.reparametrize(adapter, root.push(self.shared(i)))
      for i, (_, adapter) in enumerate(self.rules)
      if adapter.reparametrization is not None
    }
    with nn.intercept_methods(visit):
      yield
    if starting:
      visit.check()

  def is_own(self, leaf: trees.Path) -> bool:
    """Whether a leaf belongs to an adapter."""
    shared = {
      self.shared(i)
      for i, (_, adapter) in enumerate(self.rules)
      if adapter.reparametrization is not None
    }
    return leaf[0] in shared or self.owner(leaf) is not None

  def owner(
    self, leaf: trees.Path
  ) -> tuple[trees.Path, designs.Adapter] | None:
    """(layer, adapter) of a leaf of 'params', or None if it is no adapter's."""
    for i in range(len(leaf) - 1):
      adapter = self.at(leaf[:i]).get(leaf[i])
      if adapter is not None:
        return leaf[:i], adapter
    return None


class Adapted(frozen.PartlyTrained):
  """A model with adapters; made by `adapt`."""

  plan: Plan


def adapt(
  model: nn.Module,
  rules: Mapping[Rule, designs.Adapter],
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
    InputError: A rule is no regular expression or predicate, there is none, or
      a part of the model is frozen already.
  """
  if not rules:
    raise InputError(
      'adapt needs a rule, such as {".*/query": lora(8)}; '
      'layers.frozen.train_only trains a part of a model without adapters'
    )
  for rule, adapter in rules.items():
    if not isinstance(adapter, designs.Adapter):
      raise InputError(
        f'rule {rule!r}: adapters come from layers.adapters, such as lora(8); '
        f'got {adapter!r}'
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
  return Adapted(
    Plan(frozen.whole(model), train or frozen.nothing, tuple(rules.items()))
  )


def added(model: nn.Module) -> frozen.Predicate:
  """Path of a parameter -> whether it is an adapter's, of any model."""
  return model.plan.is_own if isinstance(model, Adapted) else frozen.nothing


def with_base(
  model: Adapted, variables: types.PyTree, params: types.PyTree
) -> dict[str, Any]:
  """Variables of an adapted model with other parameters of the base.

  Args:
    model: The adapted model.
    variables: From its `init`.
    params: Parameters of the base model, such as published weights.

  Raises:
    InputError: They are not those of the base model.
  """
  return frozen.with_params(
    variables,
    params,
    keep=added(model),
    what='the parameters of the base model',
  )


def fits(rule: Rule, path: trees.Path) -> bool:
  """Whether a rule selects the layer at a path."""
  if isinstance(rule, str):
    return re.fullmatch(rule, '/'.join(path)) is not None
  return bool(path) and bool(rule(path))


def _is_training(kwargs: Mapping[str, Any]) -> bool:
  """Whether the arguments of a call do not say that it is deterministic."""
  return (
    kwargs.get('train') is not False and kwargs.get('deterministic') is not True
  )


class _Visit(interceptors.Interceptor):
  """The interceptor of one call: changes the layers that rules select."""

  def __init__(self, plan, *, drop):
    self.hidden = {}
    self._plan = plan
    self._drop = drop
    self._inside = []  # Layers that are being changed.
    self._met = set()  # (layer, adapter).
    self._used = set()  # Numbers of rules.
    self._layers = {}  # All layers that were called.

  def __call__(self, next_fn, args, kwargs, context):
    module = context.module
    path = tuple(module.path)
    if self._passes(module, context.method_name):
      return next_fn(*args, **kwargs)
    self._layers[path] = type(module).__name__
    numbers = self._plan.selected(path)
    if not numbers:
      return next_fn(*args, **kwargs)

    def run(layer):
      # An adapter may have put a copy in the place of the layer.
      layer = next_fn if layer is module else layer
      return layer(*args, **kwargs)

    drop = self._drop and _is_training(kwargs)
    for i in numbers:
      run = self._wrap(run, i, args, kwargs, drop)
    self._used.update(numbers)
    self._inside.append(path)
    try:
      return run(module)
    finally:
      self._inside.pop()

  def changes(self, module, method):
    selected = self._plan.selected
    return not self._passes(module, method) and bool(selected(module.path))

  def _passes(self, module, method):
    """Whether a call is of no layer that a rule could select."""
    path = tuple(module.path)
    # What runs at no place is another model's, or a copy of some layer.
    stranger = not path and type(module) is not type(self._plan.model)
    return (
      method != '__call__'
      or stranger
      or path in self._inside
      or any((path[:i], path[i]) in self._met for i in range(len(path)))
    )

  def alike(self, layers):
    selected = self._plan.selected
    return all(
      len({tuple(selected(path)) for path in paths}) == 1 for paths in layers
    )

  def _wrap(self, run, number, args, kwargs, drop):
    adapter = self._plan.rules[number][1]

    def changed(module):
      key = (tuple(module.path), adapter.name)
      if module.scope.name_reserved(adapter.name) and key not in self._met:
        raise InputError(
          f'layer {"/".join(key[0])!r} has a part {adapter.name!r} of its own'
        )
      self._met.add(key)
      return branches.change(
        adapter,
        branches.Call(module, run, args, kwargs, drop),
        module.scope.push(adapter.name, reuse=True),
        self.hidden.get(number),
      )

    return changed

  def check(self):
    """Raises an InputError for rules that selected nothing."""
    unused = [
      rule
      for i, (rule, _) in enumerate(self._plan.rules)
      if i not in self._used
    ]
    if unused:
      layers = [
        f'{"/".join(path) or "(the model itself)"} ({kind})'
        for path, kind in self._layers.items()
      ]
      shown = ', '.join(layers[:40]) + ', ...' * (len(layers) > 40)
      raise InputError(
        f'rules {unused} select no layer (a rule matches the whole path). '
        f'Layers: {shown}'
      )
