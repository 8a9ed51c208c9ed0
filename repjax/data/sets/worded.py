"""Host side: labelled images whose colour and place are drawn, and captions.

An image of any set with classes is seen in one of six inks, in one of four
places on a black ground, and a caption says what it is, in which ink and where,
or a part of that. So there are three attributes with a word for each value, of
which one may be a target, and others what a slice is made of; and a model of
images and texts can be trained on them in seconds.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from repjax import types
from repjax.data.own import names as own_names
from repjax.data.reading import source as sources

INKS = dict(
  red=(255, 60, 60),
  green=(60, 220, 60),
  blue=(80, 110, 255),
  yellow=(240, 240, 50),
  purple=(210, 60, 240),
  white=(255, 255, 255),
)
PLACES = ('top', 'bottom', 'left', 'right')
ROOM = 4  # Pixels that a canvas is larger than an image, each way.

# What is said of a class, an ink, a place; not all of it is said always.
TEMPLATES = (
  'a {ink} {name} at the {place}',
  'at the {place} there is a {name} in {ink}',
  'the {name} on the {place} is {ink}',
  'one {ink} {name}',
  'somebody drew a {name} in {ink}',
  'a {name} at the {place}',
  'here is a {name}',
  'something {ink} at the {place}',
)
# In which a single word stands where it is to be embedded.
PROMPT = 'here is a {}'


def draw(
  source: sources.Source,
  *,
  num_rows: int,
  seed: int | list[int],
  split: str = 'train',
) -> sources.Source:
  """Rows of a set in drawn inks and places.

  Args:
    source: Images of one size, grey or in colours, with 'label'.
    num_rows: N. Every image comes as often as any other, or once more.
    seed: Of the draws.
    split: For messages.

  Returns:
    A source with 'image' uint8 [H + 4, W + 4, 3], 'label', 'ink' (place in
    `INKS`), 'place' (in `PLACES`) and 'row', that of the source. All classes,
    inks and places are independent.

  Raises:
    InputError: There are no classes, images differ in size, or the split is of
      files, whose names would stand beside other rows.
  """
  own_names.refuse_files(split)
  shape = source.image_shape
  if source.num_classes is None or shape is None or shape[-1] not in (1, 3):
    raise types.InputError(
      f'{source.name} has {source.num_classes} classes and images of {shape}: '
      'inks and places are for labelled images of one size, grey or in colours.'
    )
  types.check_range('[1, inf)', num_rows=num_rows)
  rng = np.random.default_rng(seed)
  rounds = -(-num_rows // len(source))
  rows = np.concatenate([rng.permutation(len(source)) for _ in range(rounds)])
  rows = rows[:num_rows]
  ink = rng.integers(len(INKS), size=num_rows).astype(np.int32)
  place = rng.integers(len(PLACES), size=num_rows).astype(np.int32)
  picked = source.select(rows)
  picked = picked.with_columns(ink=ink, place=place, row=rows.astype(np.int32))
  return dataclasses.replace(
    picked,
    name=f'worded_{source.name}',
    split=split,
    reader=_Painted(picked),
    image_shape=(shape[0] + ROOM, shape[1] + ROOM, 3),
    encoded={},
  )


def captions(
  columns: dict[str, np.ndarray],
  names: Sequence[str],
  *,
  seed: int | list[int],
) -> list[str]:
  """One caption a row, of a template that the seed draws.

  Args:
    columns: 'label', 'ink' and 'place', [N].
    names: What classes are called.
    seed: Of the draws.

  Raises:
    InputError: A label has no name.
  """
  labels = columns['label']
  if labels.size and labels.max() >= len(names):
    raise types.InputError(
      f'label {labels.max()} has none of the {len(names)} names of classes.'
    )
  chosen = np.random.default_rng(seed).integers(
    len(TEMPLATES), size=len(labels)
  )
  inks = tuple(INKS)
  return [
    TEMPLATES[i].format(name=names[label], ink=inks[ink], place=PLACES[place])
    for i, label, ink, place in zip(
      chosen, labels, columns['ink'], columns['place'], strict=True
    )
  ]


def everything(names: Sequence[str]) -> list[str]:
  """Texts with all words in all templates, for a tokenizer to learn from."""
  inks = tuple(INKS)
  longest = max(len(names), len(inks))
  return [
    *(
      template.format(
        name=names[i % len(names)],
        ink=inks[i % len(inks)],
        place=PLACES[i % len(PLACES)],
      )
      for template in TEMPLATES
      for i in range(longest)
    ),
    *(PROMPT.format(word) for x in words(names).values() for word in x),
  ]


def words(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """Column -> the word of each of its values."""
  return dict(label=tuple(names), ink=tuple(INKS), place=PLACES)


@dataclasses.dataclass(frozen=True)
class _Painted:
  """Reads images, paints them and puts them into their places."""

  source: sources.Source

  def __call__(self, indices):
    columns = dict(self.source.read(indices))
    images = columns['image'].astype(np.float32)
    inks = np.array(list(INKS.values()), np.float32)[columns['ink']]
    painted = np.rint(images / 255 * inks[:, None, None])
    size, (height, width) = len(images), images.shape[1:3]
    canvas = np.zeros((size, height + ROOM, width + ROOM, 3), np.uint8)
    # In the middle of a side.
    corners = np.array([(0, 2), (4, 2), (2, 0), (2, 4)]) * ROOM // 4
    for place, (top, left) in enumerate(corners):
      rows = columns['place'] == place
      canvas[rows, top : top + height, left : left + width] = painted[rows]
    columns['image'] = canvas
    return {
      name: columns[name] for name in ('image', 'label', 'ink', 'place', 'row')
    }
