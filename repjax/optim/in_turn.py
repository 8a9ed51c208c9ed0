"""An optimizer that trains one block of the parameters, then the next."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.types import InputError


class InTurnState(NamedTuple):
  """State of `in_turn`.

  Attributes:
    step: Updates so far, int32 scalar.
    inner: State of the optimizer.
  """

  step: jax.Array
  inner: types.PyTree


def in_turn(
  tx: optax.GradientTransformation,
  blocks: Sequence[str],
  *,
  steps_per_block: int,
) -> optax.GradientTransformationExtraArgs:
  """Trains blocks one after the other, and leaves all others as they are.

  A gradient of 0 does not do that: parameters would decay, and go on with the
  momentum of their turn. As in PyTorch, where a parameter without a gradient is
  skipped, neither a parameter nor a moment of a block moves out of its turn.
  What a chain keeps of no block (counts, with them schedules) goes on in every
  step: it counts steps of all blocks. A `count` beside moments, by which Adam
  corrects their bias, is that of the turn: they begin at 0 with it.

  Args:
    tx: Any chain whose moments have the parameters' names.
    blocks: Top-level names of the parameters, in the order of their turns.
    steps_per_block: Steps of each turn, >= 1; the last block's does not end.

  Raises:
    InputError: If a number is out of range or, at `init`, if `blocks` are not
      the parameters' names.
  """
  types.check_range('[1, inf)', steps_per_block=steps_per_block)
  if steps_per_block != int(steps_per_block):
    raise types.InputError(f'steps are whole ones; got {steps_per_block=}')
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    if sorted(params) != sorted(blocks):
      raise InputError(
        f'blocks are the parameters {sorted(params)}, each once; got '
        f'{list(blocks)}'
      )
    return InTurnState(jnp.zeros((), jnp.int32), tx.init(params))

  def update_fn(updates, state, params=None, **extra):
    now = whose_turn(state.step, len(blocks), steps_per_block)
    named = set(trees.flatten(updates))

    def block_of(path):
      """Number of the block that a path ends in a parameter of, or None."""
      ends = (path[i:] for i in range(len(path)))
      return next((blocks.index(x[0]) for x in ends if x in named), None)

    def of_now(new, old):
      """Leaves of `new` that are of this turn or of no block, else of `old`."""
      kept = trees.flatten(old)
      leaves = []
      for path, leaf in trees.flatten(new).items():
        block = block_of(path)
        if block is not None:
          leaf = jnp.where(now == block, leaf, kept[path])
        leaves.append(leaf)
      return jax.tree.unflatten(jax.tree.structure(new), leaves)

    def of_turn(inner):
      """The state with the turn's steps in counts that stand by moments."""
      flat = trees.flatten(inner)
      beside = {
        path[: i - 1]
        for path in flat
        for i in range(1, len(path))
        if path[i:] in named
      }
      steps = state.step - now * steps_per_block
      leaves = [
        steps.astype(leaf.dtype)
        if path[-1] == 'count' and path[:-1] in beside
        else leaf
        for path, leaf in flat.items()
      ]
      return jax.tree.unflatten(jax.tree.structure(inner), leaves)

    still = jax.tree.map(jnp.zeros_like, updates)
    # Nor do others count in the norm that a link clips by.
    own = of_now(updates, still)
    moved, inner = tx.update(own, of_turn(state.inner), params, **extra)
    return of_now(moved, still), InTurnState(
      state.step + 1, of_now(inner, state.inner)
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def whose_turn(
  step: jax.Array, num_blocks: int, steps_per_block: int
) -> jax.Array:
  """Whose turn a step is: index of the block.

  Args:
    step: Updates before it.
    num_blocks: Number of blocks.
    steps_per_block: Steps of each.
  """
  return jnp.minimum(step // steps_per_block, num_blocks - 1)
