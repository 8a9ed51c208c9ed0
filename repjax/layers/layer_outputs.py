"""Device code: what layers of an unmodified network give, and changing it.

A unit is one channel of what a named module returns: of a convolution, a norm,
a block. Modules are named by their path, 'stage_1/block_0/norm'.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

from flax.core import tracers
import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types
from repjax.layers import layer_inputs

_T = TypeVar('_T')


def with_outputs_of(
  forward: Callable[[], _T], layers: Sequence[str]
) -> tuple[_T, dict[str, jax.Array]]:
  """What a function returns, and what some layers gave meanwhile.

  Args:
    forward: Applies a linen model once; `predict` of a method does.
    layers: Module names, joined by '/'.

  Returns:
    (its outputs, layer -> what it returned, float32).

  Raises:
    InputError: If no layer is called so, one is applied more than once, or is
      rematerialised.
  """
  found: dict[str, list[jax.Array]] = {name: [] for name in layers}
  outside = tracers.current_trace()

  def keep(name, output):
    layer_inputs.check_open(name, outside)
    found[name].append(output)
    return output

  outputs = changed(forward, {name: keep for name in layers})
  for name, calls in found.items():
    if len(calls) != 1:
      raise types.InputError(
        f'The model applies the layer {name!r} {len(calls)} times, not once.'
      )
  return outputs, {k: jnp.asarray(x[0], jnp.float32) for k, x in found.items()}


def changed(
  forward: Callable[[], _T],
  changes: Mapping[str, Callable[[str, jax.Array], jax.Array]],
) -> _T:
  """What a function returns where some layers give something else.

  Args:
    forward: Applies a linen model.
    changes: Layer -> (its name, what it returned) -> what it gives instead.

  Raises:
    InputError: If no layer is called so.
  """
  seen, done = set(), set()

  def interceptor(next_fn, args, kwargs, context):
    output = next_fn(*args, **kwargs)
    name = '/'.join(context.module.path)
    if context.method_name == '__call__' and name:
      seen.add(name)
      if name in changes:
        done.add(name)
        # A block returns more behind what it passes on.
        rest = output[1:] if type(output) is tuple else None
        output = changes[name](name, output if rest is None else output[0])
        output = output if rest is None else (output, *rest)
    return output

  with nn.intercept_methods(interceptor):
    outputs = forward()
  for name in changes:
    if name not in done:
      raise types.InputError(
        f'The model has no layer {name!r}.{trees.nearest(name, seen)} It has: '
        f'{", ".join(sorted(seen))}'
      )
  return outputs


def without_units(
  forward: Callable[[], Any], units: Mapping[str, jax.Array]
) -> Any:
  """What a function returns where some units are 0 everywhere.

  Args:
    forward: Applies a linen model.
    units: Layer -> 1 for each unit that is switched off, else 0, [C].
  """

  def switch(name, output):
    off = units[name].astype(bool)
    if off.shape != output.shape[-1:]:
      raise types.InputError(
        f'The layer {name!r} has {output.shape[-1]} units; got a choice of '
        f'shape {off.shape}.'
      )
    return jnp.where(jnp.broadcast_to(off, output.shape), 0, output)

  return changed(forward, {name: switch for name in units})
