"""The attention that a config's group `attention` names."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from repjax import types

_EXACT = ('exact', 'flash')
_KINDS = (*_EXACT, 'favor', 'performer', 'rfa')


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
  if kind not in _KINDS or not _fits(kind, fields):
    kinds = [x for x in _KINDS if _fits(x, fields)]
    raise types.InputError(
      f'config.attention.kind is one of {", ".join(kinds)} (what the other '
      f'fields of the group, {", ".join(fields)}, fit); got {kind!r}.'
    )
  if kind in _EXACT:
    fields = {}
  elif kind == 'rfa' and not causal:
    fields['gate'] = 'none'
  return _class(kind)(causal=causal, **fields)


def _fits(kind, fields):
  if kind in _EXACT:
    return True
  return fields.keys() <= {x.name for x in dataclasses.fields(_class(kind))}


def _class(kind):
  """Imports no other attention than the one that is asked for."""
  if kind == 'exact':
    from repjax.layers.attention import softmax

    return softmax.Softmax
  if kind == 'flash':
    from repjax.layers.attention import flash

    return flash.Flash
  if kind == 'rfa':
    from repjax.layers import rfa

    return rfa.Rfa
  from repjax.layers import performer

  return performer.Favor
