"""Host side: videos that play behind a scene, read from a folder or made."""

import pathlib

import numpy as np

from repjax import types


def read_video(folder: str, *, size: int) -> list[np.ndarray]:
  """Pictures of a folder in the order of their names, as a video.

  Args:
    folder: With PNG or JPEG files.
    size: Side of the result; what is no square loses its longer sides' ends.

  Returns:
    Arrays [size, size, 3], uint8.

  Raises:
    InputError: If there are none.
  """
  from PIL import Image
  from PIL import ImageOps

  paths = sorted(
    x
    for x in pathlib.Path(folder).expanduser().glob('*')
    if x.suffix.lower() in ('.png', '.jpg', '.jpeg')
  )
  if not paths:
    raise types.InputError(
      f'{folder} holds no PNG or JPEG files: give a folder of the pictures of '
      'a video (config.study.video).'
    )
  frames = []
  for path in paths:
    with Image.open(path) as image:
      fitted = ImageOps.fit(image.convert('RGB'), (size, size))
      frames.append(np.asarray(fitted))
  return frames


def waves(*, size: int, num: int, seed: int) -> list[np.ndarray]:
  """Coloured waves that move, in place of a video, [size, size, 3] each."""
  rng = np.random.default_rng(seed)
  ways = rng.normal(size=(3, 2)) * 3  # Waves of each colour in a picture.
  speeds = rng.uniform(-1, 1, 3)
  places = (np.arange(size) + 0.5) / size
  phase = ways[:, 0] * places[:, None, None] + ways[:, 1] * places[:, None]
  turns = speeds * np.arange(num)[:, None] / 25  # [num, 3]
  pictures = 0.5 + 0.5 * np.sin(2 * np.pi * (phase + turns[:, None, None]))
  return list(np.round(255 * pictures).astype(np.uint8))
