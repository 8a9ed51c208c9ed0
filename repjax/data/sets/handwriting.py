"""Host side: a TFDS builder of characters that a thousand authors have written.

The characters of `glyphs`, in the hand of somebody: a set whose rows belong to
users, made on the spot, so that privacy of users can be tried without anybody's
data. As real ones do, users have many rows or few, some classes more often than
others, and ways of their own; those of the test split are seen nowhere else.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from repjax.data.sets import glyphs

NUM_CLASSES, SIZE = 10, 16
# Split -> its authors, [first, last).
AUTHORS: Mapping[str, tuple[int, int]] = {
  'train': (0, 1000),
  'test': (1000, 1200),
}
_ALPHABET, _STROKES = 0, 3
# Characters of an author on average, and at the least.
_MEAN, _FEWEST = 8, 2
# How far a control point of an author is from that of the alphabet, and how far
# that of a row is from the author's, in parts of the side.
_OWN, _UNSTEADY = 0.1, 0.025


class Handwriting(tfds.core.GeneratorBasedBuilder):
  """Ten characters, image uint8 (16, 16, 1), label in [0, 10), and author.

  1,000 authors have written the training split and 200 others the test split,
  about eight characters each.
  """

  VERSION = tfds.core.Version('1.0.0')

  # See `digits.Digits`.
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(SIZE, SIZE, 1), dtype=np.uint8),
          'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
          'author': tfds.features.Scalar(dtype=np.int32),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    return {split: self._generate_examples(x) for split, x in AUTHORS.items()}

  def _generate_examples(self, authors):
    for author in range(*authors):
      image, label = written_by(author)
      for i in range(len(label)):
        row = {'image': image[i], 'label': int(label[i]), 'author': author}
        yield f'{author}/{i}', row


def written_by(author: int) -> tuple[np.ndarray, np.ndarray]:
  """What one author has written.

  Args:
    author: Number, from 0.

  Returns:
    (image uint8 [n, 16, 16, 1], label [n]), n >= 2.
  """
  rng = np.random.default_rng([2021, author])
  num_rows = _FEWEST + rng.geometric(1 / (_MEAN - _FEWEST + 1)) - 1
  # Half of what somebody writes are two or three of the ten.
  liked = rng.dirichlet(np.full(NUM_CLASSES, 0.5))
  habits = glyphs.characters(_ALPHABET, NUM_CLASSES, _STROKES)
  habits = habits + rng.normal(0, _OWN, habits.shape)
  slant, width, height = rng.uniform((-0.35, 0.75, 0.75), (0.35, 1.0, 1.0))
  hand = np.array([[width, slant], [0.0, height]])
  pen, ink = rng.uniform((0.04, 0.7), (0.08, 1.0))
  label = rng.choice(NUM_CLASSES, num_rows, p=liked)
  points = habits[label]
  points = points + rng.normal(0, _UNSTEADY, points.shape)
  points = (points - 0.5) @ hand.T + 0.5
  image = ink * glyphs.paint(points, np.full(num_rows, pen), size=SIZE)
  return np.rint(255 * image[..., None]).astype(np.uint8), label
