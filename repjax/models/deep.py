"""Device code: equal blocks as one loop, so that XLA compiles one of them.

XLA inlines what is called several times: the step of 24 blocks compiles 24 of
them. Here the step stacks the blocks' parameters, [L, ...], and `jax.lax.scan`
runs one block over them. What the model holds stays one tree a block
(`block_0`, ...), so that checkpoints, published weights, masks by name and
optimizers are the same in both forms. `nn.scan`, which keeps parameters
stacked, would need a second form of all these; the price here is one copy of
the blocks' parameters and of their gradients a step. The gradient of 24 blocks
compiles from 0.22 of the instructions; on CPUs that saves no time
(`launch.benchmark --only=compile`).

Dropout and stochastic depth draw other masks than blocks one after another
(those of a layer come from a key of its own); everything else is the same.
Blocks run one after another all the same, whatever is asked for: while the
model is initialized, in steps of decoding (a loop would copy the caches of all
blocks for every token), and where something looks into layers that has to see
each block by its name (`repjax.interceptors`): what reads their inputs or
outputs, adapters of some blocks alone, clipping by layer. Adapters that are the
same in all blocks, and ghost clipping by one norm, run in the loop.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from flax import core
from flax import traverse_util
from flax.core import scope as scope_lib
import jax
import jax.numpy as jnp

from repjax import interceptors
from repjax.models import block
from repjax.types import InputError

# (block, tokens, drop_path_rate=...) -> (tokens, what else the block gives).
Call = Callable[..., tuple[jax.Array, Any]]


def can_scan(layers: Sequence[block.Block]) -> bool:
  """Whether nothing needs these blocks one after another."""
  if layers[0].is_initializing():
    return False
  leaves = traverse_util.flatten_dict(layers[0].variables.get('params', {}))
  inside = {leaf[:i] for leaf in leaves for i in range(len(leaf))}
  return interceptors.may_loop(
    [[(*layer.path, *rest) for layer in layers] for rest in sorted(inside)]
  )


def scan(
  layers: Sequence[block.Block],
  call: Call,
  tokens: jax.Array,
  *,
  train: bool,
  remat: bool = False,
) -> tuple[jax.Array, list[Any]]:
  """Tokens through blocks that differ in `drop_path_rate` alone.

  Args:
    layers: The blocks, bound to the model, of which `can_scan` is true.
    call: How one is called; `drop_path_rate` stands in for that of its config
      and is None or a scalar.
    tokens: [B, T, D].
    train: Whether the rates of stochastic depth matter.
    remat: Whether a block is computed again in the backward pass.

  Returns:
    (tokens after the last block, what else each block gave). What blocks sow,
    and other variables that they change, is in the model as ever.

  Raises:
    InputError: The blocks have not the same parameters, or change the type of
      tokens.
  """
  first = layers[0]
  scope = first.scope
  assert scope is not None  # The layers are bound.
  mutable = scope_lib.subtract_filters(scope.mutable, 'params')
  configs = [layer.config for layer in layers]
  rates = None
  if train and any(config.drop_path_rate for config in configs):
    rates = jnp.asarray([x.drop_path_rate for x in configs], jnp.float32)
  # Drawn, so that the next call of the same blocks has other ones.
  rngs = {
    name: jax.random.split(first.make_rng(name), len(layers))
    for name in scope.rngs
  }
  variables = _stacked([core.unfreeze(dict(x.variables)) for x in layers])

  def body(tokens, own):
    variables, rngs, rate = own
    for name in reversed(scope.path):
      variables = {kind: {name: tree} for kind, tree in variables.items()}
    root = core.bind(variables, rngs=rngs, mutable=mutable, flags=scope.flags)
    with root.temporary() as place:
      # The path of the first block: names in errors, and what layers ask for.
      for name in scope.path:
        place = place.push(name)
      layer = first.clone(parent=place, name=None)
      new, more = call(layer, tokens, drop_path_rate=rate)
      changed = core.unfreeze(place.mutable_variables())
    if new.dtype != tokens.dtype:
      raise InputError(
        f'scan_layers=True has no blocks that change the type of tokens, here '
        f'from {tokens.dtype} to {new.dtype}: set scan_layers=False'
      )
    return new, (changed, more)

  if remat:
    body = jax.checkpoint(body, prevent_cse=False)  # A loop has none to do.
  tokens, (changed, more) = jax.lax.scan(
    body, tokens, (variables, rngs, rates), length=len(layers)
  )
  for i, layer in enumerate(layers):
    for kind, tree in _row(changed, i).items():
      for name, value in tree.items():
        layer.put_variable(kind, name, value)
  return tokens, [_row(more, i) for i in range(len(layers))]


def _row(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def _stacked(trees):
  """Leaves [L, ...] of trees that are alike."""
  kinds = [
    (jax.tree.structure(x), [(y.shape, y.dtype) for y in jax.tree.leaves(x)])
    for x in trees
  ]
  for i, kind in enumerate(kinds):
    if kind != kinds[0]:
      raise InputError(
        f'scan_layers=True has no blocks with different parameters, as block_0 '
        f'and block_{i} have: set scan_layers=False'
      )
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
