"""Host side: sets whose rows have two attributes: a label and a nuisance.

`shapes` is drawn to order (`repjax.data.sets.shapes`); `dsprites`, `shapes3d`
and `smallnorb` are read where TFDS has prepared them.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.images import colours
from repjax.data.reading import source as sources
from repjax.data.sets import shapes


class Splits(NamedTuple):
  """Rows of one set, with 'image', 'label' and 'group' alone.

  Attributes:
    train: Rows that a shift chooses from.
    valid: Rows that choose hyperparameters.
    test: Rows that are reported.
    num_values: A: 'group' is the nuisance's value, in [0, A).
  """

  train: sources.Source
  valid: sources.Source
  test: sources.Source
  num_values: int


class _Set(NamedTuple):
  """What TFDS calls the attributes of a set, and how many values each has.

  Attributes:
    columns: Name -> (column, number of values).
    test: Split of its own, or '' where there is none.
    scale: What makes [0, 255] of its pixels.
  """

  columns: Mapping[str, tuple[str, int]]
  test: str
  scale: int


def _columns(**sizes):
  return {name: (f'label_{name}', size) for name, size in sizes.items()}


# Those of the paper that the authors have released.
SETS = dict(
  # TFDS keeps its binary images as 0 and 1. It is grey: the colour is painted,
  # as in the authors' code, but once for all and not anew in every step.
  dsprites=_Set(
    {
      **_columns(
        shape=3, scale=6, orientation=40, x_position=32, y_position=32
      ),
      'colour': ('ink', 3),
    },
    '',
    255,
  ),
  shapes3d=_Set(
    _columns(
      shape=4, floor_hue=10, wall_hue=10, object_hue=10, scale=8, orientation=15
    ),
    '',
    1,
  ),
  smallnorb=_Set(
    _columns(category=5, elevation=9, azimuth=18, lighting=6), 'test', 1
  ),
)

_INKS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def drawn(
  *,
  num_rows: int,
  num_held_out: int,
  num_kinds: int,
  num_colours: int,
  size: int,
  seed: int,
) -> Splits:
  """Shapes that are told apart, and whose colour is the nuisance.

  Args:
    num_rows: To choose training rows from.
    num_held_out: Of the validation set, and of the test set.
    num_kinds: C, number of labels.
    num_colours: A, values of the nuisance.
    size: Side of the images.
    seed: Decides all three; >= 0.
  """

  def part(count, split, place):
    source = shapes.draw(
      count,
      seed=3 * seed + place,
      num_kinds=num_kinds,
      num_colours=num_colours,
      size=size,
      split=split,
    )
    return with_attributes(
      source, label=('label_shape', num_kinds), nuisance='label_colour'
    )

  return Splits(
    part(num_rows, 'train', 0),
    part(num_held_out, 'valid', 1),
    part(num_held_out, 'test', 2),
    num_colours,
  )


def load(
  name: str,
  *,
  label: str,
  nuisance: str,
  num_held_out: int = 10_000,
  seed: int = 0,
  data_dir: str = '',
) -> Splits:
  """A set of TFDS. Its first rows, in TFDS's shuffled order, are held out.

  First come those of the test, where the set has none of its own, then those of
  the validation, as in the authors' code.

  Args:
    name: 'dsprites', 'shapes3d' or 'smallnorb'; perhaps with a version.
    label: Attribute that is told, such as 'shape'.
    nuisance: Attribute that is not told, such as 'colour'.
    num_held_out: Rows of the validation, and of the test.
    seed: Of the colours of dSprites.
    data_dir: Folder of prepared sets; '' means TFDS's default.

  Raises:
    InputError: If the set is unknown, not prepared, too small, or has no such
      attribute.
  """
  family = name.partition(':')[0]
  types.check_choice('config.data.name', family, ('shapes', *SETS))
  if family == 'shapes':
    raise types.InputError('shapes are drawn (attributed.drawn), not loaded.')
  sizes = {x: SETS[family].columns[x][1] for x in SETS[family].columns}
  for field, wanted in (('label', label), ('nuisance', nuisance)):
    types.check_choice(f'config.data.{field}', wanted, tuple(sizes))
  if label == nuisance:
    raise types.InputError(
      f'config.data.label and config.data.nuisance are both {label!r}: name '
      'two attributes.'
    )
  if 'colour' in (label, nuisance) and family != 'dsprites':
    raise types.InputError(f'{family} has no colour that is painted.')
  whole = sources.load(name, 'train', data_dir=data_dir)
  own_test = SETS[family].test
  return splits_of(
    whole,
    SETS[family],
    test=sources.load(name, own_test, data_dir=data_dir) if own_test else None,
    label=label,
    nuisance=nuisance,
    num_held_out=num_held_out,
    seed=seed,
  )


def splits_of(
  whole: sources.Source,
  known: _Set,
  *,
  test: sources.Source | None,
  label: str,
  nuisance: str,
  num_held_out: int,
  seed: int,
) -> Splits:
  """Splits of a source with the columns of a known set; see `load`."""
  kept = 0 if test is not None else num_held_out
  if len(whole) <= kept + num_held_out:
    raise types.InputError(
      f'config.data.num_held_out={num_held_out} leaves no row of the '
      f'{len(whole)} of {whole.name} to train on: lower it.'
    )

  def part(source, place):
    if known.scale != 1:
      source = dataclasses.replace(source, reader=_Scaled(source, known.scale))
      source = dataclasses.replace(source, encoded={})
    if 'colour' in (label, nuisance):
      source = colours.painted(source, _INKS, seed=3 * seed + place)
    return with_attributes(
      source, label=known.columns[label], nuisance=known.columns[nuisance][0]
    )

  rows = np.arange(len(whole))
  return Splits(
    part(whole.select(rows[kept + num_held_out :]), 0),
    part(whole.select(rows[kept : kept + num_held_out]), 1),
    part(whole.select(rows[:kept]) if test is None else test, 2),
    known.columns[nuisance][1],
  )


def with_attributes(
  source: sources.Source, *, label: tuple[str, int], nuisance: str
) -> sources.Source:
  """Rows with 'image', 'label' and 'group' alone.

  Args:
    source: With a column 'image'.
    label: Column of the label, and its number of classes.
    nuisance: Column that becomes 'group'.
  """
  return dataclasses.replace(
    source,
    num_classes=label[1],
    class_names=None,
    reader=_Attributes(source, label[0], nuisance),
    encoded={},
  )


# Callable classes, so that workers can unpickle them.
@dataclasses.dataclass(frozen=True)
class _Attributes:
  source: sources.Source
  label: str
  nuisance: str

  def __call__(self, indices):
    columns = self.source.read(indices)
    return {
      'image': columns['image'],
      'label': columns[self.label].astype(np.int32),
      'group': columns[self.nuisance].astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class _Scaled:
  source: sources.Source
  scale: int

  def __call__(self, indices):
    columns = self.source.read(indices)
    return {**columns, 'image': columns['image'] * np.uint8(self.scale)}
