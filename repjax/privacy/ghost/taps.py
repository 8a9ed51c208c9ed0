"""Device code: gradient norms of layers, by two ways to tap them.

`nn.intercept_methods` finds the calls of the covered layers. `tapped` wraps
their output in an identity whose backward pass computes the layer's squared
gradient norm (`rules`) from its input and the cotangent of its output, and
hands it on as the cotangent of the carrier, a vector of zeros that all layers
share. The norms of all layers so add up by themselves, through `nn.scan` and
`nn.remat` too. `Record` takes the inputs and cotangents themselves out of the
trace, for layers that are called in the open.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.privacy.ghost import coverage
from repjax.privacy.ghost import intercept
from repjax.privacy.ghost import rules


class MissedError(RuntimeError):
  """A covered layer was not traced again: its norm would be missing."""


@contextlib.contextmanager
def tapped(
  found: coverage.Coverage,
  groups: Sequence[int],
  carrier: jax.Array,
  factors: jax.Array | None = None,
) -> Iterator[None]:
  """What is traced inside has its covered layers tied to the carrier.

  Args:
    found: Which layers are covered.
    groups: Number of the group of each leaf.
    carrier: Zeros, [number of groups]; the cotangent becomes the sums of
      squared norms.
    factors: If given, gradients of a group's parameters are multiplied by its
      factor instead, [number of groups].

  Raises:
    MissedError: If a covered layer was not traced, because it is in a function
      that was compiled before.
  """
  passed = {}

  def tie(key, rule, module, x, call):
    del call  # It may be rounded, and what follows from it the sum.
    leaves, layer = found.layers[key], intercept.exact(module, key[1])
    if factors is not None:
      own = {name: groups[leaf] for name, leaf in leaves.items()}
      return _weighed(layer, _weights(module), x, factors, own)
    y = layer(_weights(module), x)

    def squared(x, g):
      return _by_group(rule(x, g), leaves, groups, carrier.shape)

    if key in found.tied:
      shapes = found.tied[key]
      group = groups[leaves['embedding']]

      def with_head(ids, g, head):
        cross = rules.tied(module, ids, g, *head)
        return squared(ids, g).at[group].add(2 * cross)

      y, passed[module.path] = _tap_embedding(
        with_head, tuple(shapes), y, x, carrier
      )
      return y
    if module.path in passed:
      return _tap_head(squared, y, x, carrier, passed.pop(module.path))
    return _tap(squared, y, x, carrier)

  def what_is_done(path):
    return [
      {name: groups[leaf] for name, leaf in found.layers[path, method].items()}
      if (path, method) in found.layers
      else None
      for method in ('__call__', 'attend')
    ]

  def alike(layers):
    return all(
      what_is_done(path) == what_is_done(paths[0])
      for paths in layers
      for path in paths
    )

  with _covered_layers(found, tie, alike):
    yield


class Record:
  """Inputs and cotangents of the covered layers of one unit.

  Traces of the same loss, or what follows from them: `inputs` ties zeros to the
  outputs, whose cotangents they get, and takes the inputs out; `squared` makes
  norms of both; `weights` takes out what `products` are gradients of.
  """

  def __init__(self, found: coverage.Coverage):
    self._found = found
    self._layers: dict[intercept.Key, Any] = {}  # Key -> (rule, module).

  @contextlib.contextmanager
  def inputs(
    self, probes: Mapping[intercept.Key, jax.Array]
  ) -> Iterator[dict[intercept.Key, jax.Array]]:
    """Adds zeros to outputs; the dictionary fills up with inputs.

    Args:
      probes: Zeros of the shapes and types of the outputs.

    Raises:
      MissedError: If a covered layer was not traced, but compiled before.
    """
    found = {}

    def tie(key, rule, module, x, call):
      self._layers[key] = (rule, module)
      found[key] = x
      return call() + probes[key]

    with _covered_layers(self._found, tie):
      yield found

  def squared(
    self,
    inputs: Mapping[intercept.Key, jax.Array],
    cotangents: Mapping[intercept.Key, jax.Array],
    groups: Sequence[int],
  ) -> jax.Array:
    """Sums of squared norms over layers, [number of groups]."""
    shape = (max(groups) + 1,)
    total = jnp.zeros(shape)
    for key, leaves in self._found.layers.items():
      rule, module = self._layers[key]
      x, g = inputs[key], cotangents[key]
      total += _by_group(rule(x, g), leaves, groups, shape)
      if key in self._found.tied:
        head = (key[0], 'attend')
        cross = rules.tied(module, x, g, inputs[head], cotangents[head])
        total = total.at[groups[leaves['embedding']]].add(2 * cross)
    return total

  @contextlib.contextmanager
  def weights(
    self,
  ) -> Iterator[dict[intercept.Key, dict[str, jax.Array]]]:
    """The dictionary fills up with what the layers are called with.

    What the traced loss goes on with has no gradient.

    Raises:
      MissedError: If a covered layer was not traced, but compiled before.
    """
    found = {}

    def tie(key, rule, module, x, call):
      del rule, x
      found[key] = dict(_weights(module))
      return jax.lax.stop_gradient(call())

    with _covered_layers(self._found, tie):
      yield found

  def modules(self) -> dict[intercept.Key, nn.Module]:
    """The covered layers, unbound."""
    return {
      key: module.clone(parent=None)
      for key, (_, module) in self._layers.items()
    }


@contextlib.contextmanager
def _covered_layers(found, tie, alike=lambda layers: False):
  """`intercept.layers` for those that are covered; all of them must come."""
  met = set()
  stands_for = {}

  def one_for_all(layers):
    if not alike(layers):
      return False
    stands_for.update({paths[0]: paths for paths in layers})
    return True

  def fn(key, rule, module, x, call):
    if key not in found.layers:
      return call()
    met.update((path, key[1]) for path in stands_for.get(key[0], [key[0]]))
    return tie(key, rule, module, x, call)

  with intercept.layers(fn, one_for_all):
    yield
  missed = sorted('/'.join(path) for path, _ in set(found.layers) - met)
  if missed:
    raise MissedError(
      f'ghost clipping did not meet the layers {missed} again when it traced '
      "the loss a second time: use method='vmap', or compile the whole step "
      'and no part of the loss.'
    )


def _by_group(squares, leaves, groups, shape):
  total = jnp.zeros(shape)
  for name, leaf in leaves.items():
    total = total.at[groups[leaf]].add(squares[name])
  return total


def _weights(module):
  return module.variables['params']


def _only(weights, groups, group):
  """Parameters of which those of other groups have no gradient."""
  return {
    name: w if groups.get(name) == group else jax.lax.stop_gradient(w)
    for name, w in weights.items()
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(squared, y, x, carrier):
  """`y`; the cotangent of the carrier is `squared(x, cotangent of y)`.

  The carrier, which is zero, is added so that `y` is one an example under
  `vmap` even where it depends on no example (an embedding of positions): else
  its cotangent would be the sum over examples.
  """
  del squared, x
  return y + carrier[0].astype(y.dtype)


def _tap_forward(squared, y, x, carrier):
  return _tap(squared, y, x, carrier), x


def _tap_backward(squared, x, g):
  return g, None, squared(x, g)


_tap.defvjp(_tap_forward, _tap_backward)


# An embedding whose table is also the last layer has the squared norm
# |E|^2 + |H|^2 + 2 <E, H>. The head's backward pass, which comes first, hands
# its input and cotangent to that of the embedding as the cotangent of zeros
# that the embedding has given to the head.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tap_embedding(squared, shapes, y, ids, carrier):
  """(y, zeros of the shapes of the head's input and output)."""
  del squared, ids
  zeros = tuple(jnp.zeros(shape) + carrier[0] for shape in shapes)
  return y + carrier[0].astype(y.dtype), zeros


def _tap_embedding_forward(squared, shapes, y, ids, carrier):
  return _tap_embedding(squared, shapes, y, ids, carrier), ids


def _tap_embedding_backward(squared, shapes, ids, cotangents):
  del shapes
  g, head = cotangents
  return g, None, squared(ids, g, head)


_tap_embedding.defvjp(_tap_embedding_forward, _tap_embedding_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap_head(squared, y, x, carrier, zeros):
  """As `_tap`; the cotangent of `zeros` is (x, cotangent of y)."""
  del squared, x, zeros
  return y + carrier[0].astype(y.dtype)


def _tap_head_forward(squared, y, x, carrier, zeros):
  return _tap_head(squared, y, x, carrier, zeros), x


def _tap_head_backward(squared, x, g):
  passed = tuple(a.astype(jnp.float32) for a in (x, g))
  return g, None, squared(x, g), passed


_tap_head.defvjp(_tap_head_forward, _tap_head_backward)


def _weighed(layer, weights, x, factors, groups):
  """The layer; gradients of its parameters are multiplied by factors."""
  stop = jax.lax.stop_gradient
  y = layer(jax.tree.map(stop, weights), x)
  for group in sorted(set(groups.values())):
    # The same numbers, which cancel out.
    again = layer(_only(weights, groups, group), stop(x))
    y += (factors[group] * (again - stop(again))).astype(y.dtype)
  return y
