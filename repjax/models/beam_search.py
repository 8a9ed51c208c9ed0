"""Device code: the likeliest captions, and how likely they are otherwise.

Beam search in one `lax.scan`: a beam keeps the `width` likeliest beginnings. A
second score of the same tokens comes along, so that what is found can be put in
another order (`pointwise`), as in MILAN (Hernandez et al., ICLR 2022,
https://arxiv.org/abs/2201.11114, eq. 3): what the authors' code keeps is the
likeliest under p(d | E), whatever the wording of section 3.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.types import check_range

# (state, tokens [N]) -> (log p [N, V], another log p [N, V], state).
StepFn = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, Any]]


class Beams(NamedTuple):
  """W captions a row, the likeliest first.

  Attributes:
    tokens: [B, W, L] int32, padding after the end.
    likelihood: Sum of the log-probabilities of their tokens, [B, W]; -inf where
      there are not as many captions.
    prior: Sum of their log-probabilities by the other score, [B, W].
  """

  tokens: jax.Array
  likelihood: jax.Array
  prior: jax.Array


def search(
  step_fn: StepFn,
  state: Any,
  *,
  batch_size: int,
  width: int,
  length: int,
  start_id: int,
  end_id: int,
  pad_id: int = 0,
) -> Beams:
  """The `width` likeliest captions that a beam finds.

  With `width` at least V ** (L - 1) these are the likeliest of all.

  Args:
    step_fn: One token further; all leaves of its state begin with a row axis.
    state: Of B rows, before the first token.
    batch_size: B.
    width: W, >= 1.
    length: L, the most tokens of a caption, its end among them; one that has
      not ended by then is cut off and has the score of the tokens that it has.
    start_id: What all captions begin with; it is not given back.
    end_id: What ends a caption. Its score counts.
    pad_id: What stands after the end. Neither it nor `start_id` is written.

  Raises:
    InputError: If a number is out of range.
  """
  check_range('[1, inf)', width=width, length=length)
  rows = jnp.arange(batch_size)[:, None]

  def every_beam(x):
    return jnp.repeat(x, width, axis=0)

  def advance(carry, number):
    state, token, done, beams = carry
    likelihood, prior, state = step_fn(state, token.reshape(-1))
    num_tokens = likelihood.shape[-1]
    shape = (batch_size, width, num_tokens)
    ids = jnp.arange(num_tokens)[None, None]
    written = (ids != pad_id) & (ids != start_id)
    likelihood = jnp.where(written, likelihood.reshape(shape), -jnp.inf)
    # What has ended goes on as it is.
    rest = jnp.where(ids == pad_id, 0.0, -jnp.inf)
    likelihood = jnp.where(done[..., None], rest, likelihood)
    total = beams.likelihood[..., None] + likelihood
    best, place = jax.lax.top_k(total.reshape(batch_size, -1), width)
    beam, token = place // num_tokens, (place % num_tokens).astype(jnp.int32)
    also = jnp.where(
      done[rows, beam], 0.0, prior.reshape(shape)[rows, beam, token]
    )
    beams = Beams(
      beams.tokens[rows, beam].at[:, :, number].set(token),
      best,
      beams.prior[rows, beam] + also,
    )
    flat = (rows * width + beam).reshape(-1)
    state = jax.tree.map(lambda x: x[flat], state)
    done = done[rows, beam] | (token == end_id)
    return (state, token, done, beams), None

  shape = (batch_size, width)
  alone = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)  # One beginning.
  beams = Beams(
    jnp.full((*shape, length), pad_id, jnp.int32),
    jnp.broadcast_to(alone, shape),
    jnp.zeros(shape),
  )
  carry = (
    jax.tree.map(every_beam, state),
    jnp.full(shape, start_id, jnp.int32),
    jnp.zeros(shape, bool),
    beams,
  )
  (_, _, _, beams), _ = jax.lax.scan(advance, carry, jnp.arange(length))
  return beams


def pointwise(beams: Beams, strength: float | jax.Array) -> jax.Array:
  """Log p(d | E) - strength * log p(d) of each caption, [B, W] (eq. 3).

  Args:
    beams: What was found.
    strength: lambda; 0 is the likelihood, 1 the pointwise mutual information.
  """
  return beams.likelihood - strength * beams.prior
