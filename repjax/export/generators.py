"""Host side: a generator as a program of its own, from latents to images.

The whole prediction of a run that makes images (`program.write`) scores images
and takes the place of a row for its latent. Here the network alone is written,
in the same three files:

    make = program.load(folder)
    make({'latent': latents})['image']
"""

from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

import numpy as np

from repjax import files
from repjax import types
from repjax.export import networks
from repjax.export import program


class Pixels(NamedTuple):
  """What values of an image mean, one number or one a channel.

  Attributes:
    black: The value of a pixel of 0.
    white: The value of a pixel of 255.
  """

  black: Sequence[float]
  white: Sequence[float]


def pixels(mean: Sequence[float], std: Sequence[float]) -> Pixels:
  """Those of images that are scaled by (value / 255 - mean) / std.

  >>> pixels((0.5,), (0.5,))
  Pixels(black=[-1.0], white=[1.0])
  """
  means, stds = np.asarray(mean, float), np.asarray(std, float)
  return Pixels(
    black=((0 - means) / stds).tolist(), white=((1 - means) / stds).tolist()
  )


def write(
  folder: str | os.PathLike,
  network: networks.Network,
  scale: Pixels,
  *,
  rows: int = 0,
) -> program.Signature:
  """Writes a generator as a program of 'latent' that gives 'image'.

  Args:
    folder: That exists.
    network: Found by `networks.of`.
    scale: Told in signature.json, as 'pixels'.
    rows: Number of rows of each call; 0 for any.

  Raises:
    InputError: It makes no images of latents, or the program cannot be made.
  """
  model = network.module
  size = getattr(model, 'latent_dim', None)
  shapes = [np.shape(x)[1:] for x in network.args]
  if size is None or shapes != [(size,)]:
    raise types.InputError(
      f'--network={type(network.base).__name__} is no generator, and '
      '--format=jax writes only generators by --network: leave it out, for all '
      'that the run predicts.'
    )

  def predict(variables, batch):
    return {'image': model.apply(variables, batch['latent'], train=False)}

  signature = program.write(
    folder,
    types.Predictor(predict),
    network.variables,
    {'latent': np.zeros((2, size), np.float32)},
    rows=rows,
  )
  path = pathlib.Path(folder) / program.SIGNATURE
  files.write_json(path, {**files.read_json(path), 'pixels': scale._asdict()})
  return signature
