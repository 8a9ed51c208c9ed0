"""Parts of the study of intrinsic dimension: estimates, and rows to learn from.

Pope et al., ICLR 2021. https://arxiv.org/abs/2104.08894
"""

from collections.abc import Mapping

import numpy as np

from configs import intrinsic_dimension as recipe
from repjax.analysis import graph_dimension
from repjax.analysis import intrinsic_dimension
from repjax.analysis import nearest_neighbours
from repjax.analysis import sample_efficiency
from repjax.data.sets import decoded_images
from repjax.experiments import of_images
from repjax.protocols import side_by_side

needed = sample_efficiency.needed


def images_of_set(config) -> np.ndarray:
  """Training images of the set that is measured, [N, H, W, C], bytes."""
  images = of_images.load(config, config.data.train_split)
  images.check_images()
  count = config.study.set_rows or len(images)
  order = np.random.default_rng(config.seed).permutation(len(images))
  return images.select(order[:count]).read(np.arange(min(count, len(images))))[
    'image'
  ]


def describe(config, images, seed) -> intrinsic_dimension.Description:
  """Estimates of a set, by anchors of the seed's own."""
  study = config.study
  return intrinsic_dimension.describe(
    images, ks=study.ks, num_anchors=study.set_anchors or None, seed=seed
  )


def estimates(config, seeds, *, latent_dim, size=0, noise=0.0) -> np.ndarray:
  """Estimates of one class of a decoder a seed, by the largest k, [S]."""
  found = []
  for seed in seeds:
    image = _one_class(config, seed, latent_dim, size or config.size)
    rng = np.random.default_rng([seed, 3])
    image = image + noise * rng.standard_normal(image.shape, np.float32)
    neighbours = nearest_neighbours.nearest(image, max(config.study.ks))
    found.append(
      intrinsic_dimension.mle(neighbours.distances, normaliser='k-1')
    )
  return np.asarray(found)


def other_estimators(config, seeds) -> dict[str, np.ndarray]:
  """What other estimators make of the images of `study.sized_dim`.

  Shortest paths are none of them: the longest edge of the graph is near the
  most frequent distance here, where that estimate has no fit.
  """
  study = config.study
  found: dict[str, list[float]] = {}
  for seed in seeds:
    image = _one_class(config, seed, study.sized_dim, config.size)
    image = image[: study.compared_rows]
    many = nearest_neighbours.nearest(image, 100)
    for name, value in {
      'MLE, k = 20': intrinsic_dimension.mle(
        many.distances, k=20, normaliser='k-1'
      ),
      'TwoNN': intrinsic_dimension.two_nn(many.distances),
      'GeoMLE': graph_dimension.geo_mle(many, seed=seed).mean(),
    }.items():
      found.setdefault(name, []).append(float(value))
  return {
    f'{study.sized_dim} latent dimensions, {study.compared_rows} images, '
    f'{name}': np.asarray(x)
    for name, x in found.items()
  }


def _decoder(config, seed, latent_dim):
  fields = {**config.decoder, 'latent_dim': latent_dim}
  return decoded_images.decoder(seed=seed, **fields)


def _one_class(config, seed, latent_dim, size):
  made = _decoder(config, seed, latent_dim)
  rows = decoded_images.draw(
    made, 2 * config.study.num_images, size=size, seed=[seed, 0]
  ).columns()
  return rows['image'][rows['label'] == 0]


def curves(
  config, seeds, kinds: Mapping[str, tuple[int, int]]
) -> dict[str, sample_efficiency.Curve]:
  """Accuracy by rows: name -> (latent dimension, size) -> a curve.

  Each seed has a decoder of its own, which all sizes and dimensions share but
  for what they must differ in.
  """
  method = recipe.method(config, 2)
  counts = config.study.row_counts
  transform = recipe.scaled(config).evaluate
  found = {}
  for name, (latent_dim, size) in kinds.items():
    of_seeds = []
    for seed in seeds:
      made = _decoder(config, seed, latent_dim)
      pool, test = (
        side_by_side.rows(
          decoded_images.draw(made, count, size=size, seed=[seed, place]),
          transform,
        )
        for place, count in ((1, 2 * max(counts)), (2, 1000))
      )
      of_seeds.append(
        sample_efficiency.curve(
          f'{name}, seed {seed}',
          method,
          pool,
          test,
          sizes=counts,
          seeds=(seed,),
          batch_size=config.batch_size,
          steps=config.min_steps,
        )
      )
    found[name] = sample_efficiency.Curve(
      of_seeds[0].sizes,
      *(np.concatenate(x, 1) for x in list(zip(*of_seeds, strict=True))[1:]),
    )
  return found
