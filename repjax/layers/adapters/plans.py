"""Device code: which layers get which adapters, and how they are changed."""

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
    visit = Visit(self, drop='dropout' in root.rngs and is_training(kwargs))
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


def fits(rule: Rule, path: trees.Path) -> bool:
  """Whether a rule selects the layer at a path."""
  if isinstance(rule, str):
    return re.fullmatch(rule, '/'.join(path)) is not None
  return bool(path) and bool(rule(path))


def is_training(kwargs: Mapping[str, Any]) -> bool:
  """Whether the arguments of a call do not say that it is deterministic."""
  return (
    kwargs.get('train') is not False and kwargs.get('deterministic') is not True
  )


class Visit:
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
    # What runs at no place is another model's, or a copy of some layer.
    stranger = not path and type(module) is not type(self._plan.model)
    if (
      context.method_name != '__call__'
      or stranger
      or path in self._inside
      or any((path[:i], path[i]) in self._met for i in range(len(path)))
    ):
      return next_fn(*args, **kwargs)
    self._layers[path] = type(module).__name__
    numbers = self._plan.selected(path)
    if not numbers:
      return next_fn(*args, **kwargs)

    def run(layer):
      # An adapter may have put a copy in the place of the layer.
      layer = next_fn if layer is module else layer
      return layer(*args, **kwargs)

    drop = self._drop and is_training(kwargs)
    for i in numbers:
      run = self._wrap(run, i, args, kwargs, drop)
    self._used.update(numbers)
    self._inside.append(path)
    try:
      return run(module)
    finally:
      self._inside.pop()

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
