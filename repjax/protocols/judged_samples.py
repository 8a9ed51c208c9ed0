"""Judges what generators make, by features of a classifier.

No weights are downloaded: `train` makes a classifier here, on the rows that the
generator learns from. So distances rank generators of one set by one judge; its
name belongs beside every figure, and none is to be called FID. That is what
`inception` measures, for who has its published weights.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import optim
from repjax import types
from repjax.methods import supervised
from repjax.metrics import generation
from repjax.models import inception as networks
from repjax.protocols import on_episodes
from repjax.protocols import side_by_side
from repjax.weights import inception_weights


class Judge(NamedTuple):
  """A classifier whose features tell rows apart.

  Attributes:
    features: Images [N, H, W, C] -> what its head sees, [N, D].
    real: Of the real rows that samples are held against, N x D features.
    accuracy: Of the classifier, on test rows: it should know its set.
    floor: Quality of the test rows as if they were generated. They are as good
      as samples can be; where they are few, their distance is large for it.
  """

  features: Callable[[np.ndarray], np.ndarray]
  real: generation.Sample
  accuracy: float
  floor: generation.Quality

  def quality(self, images: np.ndarray) -> generation.Quality:
    """How like the real rows images [N, H, W, C] are."""
    return generation.measure(self.real, self.features(images))


def train(
  model: nn.Module,
  rows: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  steps: int,
  batch_size: int = 64,
  learning_rate: float = 2e-3,
  seed: int = 1000,
  most: int = 10_000,
) -> Judge:
  """A judge of the set of some rows.

  Args:
    model: A classifier whose last layer is called 'head'.
    rows: Real rows that it learns from, 'image' [N, H, W, C] and 'label' [N].
    test: Rows that are not among them.
    steps: Number of updates, by AdamW.
    batch_size: Rows of a step.
    learning_rate: At its highest; it falls to 0 along a cosine.
    seed: Of its initialization and order, none of a generator's.
    most: How many of the rows samples are held against, the first ones:
      neighbours and kernels take the square of their number.
  """
  rate = optim.warmup_cosine(learning_rate, steps=steps, warmup=0.1)
  method = supervised.make(model, optax.adamw(rate))
  trained = side_by_side.train(
    'judge',
    method,
    {},
    test,
    seeds=(seed,),
    batch_size=batch_size,
    steps=steps,
    points=1,
    shared=rows,
  )

  def features(images):
    return on_episodes.features(
      method, trained.states, {'image': images}, layer='head'
    )[0]

  real = generation.Sample(features(rows['image'][:most]))
  return Judge(
    features=features,
    real=real,
    accuracy=float(trained.score[0]),
    floor=generation.measure(real, features(test['image'])),
  )


class Fid(NamedTuple):
  """Inception's features of real rows.

  Attributes:
    features: Images [N, H, W, C] in [-1, 1] -> [N, 2048].
    real: Those of the real rows.
  """

  features: Callable[[np.ndarray], np.ndarray]
  real: generation.Sample

  def measure(self, images: np.ndarray) -> dict[str, float]:
    """'fid' and 'kid' of images [N, H, W, C] in [-1, 1].

    Published figures are of 50,000 samples; of fewer FID is larger. KID is of
    all rows at once, where others average over subsets.
    """
    fake = generation.Sample(self.features(images))
    return {
      'fid': generation.frechet(self.real, fake),
      'kid': generation.kernel(self.real, fake),
    }


def inception(
  path: str | os.PathLike, image: np.ndarray, *, batch_size: int = 50
) -> Fid:
  """FID and KID by published weights (Heusel et al., NeurIPS 2017).

  https://arxiv.org/abs/1706.08500.

  Args:
    path: Of the weights; `weights.inception_weights` says what file that is.
    image: Real rows, [N, H, W, C] in [-1, 1].
    batch_size: Images that go through the network at once.

  Raises:
    InputError: The file cannot be read, or does not fit, or real rows are not
      within [-1, 1].
  """
  if image.dtype.kind != 'f' or not (abs(image) <= 1).all():
    raise types.InputError(
      'image must be floats in [-1, 1], as what is generated is; got '
      f'{image.dtype} in [{image.min()}, {image.max()}]'
    )
  params = inception_weights.load(path)
  apply = jax.jit(networks.Inception().apply)

  def features(images):
    found = []
    for start in range(0, len(images), batch_size):
      part = images[start : start + batch_size]
      # One shape, compiled once.
      whole = np.zeros((batch_size, *part.shape[1:]), np.float32)
      whole[: len(part)] = np.clip(part, -1, 1)
      found.append(np.asarray(apply({'params': params}, whole))[: len(part)])
    return np.concatenate(found)

  return Fid(features, generation.Sample(features(image)))


def samples(
  generator: nn.Module,
  params: types.PyTree,
  *,
  seeds: tuple[int, ...],
  num: int,
) -> np.ndarray:
  """Images of S generators, each of latents of its own, [S, num, H, W, C].

  Args:
    generator: All of them.
    params: Their parameters, with a leading seed axis.
    seeds: S seeds of the latents.
    num: Images of each.
  """

  def one(params, seed):
    latent = jax.random.normal(
      jax.random.key(seed), (num, generator.latent_dim)
    )
    return generator.apply({'params': params}, latent, train=False)

  return np.asarray(jax.jit(jax.vmap(one))(params, jnp.asarray(seeds)))


def num_parameters(params: types.PyTree) -> int:
  """Parameters of one of S models, whose leaves have a leading seed axis."""
  return sum(x[0].size for x in jax.tree.leaves(params))
