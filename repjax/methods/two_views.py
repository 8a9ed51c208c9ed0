"""Device code: two views of each row, for losses that compare them.

A view keeps what a row is and changes how it looks: crops and colours of
images, noise on tables and series, a network's own dropout for whatever else
(texts). What is drawn for a row depends on its place in the global batch, not
on the number of devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax import types
from repjax.data.images import views
from repjax.methods import classifier
from repjax.types import InputError

# (batch, key that is equal on all devices) -> two batches.
TwoViews = Callable[[types.Batch, jax.Array], tuple[types.Batch, types.Batch]]


def of_images(
  first: views.Views, second: views.Views, *, noise: float = 0.0
) -> TwoViews:
  """Two random views of 'image'.

  Args:
    first: Of the first batch.
    second: Of the second one, which is made from the column 'strong' where
      there is one (images that the host has augmented), else from 'image'.
    noise: Standard deviation of Gaussian noise that is added to both, >= 0.
  """
  types.check_range('[0, inf)', noise=noise)

  def make(batch, rng):
    other = classifier.view(batch) if 'strong' in batch else batch
    made = []
    for fn, rows, number in ((first, batch, 0), (second, other, 1)):
      key, noise_key = jax.random.split(jax.random.fold_in(rng, number))
      image = rows['image']
      image = fn(image, parallel.row_rngs(key, len(image)))
      made.append({**rows, 'image': _noisy(image, noise_key, noise)})
    return made[0], made[1]

  return make


def with_noise(std: float) -> TwoViews:
  """The input, and the input, each with Gaussian noise of its own.

  Args:
    std: Standard deviation in the units of the input, > 0.

  Returns:
    Views that raise InputError, when traced, of a batch whose input is ids.
  """
  types.check_range('(0, inf)', std=std)

  def make(batch, rng):
    names = [x for x in types.INPUTS if x in batch]
    if not names or not jnp.issubdtype(batch[names[0]].dtype, jnp.floating):
      raise InputError(
        'Noise is added to numbers, and the input of this batch is none: take '
        f'two_views.by_dropout; it has {sorted(batch)}.'
      )
    one, other = (
      {**batch, names[0]: _noisy(batch[names[0]], key, std)}
      for key in jax.random.split(rng)
    )
    return one, other

  return make


def by_dropout() -> TwoViews:
  """The same rows twice: views differ by the network's own dropout.

  Gao, Yao and Chen, 'SimCSE: Simple Contrastive Learning of Sentence
  Embeddings', EMNLP 2021 (https://arxiv.org/abs/2104.08821). A network without
  dropout sees one view twice.
  """

  def make(batch, rng):
    del rng  # The network draws.
    return batch, batch

  return make


def _noisy(x, rng, std):
  if not std:
    return x
  keys = parallel.row_rngs(rng, len(x))
  draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
  return x + (std * draw).astype(x.dtype)
