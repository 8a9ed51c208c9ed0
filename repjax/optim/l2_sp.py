"""A pull towards the parameters that training starts from, as one link.

Li, Grandvalet and Davoine, 'Explicit Inductive Bias for Transfer Learning with
Convolutional Networks', ICML 2018: the penalty L2-SP.
https://arxiv.org/abs/1802.01483
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.optim import link
from repjax.types import InputError


class L2SpState(NamedTuple):
  """State of `l2_sp`.

  Attributes:
    start: Parameters that are held on to.
  """

  start: types.PyTree

  def started_at(self, params: types.PyTree) -> 'L2SpState':
    """The state where training starts from others: `start.with_params`."""
    return L2SpState(params)


def l2_sp(
  strength: float, *, head_strength: float = 0.0, head: str = 'head'
) -> optax.GradientTransformation:
  """Adds the gradient of a pull towards the start, the penalty L2-SP.

  strength / 2 |w - w0|^2 for the backbone, head_strength / 2 |w|^2 for the
  head, which has no start. The code of LP-FT leaves out the halves, and has no
  penalty on the head.

  It goes before the optimizer. The start is what `init` gets, or
  `start.with_params`.

  Args:
    strength: Of the pull of the backbone.
    head_strength: Of the decay of the head.
    head: Module names of the head, joined by '/'.
  """
  known = filter(link.is_known, (strength, head_strength))
  if not all(x >= 0 for x in known):
    raise InputError(f'Need strengths >= 0; got {strength=}, {head_strength=}')

  def init_fn(params):
    trees.under(params, head)  # A misspelt head is found here.
    # A copy: a buffer that a state holds twice must not be donated.
    return L2SpState(jax.tree.map(jnp.copy, params))

  def update_fn(updates, state, params=None):
    link.check('l2_sp', params=params)
    own = trees.under(params, head)

    def add(path, update, at, start):
      if path in own:
        return update + head_strength * at
      return update + strength * (at - start)

    return trees.map_with_path(add, updates, params, state.start), state

  return optax.GradientTransformation(init_fn, update_fn)
