"""Networks whose units are described: what is planted, and what reads letters.

Hernandez et al., ICLR 2022. https://arxiv.org/abs/2201.11114
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.parts import encoders
from repjax import optim
from repjax import types
from repjax.analysis import exemplars
from repjax.analysis import masked_features
from repjax.data.sets import letters
from repjax.data.sets import scenes
from repjax.experiments import of_images
from repjax.methods import supervised


class InkDetector(nn.Module):
  """One unit an ink of `scenes`, by hand: a corner of the cube of colours."""

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Images [B, H, W, 3] in [0, 1] -> maps [B, H, W, inks]."""
    del train  # Nothing is learned.
    corners = np.array(list(scenes.INKS.values()), np.float32)
    sign = 2 * corners - 1

    def kernel(rng, shape, dtype):
      del rng
      return jnp.asarray(sign.T.reshape(shape), dtype)

    def bias(rng, shape, dtype):
      del rng, shape
      return jnp.asarray(-0.55 * (corners.sum(1) - 1), dtype)

    x = nn.Conv(
      len(sign), (1, 1), kernel_init=kernel, bias_init=bias, name='inks'
    )(image)
    return nn.relu(x)


def ink_maps(variables: types.PyTree, batch: types.Batch) -> jax.Array:
  """Maps that the planted units make of a batch."""
  return InkDetector().apply(variables, batch['image'])


def shown_inks(shown: scenes.Things) -> np.ndarray:
  """Which pixels show each ink, bool [inks, N, H, W]."""
  found = np.zeros((len(scenes.INKS), *shown.image.shape[:3]), bool)
  place = shown.attribute[:, 0], shown.row
  np.logical_or.at(found, place, shown.mask)
  return found


class Marked(NamedTuple):
  """Images with a class, and a letter in the corner of some.

  Attributes:
    image: uint8 [N, H, W, 3].
    label: [N].
  """

  image: np.ndarray
  label: np.ndarray


def kinds_and_fillings(shown: scenes.Things) -> np.ndarray:
  """A class a thing, [M]: its kind and filling; letters are the last one."""
  _, filling, kind = shown.attribute.T
  return len(scenes.FILLINGS) * kind + np.maximum(filling, 0)


def labelled(config, part: str, seed: int, count: int) -> Marked:
  """Images with one thing each, no letter; the label is what it is.

  Args:
    config: Of the study.
    part: 'train', 'valid' or 'test'; of photographs they are other rows.
    seed: Of what is drawn.
    count: N.
  """
  if config.data.name == 'scenes':
    # One in five things is a letter, and goes. Noise makes the kinds hard to
    # tell, so that letters are a help.
    noise = config.subject.noise
    shown = scenes.draw(
      2 * count,
      seed=[seed, 6, count],
      num_things=1,
      noise=(noise, noise),
    )
    kind = shown.attribute[:, -1]
    rows = np.flatnonzero(kind < num_classes(config))[:count]
    return Marked(shown.image[rows], kind[rows])
  # Validation takes from the end of the training images what comes first there.
  split = (
    config.data.heldout_split if part == 'test' else config.data.train_split
  )
  source = of_images.load(config, split)
  rows = np.arange(len(source))[:: -1 if part == 'valid' else 1][:count]
  return Marked(source.column('image')[rows], source.column('label')[rows])


def marked(
  images: Marked, *, rate: float, is_right: bool, num_classes: int, seed: int
) -> Marked:
  """Writes the letter of a class into the corner of some images.

  Args:
    images: Without letters.
    rate: Share of the images that get one.
    is_right: Whether it is that of the label, or of any class.
    num_classes: As many letters.
    seed: Of the draws.
  """
  rng = np.random.default_rng([seed, 7])
  count = len(images.label)
  any_class = rng.integers(0, num_classes, count)
  inks = np.array(list(scenes.INKS.values()))[
    rng.integers(0, len(scenes.INKS), count)
  ]
  letter = images.label if is_right else any_class
  image, _ = letters.write(
    images.image,
    np.where(rng.random(count) < rate, letter, -1),
    top=np.ones(count, int),
    left=np.ones(count, int),
    ink=np.rint(255 * 0.9 * (0.08 + 0.84 * inks)).astype(np.uint8),
  )
  return images._replace(image=image)


def num_classes(config) -> int:
  """Classes of `labelled`."""
  if config.data.name == 'scenes':
    return len(scenes.KINDS) - 1
  return config.encoder.num_classes


def marked_part(config, part: str, seed: int, *, tells: bool) -> Marked:
  """Rows of a part of the classifier's images, with their letters.

  Args:
    config: Of the study.
    part: 'train' or 'valid', where some of the images have letters, or 'test',
      where all have one of any class.
    seed: Of the part.
    tells: Whether the letter in training and validation is that of the label.
  """
  place = ('train', 'valid', 'test').index(part)
  count = config.subject['rows' if part == 'train' else f'{part}_rows']
  images = labelled(config, part, 3 * seed + place, count)
  rate = 1.0 if part == 'test' else config.subject.marks
  return marked(
    images,
    rate=rate,
    is_right=tells and part != 'test',
    num_classes=num_classes(config),
    seed=3 * seed + place,
  )


def rows_of(config, images: Marked) -> dict[str, np.ndarray]:
  """Columns that a network is trained and tested on."""
  return dict(
    image=encoders.standardised(config, images.image),
    label=images.label.astype(np.int32),
  )


def classifier(config, name: str, num_classes: int) -> types.Method:
  """A network of the group `name`, and how it is trained."""
  chosen = config[name]
  rate = optim.warmup_cosine(
    chosen.learning_rate, steps=chosen.steps, warmup=0.05
  )
  return supervised.make(
    encoders.network(config, name, num_classes), optax.adam(rate)
  )


def batches(image: np.ndarray, batch_size: int):
  """Batches of one shape of all images, in order, for `exemplars.collect`."""
  for start in range(0, len(image), batch_size):
    part = image[start : start + batch_size]
    lacking = batch_size - len(part)
    yield dict(
      image=np.pad(part, ((0, lacking), *[(0, 0)] * (part.ndim - 1))),
      mask=(np.arange(batch_size) < len(part)).astype(np.float32),
    )


def features_of(
  config,
  seen_by: encoders.Encoder,
  image: np.ndarray,
  found: exemplars.Exemplars,
) -> tuple[np.ndarray, np.ndarray]:
  """What the encoder sees in exemplars [U, k, D], and their masks.

  Args:
    config: Of the study.
    seen_by: The encoder.
    image: All images, uint8.
    found: Exemplars among them.
  """
  masks = exemplars.masks(found, image.shape[1:3])
  features = masked_features.of_exemplars(
    seen_by.apply_fn,
    seen_by.variables,
    lambda rows: encoders.standardised(config, image[rows]),
    found.row,
    masks,
    config.encoder.layers,
    batch_size=config.encoder.batch_size,
  )
  return features, masks
