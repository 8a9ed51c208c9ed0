"""Host side: does a detector see an object in every place?

The probe of Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind Spots',
ICLR 2021 (https://openreview.net/forum?id=m1CD7tPubNy, figure 1): one object
moves over the image, and what is found of it is drawn where it was.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repjax import types


class Sweep(NamedTuple):
  """An object in all places of an image.

  Attributes:
    columns: 'image' and 'box' of R images for each place, [P * P * R, ...].
    places: P, places along one side.
    repeats: R, images for each place.
  """

  columns: dict[str, np.ndarray]
  places: int
  repeats: int


# (first pixels (row, column) of objects [N, 2], rng) -> (images, boxes [N, 4]).
Paint = Callable[
  [np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]
]


def sweep(
  paint: Paint, *, side: int, size: int, repeats: int = 4, seed: int = 0
) -> Sweep:
  """Images with an object in all places where it fits, row by row.

  Args:
    paint: Draws them; `repjax.data.sets.spots.paint` does.
    side: Side of the images in pixels.
    size: Side of the object in pixels.
    repeats: Images for each place, which differ by what `paint` draws.
    seed: Of these draws.

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', repeats=repeats)
  types.check_range(f'[1, {side}]', size=size)
  places = side - size + 1
  corners = np.stack(np.divmod(np.arange(places**2), places), 1)
  corners = np.repeat(corners, repeats, 0)
  image, box = paint(corners, np.random.default_rng(seed))
  return Sweep({'image': image, 'box': box}, places, repeats)


def seen(
  outputs: Mapping[str, np.ndarray], swept: Sweep, *, least: float = 0.3
) -> np.ndarray:
  """How surely the object is found in each place.

  Args:
    outputs: 'score' [..., N, D] and 'boxes' [..., N, D, 4] of its images, as
      `methods.detection` predicts them.
    swept: The images.
    least: Intersection over union from which a box is one of the object.

  Returns:
    Mean over images of the largest score of such a box (0 if there is none),
    [..., P, P].
  """
  found = np.asarray(outputs['boxes'])
  box = swept.columns['box'][:, None]
  low = np.maximum(*(b[..., :2] - b[..., 2:] / 2 for b in (found, box)))
  high = np.minimum(*(b[..., :2] + b[..., 2:] / 2 for b in (found, box)))
  both = np.maximum(high - low, 0).prod(-1)
  areas = found[..., 2:].prod(-1) + box[..., 2:].prod(-1)
  hit = both >= least * (areas - both)
  score = np.where(hit, outputs['score'], 0.0).max(-1)
  shape = (swept.places, swept.places, swept.repeats)
  return score.reshape((*score.shape[:-1], *shape)).mean(-1)


def of_sides(maps: np.ndarray, *, width: int = 2) -> dict[str, np.ndarray]:
  """Means over the outermost places of each side, and over the inner ones.

  Args:
    maps: [..., P, P], as `seen` gives them.
    width: Rows or columns of places that belong to a side.

  Returns:
    'top', 'bottom', 'left' and 'right' (without corners), and 'inside', [...].

  Raises:
    InputError: If nothing would be left inside.
  """
  places = maps.shape[-1]
  if not 1 <= width < places / 2:
    raise types.InputError(
      f'width={width} leaves nothing inside of {places} places: lower it.'
    )
  inner = slice(width, places - width)
  first, last = slice(0, width), slice(places - width, places)
  parts = dict(
    top=(first, inner),
    bottom=(last, inner),
    left=(inner, first),
    right=(inner, last),
    inside=(inner, inner),
  )
  return {
    name: maps[(..., *part)].mean((-2, -1)) for name, part in parts.items()
  }
