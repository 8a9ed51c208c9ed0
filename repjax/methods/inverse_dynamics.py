"""Device code: which action led from one observation to the next?

The self-supervised task of PAD (Hansen et al., ICLR 2021, sec. 3.2) for tasks
of motor control. https://arxiv.org/abs/2007.04309
"""

import flax.linen as nn
import jax.numpy as jnp

from repjax import types


def make(model: nn.Module, *, column: str = 'image') -> types.LossFn:
  """The squared error of the guessed action, the mean over its numbers.

  Args:
    model: Has `guess(observation, next observation)` -> [B, A].
    column: Of observations; `next_` before it is what came after them.

  Returns:
    A `types.LossFn` over batches of `column`, `next_` + `column` and 'action'
    [B, A], what was done.
  """

  def loss_fn(params, model_state, batch, rng):
    del rng  # Nothing is drawn.
    guess = model.apply(
      {'params': params, **model_state},
      batch[column],
      batch[f'next_{column}'],
      method='guess',
    )
    loss = jnp.square(guess - batch['action']).mean(-1)
    return types.Losses(loss, model_state, {'task_loss': loss})

  return loss_fn
