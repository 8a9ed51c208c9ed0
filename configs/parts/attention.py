"""The attention that a config's group `attention` names."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from repjax import types
from repjax.layers import attention
from repjax.layers import performer
from repjax.layers import rfa

_CLASSES = dict(
  exact=attention.Softmax,
  flash=attention.Flash,
  favor=performer.Favor,
  performer=performer.Favor,
  rfa=rfa.Rfa,
)
_EXACT = ('exact', 'flash')


def attention_fn(
  settings: Mapping[str, Any], *, causal: bool
) -> Callable[..., Any]:
  """Exact attention, FAVOR+ or RFA, as an `attention_fn` of linen.

  Args:
    settings: kind, 'exact', 'flash' (exact, too, by a fused kernel where the
      device has one), 'favor' or its other name 'performer', or 'rfa'; and
      fields of that attention. The exact ones look at none of them, so that
      kind='exact' switches any other one off.
    causal: Whether a query sees no later keys. Without it there is no order in
      which RFA's gate could forget, and it has none.

  Raises:
    InputError: If `kind` is none of those that have all the fields, or a value
      is out of range.
  """
  fields = dict(settings)
  kind = fields.pop('kind')
  kinds = [
    name
    for name, made in _CLASSES.items()
    if name in _EXACT or fields.keys() <= _names(made)
  ]
  if kind not in kinds:
    raise types.InputError(
      f'config.attention.kind is one of {", ".join(kinds)} (what the other '
      f'fields of the group, {", ".join(fields)}, fit); got {kind!r}.'
    )
  if kind in _EXACT:
    fields = {}
  elif kind == 'rfa' and not causal:
    fields['gate'] = 'none'
  return _CLASSES[kind](causal=causal, **fields)


def _names(made):
  return {field.name for field in dataclasses.fields(made)}
