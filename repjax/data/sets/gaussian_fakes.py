"""Host side: images of the simplest generator, one Gaussian a class."""

import numpy as np

from repjax.data.reading import source as sources
from repjax.types import InputError
from repjax.types import check_range


def make(real: sources.Source, num_rows: int, *, seed: int) -> sources.Source:
  """Fakes with the mean and the covariance of the pixels of each class.

  A fake is the mean of its class plus its images' deviations from it, added
  up with random normal weights; pixels are then cut to what a pixel can be. So
  first and second moments are right but for the cut, and nothing else is.

  Args:
    real: Rows with 'image' uint8 [H, W, C] of one size, and 'label'.
    num_rows: Number of fakes; their classes are drawn in proportion to those
      of `real`.
    seed: Of all draws.

  Raises:
    InputError: If there are no images of bytes, or no number of rows.
  """
  check_range('[1, inf)', num_rows=num_rows)
  real.check_images()
  columns = real.read(np.arange(len(real)))
  if columns['image'].dtype != np.uint8:  # Those in [0, 1] would be rounded.
    raise InputError(
      f'images of {real.name} must be uint8; got {columns["image"].dtype}'
    )
  flat = columns['image'].reshape(len(real), -1).astype(np.float32)
  rng = np.random.default_rng(seed)
  labels = rng.choice(columns['label'], num_rows)
  fakes = np.empty((num_rows, flat.shape[1]), np.float32)
  for label in np.unique(labels):
    rows, own = flat[columns['label'] == label], labels == label
    mean = rows.mean(0)
    weights = rng.standard_normal((own.sum(), len(rows)), np.float32)
    fakes[own] = mean + weights @ (rows - mean) / max(len(rows) - 1, 1) ** 0.5
  images = np.rint(np.clip(fakes, 0, 255)).astype(np.uint8)
  return sources.from_arrays(
    f'fakes of {real.name}',
    {
      'image': images.reshape(num_rows, *columns['image'].shape[1:]),
      'label': labels,
    },
    num_classes=real.num_classes,
    split='fakes',
  )
