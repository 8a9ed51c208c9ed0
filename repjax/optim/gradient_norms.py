"""Device code: a link that remembers how long gradients were."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax.types import check_range


class GradientNormsState(NamedTuple):
  """What `gradient_norms` keeps.

  Attributes:
    norms: Norm of step t at place t modulo their number, float32 [T].
    seen: Steps so far, int32 scalar.
  """

  norms: jax.Array
  seen: jax.Array

  def history(self) -> np.ndarray:
    """The norms of the last steps, the oldest first; of one state, or many.

    Returns:
      [..., min(T, seen)].
    """
    norms, seen = np.asarray(self.norms), int(np.max(self.seen))
    if seen <= norms.shape[-1]:
      return norms[..., :seen]
    return np.roll(norms, -(seen % norms.shape[-1]), axis=-1)


def gradient_norms(num_steps: int) -> optax.GradientTransformation:
  """Remembers the norms of what goes through it, and changes nothing.

  A discriminator whose gradients spike is one whose training will break, which
  a mean over many steps does not show (Lee et al., 'ViTGAN', ICLR 2022,
  https://arxiv.org/abs/2107.04589). In front of a chain it sees gradients,
  behind it updates.

  Args:
    num_steps: T, how many of the last steps are kept.

  Raises:
    InputError: If there are none.
  """
  check_range('[1, inf)', num_steps=num_steps)

  def init_fn(params):
    del params  # One number for all of them.
    return GradientNormsState(
      jnp.zeros(num_steps, jnp.float32), jnp.zeros((), jnp.int32)
    )

  def update_fn(updates, state, params=None):
    del params  # What counts is how they are moved.
    # Squares of half precision overflow.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), updates)
    norm = optax.tree.norm(wide)
    norms = state.norms.at[state.seen % num_steps].set(norm)
    return updates, GradientNormsState(norms, state.seen + 1)

  return optax.GradientTransformation(init_fn, update_fn)
