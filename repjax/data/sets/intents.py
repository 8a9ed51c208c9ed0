"""Host side: a few intents of `clinc_oos`, each with a few rows.

What a user wants from an assistant, in 150 classes of 100 training texts
(Larson et al., 2019, https://aclanthology.org/D19-1131). A few classes with a
few rows each are too little to learn a language from, so that whoever tells
them apart has learned it elsewhere.
"""

import dataclasses

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

NAME = 'clinc_oos'
NUM_CLASSES = 150


def load(
  split: str,
  *,
  num_classes: int,
  rows_per_class: int,
  data_dir: str = '',
  seed: int = 0,
) -> sources.Source:
  """Rows of some intents, in the order of the set.

  Args:
    split: 'train', 'validation' or 'test', with 100, 20 and 30 rows an intent.
    num_classes: Number of intents, drawn by `seed`, the same in all splits.
    rows_per_class: The first rows of each; 0 is all of them.
    data_dir: Folder of prepared sets; see `source.load`.
    seed: Decides which intents.

  Returns:
    A source with 'text', and 'label' in [0, num_classes).

  Raises:
    InputError: There are not as many intents, or rows of one.
  """
  types.check_range(f'[2, {NUM_CLASSES}]', num_classes=num_classes)
  read = sources.load(NAME, split, data_dir=data_dir)
  intents = read.column('intent')
  drawn = np.random.default_rng(seed).permutation(NUM_CLASSES)[:num_classes]
  rows = [np.flatnonzero(intents == x) for x in drawn]
  fewest = min(map(len, rows))
  if not 0 <= rows_per_class <= fewest or not fewest:
    raise types.InputError(
      f'rows_per_class={rows_per_class}: {NAME} {split} has {fewest} rows of '
      'an intent; 0 is all of them.'
    )
  place = np.sort(np.concatenate([x[: rows_per_class or None] for x in rows]))
  label_of = np.zeros(NUM_CLASSES, np.int32)
  label_of[drawn] = np.arange(num_classes)
  chosen = read.select(place).with_columns(label=label_of[intents[place]])
  return dataclasses.replace(chosen, num_classes=num_classes)
