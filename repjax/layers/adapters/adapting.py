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
from collections.abc import Mapping
import re
from typing import Any

import flax.linen as nn

from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.layers.adapters import designs
from repjax.layers.adapters import plans
from repjax.types import InputError


class Adapted(frozen.PartlyTrained):
  """A model with adapters; made by `adapt`."""

  plan: plans.Plan


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
    plans.Plan(
      frozen.whole(model), train or frozen.nothing, tuple(rules.items())
    )
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
