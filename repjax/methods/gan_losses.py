"""Device code: losses of generators and discriminators, a value a row.

Goodfellow et al., 'Generative Adversarial Nets', NeurIPS 2014
(https://arxiv.org/abs/1406.2661): 'non_saturating'. Miyato et al., ICLR 2018,
eq. 16 and 17 (https://arxiv.org/abs/1802.05957): 'hinge'. Mescheder, Geiger and
Nowozin, 'Which Training Methods for GANs do actually Converge?', ICML 2018,
eq. 9 (https://arxiv.org/abs/1801.04406): R1.
"""

from collections.abc import Callable
from typing import Literal
from typing import get_args

import jax
import jax.numpy as jnp

from repjax import types

Kind = Literal['non_saturating', 'hinge']


def of_discriminator(
  real: jax.Array, fake: jax.Array, *, kind: Kind
) -> jax.Array:
  """What the discriminator makes small, [B].

  Args:
    real: Its logits of real rows, [B].
    fake: Its logits of generated rows, [B].
    kind: Of the loss.

  Raises:
    InputError: If there is no such kind.
  """
  types.check_choice('kind', kind, get_args(Kind))
  if kind == 'hinge':
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)
  return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def of_generator(fake: jax.Array, *, kind: Kind) -> jax.Array:
  """What the generator makes small, [B], of the logits of its rows [B].

  Raises:
    InputError: If there is no such kind.
  """
  types.check_choice('kind', kind, get_args(Kind))
  return -fake if kind == 'hinge' else jax.nn.softplus(-fake)


def r1(
  score_fn: Callable[[jax.Array], jax.Array], image: jax.Array
) -> jax.Array:
  """Half of the squared norm of the scores' gradients at real images.

  Args:
    score_fn: Images [B, ...] -> logits [B]; rows do not see each other.
    image: [B, ...].

  Returns:
    [B].
  """
  slope = jax.grad(lambda x: score_fn(x).sum())(image).astype(jnp.float32)
  return jnp.square(slope).reshape((len(slope), -1)).sum(-1) / 2
