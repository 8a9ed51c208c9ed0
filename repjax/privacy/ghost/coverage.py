"""Device code: which parameters ghost norms cover, found by tracing the loss.

A layer's rule (`rules`) gives the gradient norm of the WEIGHT that the layer
was called with. That is the norm of a parameter's gradient only if the weight
is the parameter itself, and if nothing else uses it. So the loss of one row is
traced with every layer that has a rule set apart, and the trace is followed
from the parameters on: through casts, reshapes, scans and rematerialised
blocks. What is not proved to be used exactly once, by a layer with a rule, is
left over, and gets per-example gradients of its own: tied and derived weights,
weights shared by the steps of a scan, parameters of other layers, penalties on
weights. The answer errs on that side, so that norms are exact in any case.
"""

from collections.abc import Callable
from collections.abc import Mapping
import itertools
from typing import Any
from typing import NamedTuple

import jax
from jax.extend import core
import numpy as np

from repjax import types
from repjax.privacy.ghost import intercept

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
      a compiled function inside of the loss. Otherwise empty.
  """

  layers: Mapping[intercept.Key, Mapping[str, int]]
  tied: Mapping[intercept.Key, tuple[tuple[int, ...], tuple[int, ...]]]
  covered: tuple[int, ...]
  leftover: tuple[int, ...]
  activations: int
  outputs: Mapping[intercept.Key, jax.ShapeDtypeStruct]


class _Call:
  """One call of a layer in the trace.

  Attributes:
    names: Names of its parameters, in the order of the traced call's arguments.
    sizes: Sizes of its parameters in that order, then that of the input.
    shape: Shape of the input.
    differentiated: Whether the loss itself takes a gradient through it.
  """

  def __init__(self, key, params, x):
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    self.key = key
    self.names = [path[0].key for path, _ in paths]
    self.sizes = [int(np.size(leaf)) for _, leaf in paths] + [int(np.size(x))]
    self.shape = np.shape(x)
    self.differentiated = False


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
    this = _Call(key, weights, x)
    layer = intercept.bare(module, key[1])

    def named(weights, x):
      return layer(weights, x)

    named.__name__ = f'{_NAME}{next(_NUMBERS)}'
    calls[named.__name__] = this
    return _notice_gradients(jax.jit(named), this)(weights, x)

  with intercept.layers(mark):
    jaxpr = jax.make_jaxpr(loss_fn)(params, *args).jaxpr
  num_leaves = len(jax.tree.leaves(params))
  walk = _Walk(calls)
  origins: list[tuple[Any, int]] = [(i, 1) for i in range(num_leaves)]
  origins += [_NONE] * (len(jaxpr.invars) - num_leaves)
  for origin in walk.run(jaxpr, origins, 1):
    walk.use(origin)
  return walk.coverage(num_leaves, jaxpr)


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


# Where a value of the trace comes from: (leaf, times that each element of it
# is used when this value is used once), or one of these.
_NONE = ('none', 0)  # From no parameter.
_MIXED = ('mixed', 0)  # Computed from parameters.

# Operations whose result holds each element of their first operand at most
# once, and nothing else. Their gradient has the same norm.
_MOVES = frozenset(
  {
    'convert_element_type',
    'copy',
    'copy_p',
    'name',
    'reshape',
    'rev',
    'sharding_constraint',
    'slice',
    'squeeze',
    'transpose',
  }
)


class _Site(NamedTuple):
  """A call of a layer, met in the trace.

  Attributes:
    call: The `_Call`.
    weights: Origins of its parameters.
    shapes: Shapes of the layer's input and output.
    dtype: Type of the layer's output.
    scope: The traced function that it is in.
  """

  call: _Call
  weights: list[tuple[Any, int]]
  shapes: tuple[tuple[int, ...], tuple[int, ...]]
  dtype: Any
  scope: Any


class _Walk:
  """Follows parameters through a trace."""

  def __init__(self, calls):
    self._calls = calls
    self._uses = {}  # Leaf -> times that a layer with a rule uses it.
    self._other = set()  # Leaves that something else uses.
    self._sites = []  # `_Site`s in the order of the trace.
    self._activations = {}  # Key -> floats.

  def use(self, origin):
    if isinstance(origin[0], int):
      self._other.add(origin[0])

  def run(self, jaxpr, origins, repeats, scope=None):
    """Origins of the outputs, given those of the inputs."""
    scope = jaxpr if scope is None else scope
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def read(atom):
      literal = isinstance(atom, core.Literal)
      return _NONE if literal else known.get(atom, _NONE)

    for eqn in jaxpr.eqns:
      ins = [read(atom) for atom in eqn.invars]
      outs = self._equation(eqn, ins, repeats, scope)
      known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _equation(self, eqn, ins, repeats, scope):
    name = eqn.primitive.name
    call = self._call(eqn)
    if call is not None:
      self._layer(call, eqn, ins, repeats, scope)
      return [_MIXED]
    if name == 'stop_gradient':
      return [_NONE]
    if name in _MOVES:
      return ins[:1]
    if name == 'optimization_barrier':
      return ins
    if name == 'scan':
      return self._scan(eqn, ins, repeats)
    inner = _subjaxprs(eqn)
    if len(inner) == 1 and len(inner[0].invars) == len(ins):
      # What `_notice_gradients` wraps around a layer, and nothing else.
      alone = [self._call(e) is not None for e in inner[0].eqns] == [True]
      if alone or name in _CALLS:
        return self.run(inner[0], ins, repeats, scope if alone else None)
    mixed = any(origin != _NONE for origin in ins)
    for origin in ins:
      self.use(origin)
    # Loops, branches and functions with a gradient of their own, in which no
    # rule applies.
    for sub in inner:
      into = [_MIXED if mixed else _NONE] * len(sub.invars)
      for origin in self.run(sub, into, repeats):
        self.use(origin)
    return [_MIXED if mixed else _NONE] * len(eqn.outvars)

  def _scan(self, eqn, ins, repeats):
    body = eqn.params['jaxpr'].jaxpr
    length = eqn.params['length']
    num_consts, num_carry = eqn.params['num_consts'], eqn.params['num_carry']
    consts = [
      (leaf, times * length) if isinstance(leaf, int) else (leaf, times)
      for leaf, times in ins[:num_consts]
    ]
    for origin in ins[num_consts : num_consts + num_carry]:
      self.use(origin)
    slices = ins[num_consts + num_carry :]
    into = [*consts, *[_MIXED] * num_carry, *slices]
    for origin in self.run(body, into, repeats * length):
      self.use(origin)
    return [_MIXED] * len(eqn.outvars)

  def _call(self, eqn):
    call = self._calls.get(str(eqn.params.get('name', '')))
    if call is None:
      return None
    # Where the loss differentiates a layer, or drops its result, its call has
    # other arguments and results than it had at first.
    whole = len(eqn.invars) > len(call.names) and len(eqn.outvars) == 1
    return call if whole else None

  def _layer(self, call, eqn, ins, repeats, scope):
    num_weights = len(call.names)
    weights, x = ins[-num_weights - 1 : -1], ins[-1]
    sizes = [v.aval.size for v in eqn.invars[-num_weights - 1 :]]
    for origin in (*ins[: -num_weights - 1], x):
      self.use(origin)
    # Under a vmap inside of the loss, inputs have more elements than when the
    # layer was called: its weights are shared by them.
    if call.differentiated or sizes != call.sizes:
      weights = [_NONE if origin == _NONE else _MIXED for origin in weights]
      for origin in ins:
        self.use(origin)
    for leaf, times in weights:
      if isinstance(leaf, int):
        self._uses[leaf] = self._uses.get(leaf, 0) + times
    out = eqn.outvars[0].aval
    shapes = (eqn.invars[-1].aval.shape, out.shape)
    self._sites.append(_Site(call, weights, shapes, out.dtype, scope))
    size = repeats * (sizes[-1] + eqn.outvars[0].aval.size)
    self._activations[call.key] = self._activations.get(call.key, 0) + size

  def _tied(self):
    """Embedding -> (head, leaf, shapes of the head) where the rule applies.

    It keeps the cotangent of the head's output through the backward pass, so
    it is for less positions than the table has columns: otherwise per-example
    gradients of the table are smaller.
    """
    found = {}
    for leaf, times in self._uses.items():
      sites = [s for s in self._sites if (leaf, 1) in s.weights]
      keys = [site.call.key for site in sites]
      if times != 2 or len(sites) != 2 or sites[0].scope is not sites[1].scope:
        continue
      (path, first), (other, second) = keys
      once = [s.call.key for s in self._sites if s.call.key in keys] == keys
      if once and path == other and (first, second) == ('__call__', 'attend'):
        shapes = sites[1].shapes
        same = all(s.call.shape == s.shapes[0] for s in sites)
        if same and np.prod(shapes[0][:-1]) < shapes[0][-1]:
          found[keys[0]] = (keys[1], leaf, shapes)
    return found

  def _outputs(self, layers, root):
    """Of the covered layers, if all are called in the open."""
    sites = [site for site in self._sites if site.call.key in layers]
    in_the_open = [
      site.scope is root and site.call.shape == site.shapes[0] for site in sites
    ]
    if not all(in_the_open) or len(sites) != len(layers):
      return {}
    return {
      site.call.key: jax.ShapeDtypeStruct(site.shapes[1], site.dtype)
      for site in sites
    }

  def coverage(self, num_leaves, root):
    layers, bad = {}, set()
    for site in self._sites:
      key = site.call.key
      leaves = {
        name: origin[0]
        for name, origin in zip(site.call.names, site.weights, strict=True)
        if origin != _NONE
      }
      # Two layers of one name (in two models) cannot be told apart.
      if layers.setdefault(key, leaves) != leaves:
        bad.add(key)
        layers[key] = {**layers[key], **leaves}
    tied = self._tied()
    once = {i for i, times in self._uses.items() if times == 1}
    once |= {leaf for _, leaf, _ in tied.values()}
    once -= self._other
    while True:  # A layer is covered as a whole or not at all.
      bad |= {k for k, v in layers.items() if not set(v.values()) <= once}
      lost = once & {
        leaf
        for site in self._sites
        if site.call.key in bad
        for leaf, _ in site.weights
      }
      if not lost:
        break
      once -= lost
    layers = {k: v for k, v in layers.items() if k not in bad and v}
    used = self._other | set(self._uses)
    return Coverage(
      layers=layers,
      tied={k: shapes for k, (_, _, shapes) in tied.items() if k in layers},
      covered=tuple(i for i in range(num_leaves) if i in once),
      leftover=tuple(i for i in range(num_leaves) if i in used - once),
      activations=sum(self._activations[key] for key in layers),
      outputs=self._outputs(layers, root),
    )


# Calls whose arguments are those of the traced function inside, in order.
_CALLS = frozenset(
  {'checkpoint', 'closed_call', 'core_call', 'jit', 'pjit', 'remat', 'remat2'}
)


def _subjaxprs(eqn):
  """The traced functions inside of an operation."""
  found = []
  for value in eqn.params.values():
    for x in value if isinstance(value, (tuple, list)) else (value,):
      inner = getattr(x, 'jaxpr', x)
      if hasattr(inner, 'eqns'):
        found.append(inner)
  return found
