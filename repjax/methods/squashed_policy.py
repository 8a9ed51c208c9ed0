"""Device code: policies that are tanh of a Gaussian, as SAC's are.

Haarnoja et al., 'Soft Actor-Critic Algorithms and Applications', 2018, appendix
C. https://arxiv.org/abs/1812.05905
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax.models import agent as agents

# (parameters, observations [E, ...], key) -> actions [E, A] in [-1, 1].
Policy = Callable[..., jax.Array]
View = Callable[[jax.Array], jax.Array]


def draw(
  gaussian: agents.Gaussian, rng: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A draw of tanh of a Gaussian, and its log-density.

  Args:
    gaussian: Mean and logarithm of the deviation, [B, A].
    rng: Equal on all devices: what a row draws is a matter of its place in the
      global batch.

  Returns:
    (actions [B, A], log-densities [B]).
  """
  return squash(gaussian, noise(rng, gaussian.mean.shape))


def noise(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Normal numbers [B, A], by each row's place in the global batch."""
  num, size = shape
  return jax.vmap(lambda key: jax.random.normal(key, (size,)))(
    parallel.row_rngs(rng, num)
  )


def squash(gaussian: agents.Gaussian, noise: jax.Array):
  """`draw` of noise [B, A] that was drawn before.

  The authors of PAD (https://arxiv.org/abs/2007.04309) write log(relu(1 -
  tanh^2) + 1e-6) for the logarithm of tanh's slope, and so do we: far out it is
  never below -13.8.
  """
  raw = gaussian.mean + noise * jnp.exp(gaussian.log_std)
  log_prob = -0.5 * jnp.square(noise) - gaussian.log_std
  log_prob = log_prob - 0.5 * jnp.log(2 * jnp.pi)
  # 1 - tanh^2, without the difference that float32 loses far out.
  slope = 4 * jax.nn.sigmoid(2 * raw) * jax.nn.sigmoid(-2 * raw)
  return jnp.tanh(raw), (log_prob - jnp.log(slope + 1e-6)).sum(-1)


def exploring(model: agents.Agent, *, view: View = lambda x: x) -> Policy:
  """The policy (parameters, observations, key) -> actions, as it learns: draws.

  Args:
    model: Whose policy it is.
    view: Of observations [E, ...], what it acts on.
  """

  def policy(params, observations, rng):
    gaussian = model.apply(
      {'params': params}, view(observations), method='policy'
    )
    return draw(gaussian, rng)[0]

  return policy


def exploiting(model: agents.Agent, *, view: View = lambda x: x) -> Policy:
  """The policy (parameters, observations, key) -> actions when judged: modes.

  Args:
    model: Whose policy it is.
    view: Of observations [E, ...], what it acts on.
  """

  def policy(params, observations, rng):
    del rng  # Nothing is drawn.
    gaussian = model.apply(
      {'params': params}, view(observations), method='policy'
    )
    return jnp.tanh(gaussian.mean)

  return policy
