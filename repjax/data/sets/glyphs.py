"""Host side: characters of an alphabet that nobody writes, drawn to order.

A class is a few strokes, quadratic curves whose control points its number and
the alphabet's seed decide; its rows differ by an unsteady hand, by rotation,
scale, place and the pen. In the manner of Omniglot (Lake, Salakhutdinov and
Tenenbaum, 'Human-level concept learning through probabilistic program
induction', Science 2015, https://doi.org/10.1126/science.aab3050), but drawn
here, so that base classes of any number need no download.
"""

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

# Straight pieces that a curve is painted with.
_PIECES = 6


def draw(
  num_rows: int,
  *,
  num_classes: int,
  seed: int,
  alphabet: int = 0,
  num_strokes: int = 3,
  size: int = 16,
  split: str = 'train',
) -> sources.Source:
  """Characters, as many of each class as of any other.

  Args:
    num_rows: N. Where it is no multiple of the number of classes, some have a
      row more than others.
    num_classes: C. The first classes of an alphabet are the same whatever C is.
    seed: Decides the rows. Sets of different seeds share no random numbers.
    alphabet: Decides the classes.
    num_strokes: Of each character.
    size: Side of the images in pixels.
    split: For messages.

  Returns:
    The source with 'image' uint8 [size, size, 1], bright strokes on dark
    ground, and 'label' in [0, C).

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  types.check_range('[2, 10000]', num_classes=num_classes)
  types.check_range('[1, 16]', num_strokes=num_strokes)
  types.check_range('[8, 1024]', size=size)
  rng = np.random.default_rng([seed, num_rows, num_classes])
  label = rng.permutation(np.arange(num_rows) % num_classes)
  strokes = characters(alphabet, num_classes, num_strokes)
  points = strokes[label] + rng.normal(0, 0.035, (num_rows, num_strokes, 3, 2))
  angle = rng.uniform(-0.25, 0.25, num_rows)
  scale = rng.uniform(0.8, 1.05, num_rows)
  shift = rng.uniform(-0.06, 0.06, (num_rows, 1, 1, 2))
  cos, sin = scale * np.cos(angle), scale * np.sin(angle)
  turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
  points = np.einsum('nij,nskj->nski', turn, points - 0.5) + 0.5 + shift
  pen = rng.uniform(0.045, 0.08, num_rows)
  image = paint(points, pen, size=size) * rng.uniform(
    0.8, 1.0, (num_rows, 1, 1)
  )
  return sources.from_arrays(
    'glyphs',
    {
      'image': np.rint(255 * image[..., None]).astype(np.uint8),
      'label': label.astype(np.int32),
    },
    num_classes=num_classes,
    split=split,
  )


def characters(
  alphabet: int, num_classes: int, num_strokes: int = 3
) -> np.ndarray:
  """Control points (right, down) of the first classes of an alphabet.

  Args:
    alphabet: Decides them.
    num_classes: C.
    num_strokes: S, of each character.

  Returns:
    [C, S, 3, 2], in parts of the side.
  """
  return np.stack(
    [_character(alphabet, x, num_strokes) for x in range(num_classes)]
  )


def paint(points: np.ndarray, pen: np.ndarray, *, size: int) -> np.ndarray:
  """How much of each pixel quadratic curves cover, with edges a pixel wide.

  Args:
    points: Control points (right, down) of each curve, in parts of the side,
      [N, S, 3, 2].
    pen: Half the width of a stroke, in parts of the side, [N].
    size: Side of the images in pixels.

  Returns:
    float64 [N, size, size] in [0, 1].
  """
  at = np.linspace(0, 1, _PIECES + 1)
  weights = np.stack([(1 - at) ** 2, 2 * at * (1 - at), at**2], -1)
  path = np.einsum('pk,nskd->nspd', weights, points)
  # Curve after curve, piece after piece; [S * P, N, 1] for right and for down.
  start, along = (
    np.moveaxis(x.reshape(len(points), -1, 2), 0, 1)[..., None]
    for x in (path[:, :, :-1], np.diff(path, axis=2))
  )
  squares = np.maximum((along**2).sum(2), 1e-12)
  centres = (np.arange(size) + 0.5) / size
  right, down = (x.reshape(-1) for x in np.meshgrid(centres, centres))
  nearest = np.full((len(points), size * size), np.inf)
  for (x, y), (across, below), square in zip(
    np.moveaxis(start, 2, 1), np.moveaxis(along, 2, 1), squares, strict=True
  ):
    x, y = right - x, down - y
    share = np.clip((x * across + y * below) / square, 0, 1)
    away = np.hypot(x - share * across, y - share * below)
    np.minimum(nearest, away, out=nearest)
  covered = np.clip(0.5 + (pen[:, None] - nearest) * size, 0, 1)
  return covered.reshape(-1, size, size)


def _character(alphabet, number, num_strokes):
  """Control points of one class, [S, 3, 2]; no stroke is a mere dot."""
  rng = np.random.default_rng([alphabet, number])
  points = rng.uniform(0.15, 0.85, (num_strokes, 3, 2))
  short = np.hypot(*(points[:, 2] - points[:, 0]).T) < 0.35
  points[short, 2] = 1 - points[short, 0]
  return points
