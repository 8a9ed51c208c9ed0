"""Device code: which parameters ghost norms cover, found by tracing the loss.

A layer's rule (`rules`) gives the gradient norm of the WEIGHT that the layer
was called with. That is the norm of a parameter's gradient only if the weight
is the parameter itself, and if nothing else uses it. So the loss of one row is
traced with every layer that has a rule set apart, and the trace is followed
from the parameters on: through casts, reshapes, scans and rematerialised
blocks. What is not proved to be used exactly once, by a layer with a rule, is
left over, and gets per-example gradients of its own: tied and derived weights,
weights shared by the steps of a scan, parameters of other layers, penalties on
weights, layers that an interceptor inside of the loss may change. The answer
errs on that side.
"""

from collections.abc import Callable
from collections.abc import Mapping
import itertools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.privacy.ghost import intercept
from repjax.privacy.ghost import walks

# Names of layers in traces. Every trace has its own: what a compiled function
# remembers from another one is not met again, and must not be taken for it.
_NAME = 'repjax_layer_'
_NUMBERS = itertools.count()


class Coverage(NamedTuple):
  """How the leaves of a parameter tree get their norms.

  Attributes:
    layers: Layer -> name of its parameter -> number of the leaf, for the
      parameters whose norm its rule gives.
    tied: Embeddings whose table is also the last layer (`attend`) -> shapes of
      that layer's input and output. Both are covered, and need `rules.tied`.
    covered: Numbers of the leaves that have a rule.
    leftover: Numbers of the leaves that need per-example gradients. Leaves in
      neither have no influence on the gradient (frozen or unused).
    activations: Size of the inputs and outputs of the covered layers, for one
      unit.
    outputs: Layer -> shape and type of its output, where all covered layers
      are called in the open: not in a rematerialised block, a scan, a vmap or
      a compiled function inside of the loss, nor in blocks that are to run as
      one loop. Otherwise empty, and where a type is below float32 and not
      bfloat16.
    narrow: Types below float32 that covered layers compute in, or that their
      weights are cast to on the way. A sum of gradients that goes through one
      is rounded.
  """

  layers: Mapping[intercept.Key, Mapping[str, int]]
  tied: Mapping[intercept.Key, tuple[tuple[int, ...], tuple[int, ...]]]
  covered: tuple[int, ...]
  leftover: tuple[int, ...]
  activations: int
  outputs: Mapping[intercept.Key, jax.ShapeDtypeStruct]
  narrow: frozenset[Any]


def find(
  loss_fn: Callable[..., Any],
  params: types.PyTree,
  *args: types.PyTree,
) -> Coverage:
  """Traces the loss of one example, without computing it.

  Args:
    loss_fn: (params, *args) -> loss and anything else.
    params: The parameters, or their shapes.
    *args: The other arguments for one example, or their shapes.
  """
  calls = {}

  def mark(key, rule, module, x, call):
    del rule, call
    weights = dict(module.variables['params'])
    this = walks.Call(key, weights, x)
    layer = intercept.bare(module, key[1])

    def named(weights, x):
      return layer(weights, x)

    named.__name__ = f'{_NAME}{next(_NUMBERS)}'
    calls[named.__name__] = this
    return _notice_gradients(jax.jit(named), this)(weights, x)

  in_loops = []

  def alike(layers):
    in_loops.append(layers)
    return False  # Here each layer is to be seen by itself.

  with intercept.layers(mark, alike):
    jaxpr = jax.make_jaxpr(loss_fn)(params, *args).jaxpr
  num_leaves = len(jax.tree.leaves(params))
  walk = walks.Walk(calls)
  origins: list[tuple[Any, int]] = [(i, 1) for i in range(num_leaves)]
  origins += [walks.NONE] * (len(jaxpr.invars) - num_leaves)
  for origin in walk.run(jaxpr, origins, 1):
    walk.use(origin)
  found = _coverage(walk, num_leaves, jaxpr)
  return found._replace(outputs={}) if in_loops else found


