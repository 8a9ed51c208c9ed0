"""Device code: a queue of keys with labels, first in, first out.

He et al., 'Momentum Contrast for Unsupervised Visual Representation Learning',
CVPR 2020, section 3.2. https://arxiv.org/abs/1911.05722

It is the same on all devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.types import InputError


class Queue(NamedTuple):
  """The latest keys, whole batches of them.

  Attributes:
    keys: Unit rows, [K, D].
    labels: Guesses of the classes, int32 [K]; -1 where there is no key.
    place: Where the next batch goes, int32.
  """

  keys: jax.Array
  labels: jax.Array
  place: jax.Array


def empty(size: int, dim: int) -> Queue:
  """A queue without any key."""
  return Queue(
    jnp.zeros((size, dim), jnp.float32),
    jnp.full(size, -1, jnp.int32),
    jnp.int32(0),
  )


def enqueued(
  queue: Queue, key: jax.Array, guess: jax.Array, mask: jax.Array
) -> Queue:
  """The queue with a step's keys in place of the oldest ones.

  Args:
    queue: K places.
    key: Of all devices' rows, [B, D].
    guess: Their classes, [B].
    mask: 1 for a real row, [B]. The place of padding stays empty.

  Raises:
    InputError: When traced, if K is no multiple of B.
  """
  check(len(queue.keys), len(key))
  labels = jnp.where(mask > 0, guess, -1).astype(queue.labels.dtype)
  return Queue(
    jax.lax.dynamic_update_slice_in_dim(queue.keys, key, queue.place, 0),
    jax.lax.dynamic_update_slice_in_dim(queue.labels, labels, queue.place, 0),
    (queue.place + len(key)) % len(queue.keys),
  )


def check(queue_size: int, batch_size: int) -> None:
  """Refuses a queue that is not made of whole batches.

  Raises:
    InputError: Names the nearest sizes that work.
  """
  if queue_size < batch_size or queue_size % batch_size:
    below = queue_size // batch_size * batch_size
    near = f'{below} or {below + batch_size}' if below else f'{batch_size}'
    raise InputError(
      f'queue_size={queue_size} must hold whole batches of {batch_size} rows: '
      f'set it to {near}.'
    )
