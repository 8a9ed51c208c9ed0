"""Device code: switching units of a network off, for a moment or for good.

How Hernandez et al., ICLR 2022 (https://arxiv.org/abs/2201.11114), section 6,
take text units out of a classifier: those that MILAN describes so, the least
useful one first, by the accuracy that is left without it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import trees
from repjax import types
from repjax.layers import layer_outputs

# A unit of a network: (layer, number).
Unit = tuple[str, int]

# (state, batch) -> name -> one row an example; `predict` of a method.
Predict = Callable[[Any, Mapping[str, Any]], Mapping[str, jax.Array]]


def remove(params: types.PyTree, units: Sequence[Unit]) -> types.PyTree:
  """Parameters with which some units are 0 for good, whatever they are shown.

  Args:
    params: Of a network; not changed.
    units: Of layers whose every parameter has one column a unit: convolutions,
      dense layers, norms.

  Raises:
    InputError: There is no such layer or unit, or a layer has layers of its
      own, such as a block: what a shortcut brings past them would stay.
  """
  off: dict[tuple[str, ...], list[int]] = {}
  for layer, unit in units:
    paths = trees.under(params, layer)
    deep = [x for x in paths if len(x) != len(layer.split('/')) + 1]
    if deep:
      raise types.InputError(
        f'{layer!r} is no single layer, and its units have no parameters of '
        f'their own: it has {"/".join(deep[0])}. Name a convolution, a dense '
        'layer or a norm.'
      )
    for path in paths:
      off.setdefault(path, []).append(unit)

  def without(path, x):
    width = x.shape[-1] if x.ndim else 0
    for unit in off.get(path, ()):
      if not 0 <= unit < width:
        raise types.InputError(
          f'{"/".join(path)} has {width} columns, and no unit {unit} to remove.'
        )
    return x.at[..., off[path]].set(0) if path in off else x

  return trees.map_with_path(without, jax.tree.map(jnp.asarray, params))


def chosen(
  units: Sequence[Unit], widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  """Layer -> 1 for each of its units that is among some, else 0, [C]."""
  off = {layer: np.zeros(width, bool) for layer, width in widths.items()}
  for layer, unit in units:
    if layer not in off or not 0 <= unit < len(off[layer]):
      raise types.InputError(
        f'there is no unit {unit} of {layer!r} in {widths}'
      )
    off[layer][unit] = True
  return off


def accuracy_without(
  predict: Predict,
  state: Any,
  columns: Mapping[str, Any],
  choices: Mapping[str, np.ndarray],
  *,
  column: str = 'label',
) -> np.ndarray:
  """Accuracy where some units are 0, one number a choice, [N].

  Args:
    predict: Gives 'logits'.
    state: Its first argument.
    columns: The rows, at once.
    choices: Layer -> which of its units are off, [N, C]; all share a program.
    column: What is right.
  """
  label = jnp.asarray(columns[column])
  batch = {**columns, 'mask': jnp.ones(len(label))}
  run = _accuracy(predict)
  count = len(next(iter(choices.values())))
  return np.array(
    [
      float(run(state, batch, label, {k: x[i] for k, x in choices.items()}))
      for i in range(count)
    ]
  )


@functools.lru_cache(maxsize=16)
def _accuracy(predict):
  @jax.jit
  def run(state, batch, label, off):
    outputs = layer_outputs.without_units(lambda: predict(state, batch), off)
    known = ~jnp.isnan(jax.nn.log_softmax(outputs['logits'])).any(-1)
    return ((outputs['logits'].argmax(-1) == label) & known).mean()

  return run


def least_useful_first(
  predict: Predict,
  state: Any,
  columns: Mapping[str, Any],
  units: Sequence[Unit],
  widths: Mapping[str, int],
) -> list[Unit]:
  """Units in the order of the accuracy that is left without each, best first.

  Args:
    predict: Gives 'logits'.
    state: Its first argument.
    columns: Rows with 'label' that are neither trained on nor reported.
    units: To be put in order.
    widths: Layer -> number of its units.
  """
  if not units:
    return []
  each = [chosen([unit], widths) for unit in units]
  stacked = {k: np.stack([x[k] for x in each]) for k in widths}
  left = accuracy_without(predict, state, columns, stacked)
  return [units[i] for i in np.argsort(-left, kind='stable')]
