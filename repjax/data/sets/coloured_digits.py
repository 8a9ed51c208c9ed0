"""Host side: digits whose colour tells their class, but not always.

The coloured MNIST of 'Systematic generalisation with group invariant
predictions' (Ahmed et al., ICLR 2021,
https://openreview.net/forum?id=b9PoimzZFJ), over any grey digits. Every class
has a colour of its own, which most of its training rows have (the majority,
group 0); the others have one of ten further colours (the minority, group 1).
Tests are about colours: as in training, new ones, or another class's own.
"""

import dataclasses
from typing import Literal
from typing import get_args

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.types import InputError

Split = Literal[
  'train',
  'validation',
  'validation_systematic',
  'validation_non_systematic',
  'in_distribution',
  'non_systematic',
  'systematic',
  'anomaly',
]

# One for each of nine classes, as in the authors' code.
CLASS_COLOURS = np.array(
  [
    (0, 100, 0),
    (188, 143, 143),
    (255, 0, 0),
    (255, 215, 0),
    (0, 255, 0),
    (65, 105, 225),
    (0, 225, 225),
    (0, 0, 255),
    (255, 20, 147),
  ]
)
_NUM_FURTHER = 10  # Further colours of each kind: training, validation, test.


def load(
  train: sources.Source,
  test: sources.Source,
  split: Split,
  *,
  seed: int,
  bias_rate: float = 0.8,
  min_distance: float = 2500.0,
  num_validation: int = 0,
  copies: int = 1,
) -> sources.Source:
  """One split of the coloured digits.

  'train' and 'validation...' are rows of `train`, the others of `test`.
  'validation' and 'in_distribution' are coloured as training rows are,
  '..._non_systematic' in ten colours of their own that no other split has,
  '..._systematic' in the colour of a random other class, and 'anomaly' holds
  the digit 0, which is no class, in classes' colours (with a random label).

  Args:
    train: Grey digits of ten classes, of one size.
    test: Digits of that kind.
    split: One of those above.
    seed: Decides all colours, and which rows validate.
    bias_rate: Probability of the class's own colour, in [0, 1]; 0.8 in the
      paper.
    min_distance: Least squared distance, in 0 .. 255 a channel, of a further
      colour from the classes' and from those of other splits.
    num_validation: Rows of `train` that are held out for validation.
    copies: How often the rows of an evaluation split come, each time with
      colours of their own: fewer rows than colours make noise.

  Returns:
    A source with images [H, W, 3] uint8, strokes (values above 127) in colour
    on black, labels in [0, 9), and columns 'group' (1 for the minority) and
    'digit', the row of the grey set.

  Raises:
    InputError: If the sets are no grey digits of ten classes, or a value is out
      of range.
  """
  types.check_choice('split', split, get_args(Split))
  types.check_range('[0, 1]', bias_rate=bias_rate)
  types.check_range('[1, inf)', copies=copies)
  types.check_range('[0, inf)', num_validation=num_validation)
  for grey in (train, test):
    shape = grey.image_shape
    if grey.num_classes != 10 or shape is None or shape[-1] != 1:
      raise InputError(
        f'{grey.name} has {grey.num_classes} classes and images of '
        f'{shape}: only grey digits (H, W, 1) of ten classes are coloured.'
      )
  grey, rows = _rows(train, test, split, seed, num_validation)
  rows = np.tile(rows, 1 if split == 'train' else copies)
  rng = np.random.default_rng([seed, 1 + get_args(Split).index(split)])
  colours = further_colours(seed, min_distance)
  label = grey.column('label')[rows].astype(np.int32) - 1
  if split == 'anomaly':
    label = rng.integers(0, 9, len(rows)).astype(np.int32)
  own = CLASS_COLOURS[label]
  if split.endswith('non_systematic'):
    kind = 1 if split.startswith('validation') else 2
    chosen, group = rng.choice(colours[kind], len(rows)), np.ones(len(rows))
  elif split.endswith('systematic'):
    other = (label + rng.integers(1, 9, len(rows))) % 9
    chosen, group = CLASS_COLOURS[other], np.ones(len(rows))
  elif split == 'anomaly':
    chosen, group = own, np.zeros(len(rows))
  else:
    group = (rng.random(len(rows)) >= bias_rate).astype(float)
    further = rng.choice(colours[0], len(rows))
    chosen = np.where(group[:, None] > 0, further, own)
  picked = dataclasses.replace(
    grey.select(rows).with_columns(
      label=label,
      group=group.astype(np.int32),
      digit=rows.astype(np.int32),
      colour=chosen.astype(np.uint8),
    ),
    name=f'coloured_{grey.name}',
    split=split,
    num_classes=9,
    class_names=tuple(map(str, range(1, 10))),
  )
  return dataclasses.replace(
    picked,
    reader=_Colour(picked),
    image_shape=(*grey.image_shape[:2], 3),
    encoded={},
  )


def further_colours(seed: int, min_distance: float) -> np.ndarray:
  """Ten colours each for training, validation and tests, [3, 10, 3].

  Raises:
    InputError: If there is no room for so many so far apart.
  """
  rng = np.random.default_rng([seed, 0])
  found: list[np.ndarray] = []
  for kind in range(3):
    # Colours of one kind may be close to each other, as the authors' are.
    taken = np.concatenate([CLASS_COLOURS, *found])
    drawn = rng.integers(0, 255, (10_000, 3))
    square = np.square(drawn[:, None] - taken[None]).sum(-1).min(1)
    fitting = drawn[square > min_distance][:_NUM_FURTHER]
    if len(fitting) < _NUM_FURTHER:
      raise InputError(
        f'There are no ten colours number {kind} with {min_distance=} from all '
        'others: lower it.'
      )
    found.append(fitting)
  return np.stack(found)


def _rows(train, test, split, seed, num_validation):
  """(grey set, its rows in the split)."""
  if split == 'train' or split.startswith('validation'):
    digits = np.flatnonzero(train.column('label') > 0)
    order = np.random.default_rng([seed, 0, 1]).permutation(digits)
    if num_validation >= len(digits):
      raise InputError(
        f'{num_validation=} leaves no training row of {len(digits)}.'
      )
    held, rest = order[:num_validation], order[num_validation:]
    chosen = rest if split == 'train' else held
    if not len(chosen):
      raise InputError(f'The split {split!r} needs num_validation above 0.')
    return train, np.sort(chosen)
  is_zero = test.column('label') == 0
  return test, np.flatnonzero(is_zero == (split == 'anomaly'))


# A callable class, so that workers can unpickle it.
@dataclasses.dataclass(frozen=True)
class _Colour:
  source: sources.Source

  def __call__(self, indices):
    columns = self.source.read(indices)
    stroke = columns['image'] > 127  # [n, H, W, 1]
    colour = columns.pop('colour')[:, None, None]
    return {**columns, 'image': (stroke * colour).astype(np.uint8)}
