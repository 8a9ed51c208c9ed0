"""Host side: coloured shapes, drawn to order, whose attributes are known.

One shape an image on black ground. Its kind and its colour are attributes with
few values; its place, scale and rotation vary freely. In the manner of dSprites
(https://github.com/google-deepmind/dsprites-dataset), but drawn here, so that a
benchmark of attributes needs no download.
"""

import colorsys

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

KINDS = ('square', 'ellipse', 'triangle', 'cross')

# Half the side of a square etc., in parts of the image's side.
_SMALLEST, _LARGEST = 0.16, 0.26


def draw(
  num_rows: int,
  *,
  seed: int,
  num_kinds: int = 3,
  num_colours: int = 3,
  size: int = 20,
  split: str = 'train',
) -> sources.Source:
  """Shapes with as many rows of each kind and colour as of any other.

  Args:
    num_rows: N. Where it is no multiple of num_kinds * num_colours, some pairs
      have a row more than others.
    seed: Decides everything. Sets of different seeds share no random numbers.
    num_kinds: The first so many of `KINDS`.
    num_colours: Pure colours of evenly spaced hues; 3 are red, green and blue.
    size: Side of the images in pixels.
    split: For messages.

  Returns:
    The source with 'image' uint8 [size, size, 3], 'label_shape' and
    'label_colour', and the free attributes 'value_x', 'value_y' (of the centre,
    in parts of the side), 'value_scale' (of the side, too) and 'value_rotation'
    (radians).

  Raises:
    InputError: If a number is out of range.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  types.check_range('[2, 4]', num_kinds=num_kinds)
  types.check_range('[2, 100]', num_colours=num_colours)
  types.check_range('[12, 1024]', size=size)
  rng = np.random.default_rng([seed, num_rows, num_kinds, num_colours])
  cell = rng.permutation(np.arange(num_rows) % (num_kinds * num_colours))
  kind, colour = np.divmod(cell, num_colours)
  scale = rng.uniform(_SMALLEST, _LARGEST, num_rows)
  # It keeps off the outermost pixels: corners lie on a circle of sqrt(2)
  # times its scale, and edges are a pixel wide.
  free = 1 - 2 * (np.sqrt(2) * scale + 1.5 / size)
  x, y = (0.5 + (rng.random(num_rows) - 0.5) * free for _ in range(2))
  rotation = rng.uniform(0, 2 * np.pi, num_rows)
  grey = paint(kind, x, y, scale, rotation, size=size)
  inks = np.array(
    [colorsys.hsv_to_rgb(i / num_colours, 1.0, 1.0) for i in range(num_colours)]
  )
  image = np.rint(255 * grey[..., None] * inks[colour][:, None, None])
  return sources.from_arrays(
    'shapes',
    {
      'image': image.astype(np.uint8),
      'label_shape': kind.astype(np.int32),
      'label_colour': colour.astype(np.int32),
      'value_x': x.astype(np.float32),
      'value_y': y.astype(np.float32),
      'value_scale': scale.astype(np.float32),
      'value_rotation': rotation.astype(np.float32),
    },
    split=split,
  )


def paint(
  kind: np.ndarray,
  x: np.ndarray,
  y: np.ndarray,
  scale: np.ndarray,
  rotation: np.ndarray,
  *,
  size: int,
) -> np.ndarray:
  """How much of each pixel a shape covers, with edges a pixel wide.

  Args:
    kind: Place in `KINDS`, [N].
    x: Of the centre, from the left, in parts of the side, [N].
    y: Of the centre, from the top, in parts of the side, [N].
    scale: Half the side of a square, in parts of the image's side, [N].
    rotation: In radians, [N].
    size: Side of the images in pixels.

  Returns:
    float64 [N, size, size] in [0, 1].
  """
  at = (np.arange(size) + 0.5) / size

  def rows(values):
    return np.asarray(values, np.float64)[:, None, None]

  right, down = at[None, None] - rows(x), at[None, :, None] - rows(y)
  cos, sin = np.cos(rows(rotation)), np.sin(rows(rotation))
  u = (cos * right + sin * down) / rows(scale)
  v = (cos * down - sin * right) / rows(scale)
  outside = np.empty(u.shape)  # Distance from the edge, negative inside.
  for number, name in enumerate(KINDS):
    of_kind = np.flatnonzero(kind == number)
    if of_kind.size:
      outside[of_kind] = _DISTANCES[name](u[of_kind], v[of_kind])
  return np.clip(0.5 - outside * rows(scale) * size, 0, 1)


def _square(u, v):
  return np.maximum(abs(u), abs(v)) - 1


def _ellipse(u, v):
  # Along its two axes the distance is exact.
  long, short = 1.35, 0.75
  radius = np.hypot(u / long, v / short)
  slope = np.hypot(u / long**2, v / short**2) / np.maximum(radius, 1e-9)
  return (radius - 1) / np.maximum(slope, 1e-9)


def _triangle(u, v):
  # Equal sides, which touch a circle of radius 0.7 (its corners: 1.4).
  slanted = 0.5 * v + np.sqrt(0.75) * abs(u)
  return np.maximum(-v, slanted) - 0.7


def _cross(u, v):
  def bar(a, b):
    return np.maximum(abs(a) - 1.2, abs(b) - 0.35)

  return np.minimum(bar(u, v), bar(v, u))


_DISTANCES = dict(
  square=_square, ellipse=_ellipse, triangle=_triangle, cross=_cross
)