def _notice_gradients(fn, call):
  """`fn`, which notes when it is differentiated inside of the loss.

  A gradient inside of the loss uses up the rule by which norms come out.
  """

  @jax.custom_vjp
  def noticed(weights, x):
    return fn(weights, x)

  def forward(weights, x):
    call.differentiated = True
    return fn(weights, x), (weights, x)

  def backward(residuals, g):
    return jax.vjp(fn, *residuals)[1](g)

  noticed.defvjp(forward, backward)
  return noticed


def _coverage(walk, num_leaves, root):
  """What the walk through a trace has found, as the answer of `find`."""
  layers, bad = {}, set()
  for site in walk.sites:
    key = site.call.key
    leaves = {
      name: origin[0]
      for name, origin in zip(site.call.names, site.weights, strict=True)
      if origin != walks.NONE
    }
    # Two layers of one name (in two models) cannot be told apart.
    if layers.setdefault(key, leaves) != leaves:
      bad.add(key)
      layers[key] = {**layers[key], **leaves}
  tied = _tied(walk)
  once = {i for i, times in walk.uses.items() if times == 1}
  once |= {leaf for _, leaf, _ in tied.values()}
  once -= walk.other
  while True:  # A layer is covered as a whole or not at all.
    bad |= {k for k, v in layers.items() if not set(v.values()) <= once}
    lost = once & {
      leaf
      for site in walk.sites
      if site.call.key in bad
      for leaf, _ in site.weights
    }
    if not lost:
      break
    once -= lost
  layers = {k: v for k, v in layers.items() if k not in bad and v}
  used = walk.other | set(walk.uses)
  narrow = _narrow(walk, layers)
  known = narrow <= {jnp.dtype(jnp.bfloat16)}
  return Coverage(
    layers=layers,
    tied={k: shapes for k, (_, _, shapes) in tied.items() if k in layers},
    covered=tuple(i for i in range(num_leaves) if i in once),
    leftover=tuple(i for i in range(num_leaves) if i in used - once),
    activations=sum(walk.activations[key] for key in layers),
    outputs=_outputs(walk, layers, root) if known else {},
    narrow=narrow,
  )


def _narrow(walk, layers):
  """Types below float32 on the way of a gradient from a layer to a leaf."""
  found = {site.dtype for site in walk.sites if site.call.key in layers}
  for leaves in layers.values():
    found.update(*[walk.casts.get(leaf, ()) for leaf in leaves.values()])
  return frozenset(
    jnp.dtype(x)
    for x in found
    if jnp.issubdtype(x, jnp.floating) and jnp.finfo(x).bits < 32
  )


def _tied(walk):
  """Embedding -> (head, leaf, shapes of the head) where the rule applies.

  It keeps the cotangent of the head's output through the backward pass, so
  it is for less positions than the table has columns: otherwise per-example
  gradients of the table are smaller.
  """
  found = {}
  for leaf, times in walk.uses.items():
    sites = [s for s in walk.sites if (leaf, 1) in s.weights]
    keys = [site.call.key for site in sites]
    if times != 2 or len(sites) != 2 or sites[0].scope is not sites[1].scope:
      continue
    (path, first), (other, second) = keys
    once = [s.call.key for s in walk.sites if s.call.key in keys] == keys
    if once and path == other and (first, second) == ('__call__', 'attend'):
      shapes = sites[1].shapes
      same = all(s.call.shape == s.shapes[0] for s in sites)
      if same and np.prod(shapes[0][:-1]) < shapes[0][-1]:
        found[keys[0]] = (keys[1], leaf, shapes)
  return found


def _outputs(walk, layers, root):
  """Of the covered layers, if all are called in the open."""
  sites = [site for site in walk.sites if site.call.key in layers]
  in_the_open = [
    site.scope is root and site.call.shape == site.shapes[0] for site in sites
  ]
  if not all(in_the_open) or len(sites) != len(layers):
    return {}
  return {
    site.call.key: jax.ShapeDtypeStruct(site.shapes[1], site.dtype)
    for site in sites
  }
