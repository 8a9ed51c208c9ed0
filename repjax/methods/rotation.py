"""Device code: by how many quarters of a turn was an image rotated?

Gidaris, Singh and Komodakis, 'Unsupervised Representation Learning by
Predicting Image Rotations', ICLR 2018 (https://arxiv.org/abs/1803.07728); the
self-supervised task of PAD (https://arxiv.org/abs/2007.04309) for navigation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types


def make(model: nn.Module, *, column: str = 'next_image') -> types.LossFn:
  """The cross-entropy of the guessed rotation, one of four, drawn a row.

  Args:
    model: Has `guess(image)` -> logits [B, 4].
    column: Of square images. PAD rotates what came after an action.

  Returns:
    A `types.LossFn` over batches of `column`.
  """

  def loss_fn(params, model_state, batch, rng):
    image = batch[column]
    label = jax.random.randint(rng, image.shape[:1], 0, 4)
    logits = model.apply(
      {'params': params, **model_state}, rotate(image, label), method='guess'
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    hits = (logits.argmax(-1) == label).astype(jnp.float32)
    return types.Losses(
      loss, model_state, {'task_loss': loss, 'task_accuracy': hits}
    )

  return loss_fn


def rotate(image: jax.Array, quarters: jax.Array) -> jax.Array:
  """Square images [B, S, S, C], counterclockwise by quarters of a turn [B]."""
  turned = jnp.stack([jnp.rot90(image, k, axes=(1, 2)) for k in range(4)])
  return turned[quarters, jnp.arange(image.shape[0])]
