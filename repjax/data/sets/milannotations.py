"""Host side: MILANNOTATIONS, what people wrote about units of networks.

Hernandez et al., ICLR 2022 (https://arxiv.org/abs/2201.11114), section 4;
https://github.com/evandez/neuron-descriptions says where the files are. A
folder holds one network's units: `annotations.csv` with the columns layer, unit
and summary (several rows a unit), and for each layer a folder with `images.npy`
uint8 [U, k, 3, H, W], `masks.npy` [U, k, 1, H, W] and, where not all units are
there, `units.npy` [U].
"""

from collections.abc import Iterator
import csv
import os
from typing import NamedTuple

import numpy as np

from repjax import files
from repjax import types


class Unit(NamedTuple):
  """A unit that people have described.

  Attributes:
    layer: Its layer.
    unit: Its number there.
    image: Its exemplars, uint8 [k, H, W, 3].
    mask: Where it is at work in them, bool [k, H, W].
    captions: What people wrote.
  """

  layer: str
  unit: int
  image: np.ndarray
  mask: np.ndarray
  captions: tuple[str, ...]


def annotations(
  folder: str | os.PathLike, *, field: str = 'folder'
) -> dict[tuple[str, int], tuple[str, ...]]:
  """Captions of each (layer, unit) of a folder.

  Args:
    folder: Of one network.
    field: Where the user has named it, for errors.

  Raises:
    InputError: There is no such file, or a column is missing.
  """
  path = files.path_of(folder) / 'annotations.csv'
  if not path.is_file():
    raise types.InputError(
      f'{field}={folder} holds no annotations.csv: give a folder of '
      'MILANNOTATIONS, or take --preset=small, which draws its own units.'
    )
  found: dict[tuple[str, int], list[str]] = {}
  try:
    with path.open(newline='', encoding='utf-8') as file:
      reader = csv.DictReader(file)
      for column in ('layer', 'unit', 'summary'):
        if column not in (reader.fieldnames or ()):
          raise types.InputError(f'{path} has no column {column!r}')
      for line in reader:
        unit = line['unit']
        if not (unit or '').isdigit():
          raise types.InputError(
            f'{path}, line {reader.line_num}: the unit {unit!r} is no number'
          )
        key = line['layer'], int(unit)
        found.setdefault(key, []).append((line['summary'] or '').strip())
  except (UnicodeDecodeError, csv.Error) as error:
    raise types.InputError(f'{path} cannot be read: {error}') from error
  if not found:
    raise types.InputError(f'{path} has no annotation in it')
  return {key: tuple(filter(None, texts)) for key, texts in found.items()}


def read(folder: str | os.PathLike, *, field: str = 'folder') -> Iterator[Unit]:
  """All described units of one network; images are read as they are asked for.

  Args:
    folder: Of one network.
    field: Where the user has named it, for errors.

  Yields:
    Units in the order of the layers' names, those without a caption left out.

  Raises:
    InputError: A file is missing, or its shape is none of these.
  """
  texts = annotations(folder, field=field)
  for layer in sorted({name for name, _ in texts}):
    where = files.path_of(folder) / layer
    images, masks = (_array(where / f'{x}.npy') for x in ('images', 'masks'))
    if (
      images.ndim != 5
      or images.shape[2] != 3
      or images.shape[:2] + images.shape[3:]
      != masks.shape[:2] + masks.shape[3:]
    ):
      raise types.InputError(
        f'{where}: images are [U, k, 3, H, W] and masks [U, k, 1, H, W]; got '
        f'{images.shape} and {masks.shape}'
      )
    listed = where / 'units.npy'
    units = _array(listed) if listed.exists() else np.arange(len(images))
    if units.shape != images.shape[:1] or units.dtype.kind not in 'iu':
      raise types.InputError(
        f'{listed}: units are whole numbers, one for each of {len(images)}; '
        f'got {units.dtype} of shape {units.shape}'
      )
    for row, unit in enumerate(units):
      captions = texts.get((layer, int(unit)))
      if captions:
        yield Unit(
          layer,
          int(unit),
          np.moveaxis(np.asarray(images[row]), 1, -1),
          np.asarray(masks[row, :, 0]) > 0,
          captions,
        )


def _array(path):
  if not path.is_file():
    raise types.InputError(f'{path} is missing: MILANNOTATIONS has it')
  try:
    return np.load(path, mmap_mode='r')
  except (ValueError, EOFError, OSError) as error:
    raise types.InputError(f'{path} cannot be read: {error}') from error
