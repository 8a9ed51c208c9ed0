"""Host side: 'hospitals', domains made of digits, with all splits of U-WILDS.

The form of Camelyon17: a binary label, patches from several hospitals, each
with slides of its own; training on some hospitals, validation on another, test
on a third, and rows without labels from all of them. What a hospital changes is
what stains and scanners change: colours, contrast and sharpness. So nothing but
the look of an image tells hospitals apart, labels mean the same everywhere, and
a model can be right on all of them.
"""

from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import metrics
from repjax.data.reading import source as sources

SOURCES, VAL, TEST, EXTRA = (0, 3, 4), 1, 2, (5, 6)
NAMES = tuple('ABCDEFG')
SLIDES = 4  # Of each hospital.
# How near the looks of the source hospitals lie to each other, in parts of the
# way between two random ones; and how far the others are from them: mean
# difference of their colours. Where sources vary as much as all do, a model
# learns from them to be general, and there is hardly a gap.
NEARNESS, FAR = 0.1, 0.22
SPLIT_IDS = {'train': 0, 'id_val': 1, 'test': 2, 'val': 3, 'id_test': 4}
UNLABELLED_IDS = {
  'train_unlabeled': 10,
  'val_unlabeled': 11,
  'test_unlabeled': 12,
  'extra_unlabeled': 13,
}
# Split -> the domains that its rows are of.
HOMES = {
  'train': SOURCES,
  'id_val': SOURCES,
  'id_test': SOURCES,
  'val': (VAL,),
  'test': (TEST,),
  'train_unlabeled': SOURCES,
  'val_unlabeled': (VAL,),
  'test_unlabeled': (TEST,),
  'extra_unlabeled': EXTRA,
}
# What part of the digits each split takes; 'id_test' has those of 'test', in
# the looks of the source hospitals, so that a gap is none of the digits'.
SHARES = {
  'train': 0.40,
  'id_val': 0.08,
  'val': 0.08,
  'test': 0.20,
  'train_unlabeled': 0.07,
  'val_unlabeled': 0.03,
  'test_unlabeled': 0.11,
  'extra_unlabeled': 0.03,
}


class Look(NamedTuple):
  """How slides of a hospital look.

  Attributes:
    ink: Red, green and blue of a full stroke, in [0, 1].
    paper: Those of the ground.
    contrast: What grey values are stretched by around a half.
    blur: Standard deviation of a Gaussian, in parts of the image's side.
  """

  ink: np.ndarray
  paper: np.ndarray
  contrast: float
  blur: float


