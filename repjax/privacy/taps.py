"""Device code: gradient norms of layers as the cotangent of a carrier.

`nn.intercept_methods` wraps the output of each covered layer in an identity
whose backward pass computes the layer's squared gradient norm (`norms`) from
its input and the cotangent of its output, and hands it on as the cotangent of
the carrier, a vector of zeros that all layers share. The norms of all layers
so add up by themselves, through `nn.scan` and `nn.remat` too.
"""

from collections.abc import Sequence
import contextlib
import functools

import jax
import jax.numpy as jnp

from repjax.privacy import coverage
from repjax.privacy import intercept
from repjax.privacy import norms


class MissedError(RuntimeError):
  """A covered layer was not traced again: its norm would be missing."""


@contextlib.contextmanager
def tapped(
  found: coverage.Coverage,
  groups: Sequence[int],
  carrier: jax.Array,
  factors: jax.Array | None = None,
):
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
  met, passed = set(), {}

  def tie(key, rule, module, x, call):
    leaves = found.layers.get(key)
    if leaves is None:
      return call()
    met.add(key)
    if factors is not None:
      own = {name: groups[leaf] for name, leaf in leaves.items()}
      return _weighed(key, module, x, factors, own)

    def squared(x, g):
      squares, total = rule(x, g), jnp.zeros(carrier.shape)
      for name, leaf in leaves.items():
        total = total.at[groups[leaf]].add(squares[name])
      return total

    if key in found.tied:
      shapes = found.tied[key]
      group = groups[leaves['embedding']]

      def with_head(ids, g, head):
        cross = norms.tied(module, ids, g, *head)
        return squared(ids, g).at[group].add(2 * cross)

      y, passed[module.path] = _tap_embedding(
        with_head, tuple(shapes), call(), x, carrier
      )
      return y
    if module.path in passed:
      return _tap_head(squared, call(), x, carrier, passed.pop(module.path))
    return _tap(squared, call(), x, carrier)

  with intercept.layers(tie):
    yield
  missed = sorted('/'.join(path) for path, _ in set(found.layers) - met)
  if missed:
    raise MissedError(
      f'ghost clipping did not meet the layers {missed} again when it traced '
      "the loss a second time: use method='vmap', or compile the whole step "
      'and no part of the loss.'
    )


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


def _weighed(key, module, x, factors, groups):
  """The layer; gradients of its parameters are multiplied by factors."""
  layer, stop = intercept.bare(module, key[1]), jax.lax.stop_gradient
  weights = module.variables['params']
  y = layer(jax.tree.map(stop, weights), x)
  for group in sorted(set(groups.values())):
    some = {
      name: w if groups.get(name) == group else jax.tree.map(stop, w)
      for name, w in weights.items()
    }
    again = layer(some, stop(x))  # The same numbers, which cancel out.
    y += (factors[group] * (again - stop(again))).astype(y.dtype)
  return y
