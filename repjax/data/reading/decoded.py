"""Host side: a set whose images have one size, whoever reads it."""

import dataclasses

import numpy as np

from repjax.data.reading import decode as decoding
from repjax.data.reading import source as sources


def decoded(source: sources.Source, decode: decoding.Decode) -> sources.Source:
  """The set with its images decoded whenever they are read.

  What comes after, corruptions, say, sees what a network would see.

  Args:
    source: With images.
    decode: Without draws, as evaluation has it.

  Raises:
    InputError: If there are no images, or the first one cannot be decoded.
    ValueError: If `decode` draws.
  """
  if decode.num_draws:
    raise ValueError(f'decode draws {decode.num_draws} numbers: none is given')
  source.check_images()
  first = source.read(np.arange(1), decode=decode)['image']
  return dataclasses.replace(
    source,
    image_shape=first.shape[1:],
    reader=_Decoded(source, decode),
    encoded={},  # `read` has decoded other columns, too.
  )


# A callable class, so that workers can unpickle it.
@dataclasses.dataclass(frozen=True)
class _Decoded:
  source: sources.Source
  decode: decoding.Decode

  def __call__(self, indices):
    return self.source.read(indices, decode=self.decode)
