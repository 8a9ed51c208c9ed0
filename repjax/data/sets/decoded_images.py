"""Host side: images of a random decoder, whose latent dimension is known.

What estimates of intrinsic dimension are tried on, in place of the GAN of Pope
et al., ICLR 2021 (https://arxiv.org/abs/2104.08894, sec. 4): no estimate of the
images may exceed the number of latent coordinates. A decoder here is a function
of the place in the image, so that its images have any number of pixels and stay
the same images.
"""

from typing import NamedTuple

import numpy as np

from repjax.data.reading import source
from repjax.types import check_range


class Decoder(NamedTuple):
  """h = tanh(A z + c_y), g = tanh(B h), pixel = sigmoid(w . g) at each place.

  Attributes:
    inputs: A, [hidden, d]; columns have a variance of gain^2 / d, so that
      images vary as much whatever d is.
    offsets: c, one row a class, [num_classes, hidden].
    hidden: B, [hidden, hidden].
    waves: Cosines over the image that w is made of, as (frequencies [F, 2],
      phases [F]).
    outputs: Weights of the cosines, [F, hidden].
  """

  inputs: np.ndarray
  offsets: np.ndarray
  hidden: np.ndarray
  waves: tuple[np.ndarray, np.ndarray]
  outputs: np.ndarray


def decoder(
  latent_dim: int,
  *,
  seed: int,
  num_classes: int = 2,
  hidden: int = 128,
  num_waves: int = 48,
  gain: float = 1.5,
  gap: float = 1.0,
) -> Decoder:
  """Draws a decoder.

  Args:
    latent_dim: d.
    seed: Of all weights; those behind A are equal for all d.
    num_classes: Number of classes.
    hidden: Units of both hidden layers, at least d.
    num_waves: Cosines, F.
    gain: How curved the images' manifold is.
    gap: Deviation of the offsets of classes.
  """
  check_range(f'[1, {hidden}]', latent_dim=latent_dim)
  check_range('[1, inf)', num_classes=num_classes, num_waves=num_waves)
  check_range('(0, inf)', gain=gain)
  check_range('[0, inf)', gap=gap)
  rng = np.random.default_rng(seed)
  normal = rng.standard_normal
  offsets = gap * normal((num_classes, hidden))
  inner = normal((hidden, hidden)) * gain / hidden**0.5
  frequencies = rng.uniform(-2, 2, (num_waves, 2))
  phases = rng.uniform(0, 2 * np.pi, num_waves)
  outputs = normal((num_waves, hidden)) * 2 / (hidden * num_waves) ** 0.5
  inputs = normal((hidden, hidden))[:, :latent_dim] * gain / latent_dim**0.5
  return Decoder(inputs, offsets, inner, (frequencies, phases), outputs)


def decode(
  made: Decoder, latents: np.ndarray, labels: np.ndarray, *, size: int
) -> np.ndarray:
  """Images of latent vectors.

  Args:
    made: The decoder.
    latents: z, [N, d].
    labels: Classes, [N].
    size: Pixels of a side.

  Returns:
    [N, size, size, 1] in (0, 1), float32.
  """
  check_range('[1, inf)', size=size)
  places = (np.arange(size) + 0.5) / size
  grid = np.stack(np.meshgrid(places, places, indexing='ij'), -1)
  frequencies, phases = made.waves
  waves = np.cos(2 * np.pi * grid @ frequencies.T + phases)  # [H, W, F]
  h = np.tanh(latents @ made.inputs.T + made.offsets[labels])
  weights = np.tanh(h @ made.hidden.T) @ made.outputs.T  # [N, F]
  logits = 2**0.5 * np.einsum('nf,hwf->nhw', weights, waves, optimize=True)
  return (1 / (1 + np.exp(-logits)))[..., None].astype(np.float32)


def draw(
  made: Decoder, num_rows: int, *, size: int, seed: int, split: str = 'train'
) -> source.Source:
  """Images of normal latent vectors, classes equally often.

  Args:
    made: The decoder.
    num_rows: N.
    size: Pixels of a side.
    seed: Of the latent vectors.
    split: For messages.

  Returns:
    Rows with 'image' [size, size, 1] in [0, 1], not rounded to bytes, which
    would be noise of size * size dimensions, and 'label'.
  """
  check_range('[1, inf)', num_rows=num_rows)
  rng = np.random.default_rng(seed)
  latents = rng.standard_normal((num_rows, made.inputs.shape[1]))
  labels = np.arange(num_rows) % len(made.offsets)
  return source.from_arrays(
    'decoded images',
    {'image': decode(made, latents, labels, size=size), 'label': labels},
    num_classes=len(made.offsets),
    split=split,
  )
