"""Device code: follows parameters through the trace of a loss, to its layers.

Part of `coverage`, which says what for.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax.extend import core
import numpy as np


class Call:
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


# Where a value of the trace comes from: (leaf, times that each element of it
# is used when this value is used once), or one of these.
NONE = ('none', 0)  # From no parameter.
MIXED = ('mixed', 0)  # Computed from parameters.

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


class Site(NamedTuple):
  """A call of a layer, met in the trace.

  Attributes:
    call: The `Call`.
    weights: Origins of its parameters.
    shapes: Shapes of the layer's input and output.
    dtype: Type of the layer's output.
    scope: The traced function that it is in.
  """

  call: Call
  weights: list[tuple[Any, int]]
  shapes: tuple[tuple[int, ...], tuple[int, ...]]
  dtype: Any
  scope: Any


class Walk:
  """Follows parameters through a trace.

  Attributes:
    uses: Leaf -> times that a layer with a rule uses it.
    other: Leaves that something else uses.
    casts: Leaf -> types that it is cast to.
    sites: Calls of layers in the order of the trace.
    activations: Key of a layer -> size of its inputs and outputs.
  """

  def __init__(self, calls):
    self._calls = calls
    self.uses = {}
    self.other = set()
    self.casts = {}
    self.sites = []
    self.activations = {}

  def use(self, origin):
    if isinstance(origin[0], int):
      self.other.add(origin[0])

  def run(self, jaxpr, origins, repeats, scope=None):
    """Origins of the outputs, given those of the inputs."""
    scope = jaxpr if scope is None else scope
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def read(atom):
      literal = isinstance(atom, core.Literal)
      return NONE if literal else known.get(atom, NONE)

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
      return [MIXED]
    if name == 'stop_gradient':
      return [NONE]
    if name in _MOVES:
      if name == 'convert_element_type':
        self.casts.setdefault(ins[0][0], set()).add(eqn.outvars[0].aval.dtype)
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
    mixed = any(origin != NONE for origin in ins)
    for origin in ins:
      self.use(origin)
    # Loops, branches and functions with a gradient of their own, in which no
    # rule applies.
    for sub in inner:
      into = [MIXED if mixed else NONE] * len(sub.invars)
      for origin in self.run(sub, into, repeats):
        self.use(origin)
    return [MIXED if mixed else NONE] * len(eqn.outvars)

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
    into = [*consts, *[MIXED] * num_carry, *slices]
    for origin in self.run(body, into, repeats * length):
      self.use(origin)
    return [MIXED] * len(eqn.outvars)

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
      weights = [NONE if origin == NONE else MIXED for origin in weights]
      for origin in ins:
        self.use(origin)
    for leaf, times in weights:
      if isinstance(leaf, int):
        self.uses[leaf] = self.uses.get(leaf, 0) + times
    out = eqn.outvars[0].aval
    shapes = (eqn.invars[-1].aval.shape, out.shape)
    self.sites.append(Site(call, weights, shapes, out.dtype, scope))
    size = repeats * (sizes[-1] + eqn.outvars[0].aval.size)
    self.activations[call.key] = self.activations.get(call.key, 0) + size


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