def load(
  name: str = 'digits',
  *,
  seed: int = 0,
  strength: float = 1.0,
  num_digits: int = 0,
  data_dir: str = '',
  unlabelled: bool = False,
) -> datasets.Dataset:
  """The labelled splits of the hospitals, or their rows without labels.

  Args:
    name: Set of digits: grey images of one size and labels in [0, 10).
    seed: Of looks and of which digit goes where; labelled and unlabelled rows
      of one seed share no digit.
    strength: How far looks lie apart, >= 0; at 0 all hospitals are alike.
    num_digits: Digits that are used, 0 for all.
    data_dir: Folder of prepared sets, where `name` is not embedded.
    unlabelled: Whether the rows without labels are made.

  Returns:
    A data set with 'image' uint8 [H, W, 3], the label whether the digit is at
    least 5, and the metadata 'hospital', 'slide' and 'y'.

  Raises:
    InputError: The set is none of grey digits, or too small.
  """
  types.check_range('[0, inf)', strength=strength, num_digits=num_digits)
  image, digit = _digits(name, data_dir)
  if num_digits > len(digit):
    raise types.InputError(
      f'{name} has {len(digit)} digits; got {num_digits=}: lower it.'
    )
  rng = np.random.default_rng([seed, 2021])
  looks = hospital_looks(rng, strength)
  # Of its own, so that no look decides which digit goes where.
  order = np.random.default_rng([seed, 2023]).permutation(len(digit))
  order = order[: num_digits or len(digit)]
  ends = np.rint(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
  parts = dict(zip(SHARES, np.split(order, ends[:-1]), strict=True))
  parts['id_test'] = parts['test']
  ids = UNLABELLED_IDS if unlabelled else SPLIT_IDS
  rows, splits, homes_of = [], [], []
  for part, number in ids.items():
    count = len(parts[part])
    if count < len(HOMES[part]):
      raise types.InputError(
        f'{num_digits=} leaves {count} digits for {part!r}: raise it.'
      )
    rows.append(parts[part])
    splits.append(np.full(count, number))
    homes_of.append(np.resize(HOMES[part], count))
  row, split, hospital = (np.concatenate(x) for x in (rows, splits, homes_of))
  # Slides of the same hospital differ a little; labelled and unlabelled rows
  # come from different slides.
  rng = np.random.default_rng([seed, 2022, unlabelled])
  slide = rng.integers(SLIDES, size=len(row))
  shades = rng.normal(0, 0.02 * strength, (len(NAMES), SLIDES, 3))
  painted = np.empty((*image[row].shape[:3], 3), np.uint8)
  for home in np.unique(hospital):
    at = hospital == home
    painted[at] = render(image[row[at]], looks[home], shades[home][slide[at]])
  label = (digit[row] >= 5).astype(np.int64)
  return datasets.make(
    'hospitals_unlabeled' if unlabelled else 'hospitals',
    split_ids=ids,
    split=split,
    label=label,
    num_classes=2,
    metadata=dict(
      hospital=hospital,
      slide=hospital * 2 * SLIDES + SLIDES * unlabelled + slide,
      y=label,
    ),
    names=dict(hospital=NAMES, y=('0 to 4', '5 to 9')),
    inputs=sources.from_arrays('hospitals', {'image': painted}),
    evaluate=None
    if unlabelled
    else datasets.by_fields(('slide',), metrics.ACCURACY),
    source_splits=(10,) if unlabelled else (0, 1, 4),
  )


def hospital_looks(rng: np.random.Generator, strength: float) -> list[Look]:
  """A look of each hospital: those of the sources alike, the others far."""
  first = look(rng, strength)

  def distance(other):
    ink, paper = abs(other.ink - first.ink), abs(other.paper - first.paper)
    return float(np.concatenate([ink, paper]).mean())

  looks: list[Look] = []
  for home in range(len(NAMES)):
    if home == SOURCES[0]:
      looks.append(first)
      continue
    other = look(rng, strength)
    if home in SOURCES:
      looks.append(near(first, other, NEARNESS))
      continue
    while distance(other) < FAR * min(strength, 1.0):
      other = look(rng, strength)
    looks.append(other)
  return looks


def look(rng: np.random.Generator, strength: float) -> Look:
  """Draws how a hospital's slides look; `strength` 0 gives grey ones."""
  ink = 0.25 + strength * rng.uniform(-0.25, 0.25, 3)
  paper = 0.75 + strength * rng.uniform(-0.25, 0.25, 3)
  contrast, blur = rng.uniform(-1.0, 1.0), rng.uniform(0, 0.08)
  return Look(
    np.clip(ink, 0, 1),
    np.clip(paper, 0, 1),
    float(2 ** (strength * contrast)),
    float(strength * blur),
  )


def near(first: Look, other: Look, share: float) -> Look:
  """The look on the way from the first to the other, at a share of it."""

  def between(a, b):
    return a + share * (b - a)

  return Look(
    between(first.ink, other.ink),
    between(first.paper, other.paper),
    between(first.contrast, other.contrast),
    between(first.blur, other.blur),
  )


def render(image: np.ndarray, look: Look, shade: np.ndarray) -> np.ndarray:
  """Grey images in a look: blurred, stretched, coloured.

  Args:
    image: In [0, 1], [N, H, W].
    look: Of the hospital.
    shade: Of each image's slide, added to its colours, [N, 3].

  Returns:
    uint8 [N, H, W, 3].
  """
  from scipy import ndimage

  side = image.shape[1]
  if look.blur:
    image = ndimage.gaussian_filter(image, (0, *[look.blur * side] * 2))
  grey = np.clip((image - 0.5) * look.contrast + 0.5, 0, 1)[..., None]
  colours = grey * look.ink + (1 - grey) * look.paper + shade[:, None, None]
  return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _digits(name, data_dir):
  """(grey images in [0, 1] [N, H, W], digits [N]) of all splits of a set."""
  parts = [sources.load(name, x, data_dir=data_dir) for x in ('train', 'test')]
  first = parts[0]
  first.check_images()
  shape = first.image_shape
  if shape is None or shape[-1] != 1 or first.num_classes != 10:
    raise types.InputError(
      f'{name} has images {shape} of {first.num_classes} classes: hospitals '
      'are made of grey digits, --config.data.name=digits or mnist.'
    )
  columns = [x.columns() for x in parts]
  image = np.concatenate([x['image'] for x in columns])[..., 0] / 255
  return image.astype(np.float32), np.concatenate([x['label'] for x in columns])
