"""Host side: grey images in colours, a shift of inputs that keeps labels."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

Rgb = tuple[float, float, float]


def painted(
  source: sources.Source,
  inks: Sequence[Rgb],
  *,
  seed: int,
  paper: Rgb = (0.0, 0.0, 0.0),
  keep_grey: bool = False,
) -> sources.Source:
  """The set with its strokes in ink and its ground in paper.

  A grey value g in [0, 1] becomes g * ink + (1 - g) * paper in each channel.
  Every row has one of the inks, drawn once for all.

  Args:
    source: uint8 images [H, W, 1] of one size, bright strokes on dark ground.
    inks: Red, green and blue of each ink, in [0, 1].
    seed: Decides which row has which ink.
    paper: Red, green and blue of the ground, in [0, 1].
    keep_grey: Whether there is a column 'grey' of the images as they were.

  Returns:
    The source with images [H, W, 3] and a column 'ink' of places in `inks`.

  Raises:
    InputError: If there are no inks, a colour is not in [0, 1], or images are
      not grey and of one size.
  """
  colours = np.asarray([*inks, paper], np.float32)
  if colours.shape[1:] != (3,) or len(colours) < 2:
    raise types.InputError(
      f'inks must be one or several (red, green, blue); got {inks!r}.'
    )
  if not ((colours >= 0) & (colours <= 1)).all():
    raise types.InputError(f'Colours are in [0, 1]; got {inks=}, {paper=}.')
  source.check_images()
  if source.image_shape is None or source.image_shape[-1] != 1:
    raise types.InputError(
      f'{source.name} has images {source.image_shape}; only grey images '
      '(H, W, 1) of one size can be painted.'
    )
  chosen = np.random.default_rng([seed, len(source)]).integers(
    len(inks), size=len(source)
  )
  coloured = source.with_columns(ink=chosen.astype(np.int32))
  return dataclasses.replace(
    coloured,
    reader=_Paint(coloured, colours[:-1], colours[-1], keep_grey),
    image_shape=(*source.image_shape[:2], 3),
    encoded={},
  )


# A callable class, so that workers can unpickle it.
@dataclasses.dataclass(frozen=True)
class _Paint:
  source: sources.Source
  inks: np.ndarray
  paper: np.ndarray
  keep_grey: bool

  def __call__(self, indices):
    columns = self.source.read(indices)
    grey = columns['image'].astype(np.float32)  # [n, H, W, 1]
    ink = self.inks[columns['ink']][:, None, None]
    image = grey * ink + (255 - grey) * self.paper
    kept = {'grey': columns['image']} if self.keep_grey else {}
    return {**columns, **kept, 'image': np.rint(image).astype(np.uint8)}
