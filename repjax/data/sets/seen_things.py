"""Host side: what can be told of any labelled photograph, as attributes.

For planted units (`planted_units`) on a set of colour images that has labels
and no more: its class, which colour is stronger than the others, and how bright
it is; and letters, which are written into some images.
"""

from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import letters
from repjax.data.sets import scenes

COLOURS = ('reddish', 'greenish', 'bluish')
LIGHTS = ('dark', 'bright')


def of_source(
  source: sources.Source,
  *,
  seed: int | Sequence[int],
  letter_rate: float = 0.1,
) -> scenes.Things:
  """One thing an image, which is the whole image or a letter in it.

  Args:
    source: Colour images of one size with 'label' and names of its classes.
    seed: Of the letters and their places.
    letter_rate: Share of the images that get a letter, in [0, 1].

  Raises:
    InputError: Images or names are of another kind.
  """
  types.check_range('[0, 1]', letter_rate=letter_rate)
  shape, names = source.image_shape, source.class_names
  if shape is None or shape[-1] != 3 or names is None:
    raise types.InputError(
      f'{source.name} has images of shape {shape or "of many sizes"} and '
      f'{"no " if names is None else ""}names of classes: units are described '
      'on colour images of one size whose classes have names, such as cifar10.'
    )
  image, label = source.column('image'), source.column('label')
  rng = np.random.default_rng(seed)
  count = len(image)
  has_letter = rng.random(count) < letter_rate
  letter = rng.integers(0, len(letters.LETTERS), count)
  limits = np.array(shape[:2]) - letters.SIDE + 1
  image, inked = letters.write(
    image,
    np.where(has_letter, letter, -1),
    top=rng.integers(0, limits[0], count),
    left=rng.integers(0, limits[1], count),
    ink=rng.integers(0, 2, (count, 3)).astype(np.uint8) * 215 + 40,
  )
  mean = source.column('image').mean((1, 2))  # Letters have no colour.
  grey = mean.mean(1, keepdims=True)
  colour = np.where(
    (mean - grey).max(1) > 0.05 * grey[:, 0], (mean - grey).argmax(1), -1
  )
  low, high = np.quantile(grey, (0.25, 0.75))
  light = np.where(grey[:, 0] < low, 0, np.where(grey[:, 0] > high, 1, -1))
  attribute = np.stack([colour, light, label], 1)
  attribute[has_letter] = (-1, -1, len(names))
  return scenes.Things(
    image,
    np.arange(count),
    np.where(has_letter[:, None, None], inked, True),
    attribute.astype(np.int32),
    (COLOURS, LIGHTS, (*(f'{x}s' for x in names), 'letters')),
  )
