"""Host side: Camelyon17, Waterbirds and iWildCam as WILDS publishes them.

Columns, splits and metadata are those of PyPI's `wilds` 2.0.0.
"""

import datetime

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import folders
from repjax.benchmarks.wilds import metrics
from repjax.benchmarks.wilds.grouper import Grouper

UNLABELLED_SPLITS = {
  'train_unlabeled': 10,
  'val_unlabeled': 11,
  'test_unlabeled': 12,
}
_VAL_CENTRE, _TEST_CENTRE = 1, 2

# Rows of Waterbirds' training groups, by which its average is weighted.
_WATERBIRDS = {
  'acc_y:landbird_background:land': 3498,
  'acc_y:landbird_background:water': 184,
  'acc_y:waterbird_background:land': 56,
  'acc_y:waterbird_background:water': 1057,
}


def camelyon17(
  root: str, *, unlabelled: bool = False, scheme: str = 'official'
) -> datasets.Dataset:
  """Tumours in 96 x 96 patches of lymph nodes, from five hospitals.

  Args:
    root: Folder of `camelyon17_v1.0` (or `camelyon17_unlabeled_v1.0`), with
      metadata.csv and patches/.
    unlabelled: Whether the rows without labels are read.
    scheme: 'official', or 'mixed-to-test': slide 23 of the test hospital is in
      training.
  """
  kinds = ('official',) if unlabelled else ('official', 'mixed-to-test')
  types.check_choice('scheme', scheme, kinds)
  name = 'camelyon17_unlabeled' if unlabelled else 'camelyon17'
  folder = folders.locate(
    f'{name}_v1.0', root, needs=('metadata.csv', 'patches')
  )
  path = folder / 'metadata.csv'
  columns = ('patient', 'node', 'x_coord', 'y_coord', 'tumor', 'center')
  own = () if unlabelled else ('split',)
  table = folders.read_table(path, (*columns, 'slide', *own))
  numbers = {
    x: folders.whole(table[x], what=f"'{x}' of {path}")
    for x in ('center', 'slide', 'tumor', *own)
  }
  centre = numbers['center']
  if unlabelled:
    ids = UNLABELLED_SPLITS
    split = np.full(len(centre), ids['train_unlabeled'])
    split[centre == _VAL_CENTRE] = ids['val_unlabeled']
    split[centre == _TEST_CENTRE] = ids['test_unlabeled']
  else:
    ids = {'train': 0, 'id_val': 1, 'test': 2, 'val': 3}
    split = numbers['split'].copy()
    split[centre == _VAL_CENTRE] = ids['val']
    split[centre == _TEST_CENTRE] = ids['test']
    if scheme == 'mixed-to-test':
      split[numbers['slide'] == 23] = ids['train']
  files = np.array(
    [
      f'patches/patient_{p}_node_{n}/patch_patient_{p}_node_{n}_x_{x}_y_{y}.png'
      for p, n, x, y in zip(*(table[c] for c in columns[:4]), strict=True)
    ],
    object,
  )
  # Tables of unlabelled rows have -1, and PyPI's `wilds` makes -100 of it.
  label = 100 * numbers['tumor'] if unlabelled else numbers['tumor']
  return datasets.make(
    name,
    split_ids=ids,
    split=split,
    label=label,
    num_classes=2,
    metadata=dict(hospital=centre, slide=numbers['slide'], y=label),
    names={},
    inputs=folders.image_files(name, folder, files, (96, 96, 3)),
    evaluate=None
    if unlabelled
    else datasets.by_fields(('slide',), metrics.ACCURACY),
    source_splits=(10,) if unlabelled else (0,),
  )


def waterbirds(root: str) -> datasets.Dataset:
  """Water and land birds before water and land (not a set of the benchmark).

  'adj_acc_avg' stands in the place of 'acc_avg': groups are weighted as they
  are in training, since validation and test are balanced.

  Args:
    root: Folder of `waterbirds_v1.0`, with metadata.csv and the images that it
      names.
  """
  folder = folders.locate('waterbirds_v1.0', root, needs=('metadata.csv',))
  path = folder / 'metadata.csv'
  table = folders.read_table(path, ('img_filename', 'y', 'split', 'place'))
  numbers = {
    x: folders.whole(table[x], what=f"'{x}' of {path}")
    for x in ('y', 'split', 'place')
  }

  def evaluate(metadata):
    return evaluation.reweighted(
      evaluation.by_groups(
        Grouper(metadata, ('background', 'y')), metrics.ACCURACY
      ),
      _WATERBIRDS,
      key='adj_acc_avg',
      over='acc_avg',
    )

  return datasets.make(
    'waterbirds',
    split_ids={'train': 0, 'val': 1, 'test': 2},
    split=numbers['split'],
    label=numbers['y'],
    num_classes=2,
    metadata=dict(background=numbers['place'], y=numbers['y']),
    names=dict(background=('land', 'water'), y=('landbird', 'waterbird')),
    inputs=folders.image_files(
      'waterbirds', folder, table['img_filename'], (None, None, 3)
    ),
    evaluate=evaluate,
    source_splits=(0,),
  )


def iwildcam(root: str, *, unlabelled: bool = False) -> datasets.Dataset:
  """Animals before camera traps at many places.

  Args:
    root: Folder of `iwildcam_v2.0` (or `iwildcam_unlabeled_v1.0`), with
      metadata.csv and train/ (or images/).
    unlabelled: Whether the rows without labels are read.
  """
  name = 'iwildcam_unlabeled' if unlabelled else 'iwildcam'
  images = 'images' if unlabelled else 'train'
  folder = folders.locate(
    f'{name}_v{"1.0" if unlabelled else "2.0"}',
    root,
    needs=('metadata.csv', images),
  )
  path = folder / 'metadata.csv'
  own = ('uid',) if unlabelled else ('split', 'filename')
  table = folders.read_table(
    path, ('location_remapped', 'sequence_remapped', 'datetime', 'y', *own)
  )
  place, sequence, label = (
    folders.whole(table[x], what=f"'{x}' of {path}")
    for x in ('location_remapped', 'sequence_remapped', 'y')
  )
  if unlabelled:
    ids = {'extra_unlabeled': 0}
    split = np.zeros(len(label), np.int64)
    files = np.array([f'{x}.jpg' for x in table['uid']], object)
    # Species that the labelled rows lack, and those that nobody knows.
    label = np.where((label == -1) | (label == 99999), -100, label)
    num_classes = None if label.max() < 0 else int(label.max()) + 1
  else:
    ids = {'train': 0, 'val': 1, 'test': 2, 'id_val': 3, 'id_test': 4}
    split = folders.codes(table['split'], tuple(ids), what=f'split of {path}')
    files = table['filename']
    num_classes = int(label.max()) + 1
  times = dict(
    zip(
      ('year', 'month', 'day', 'hour', 'minute', 'second'),
      _times(table['datetime'], path).T,
      strict=True,
    )
  )
  return datasets.make(
    name,
    split_ids=ids,
    split=split,
    label=label,
    num_classes=num_classes or 1,
    metadata=dict(location=place, sequence=sequence, **times, y=label),
    names={},
    inputs=folders.image_files(name, folder / images, files, (None, None, 3)),
    evaluate=None
    if unlabelled
    else lambda _: evaluation.overall(
      metrics.ACCURACY, metrics.RECALL, metrics.F1
    ),
    source_splits=(10,) if unlabelled else (0,),
  )


def _times(texts, path):
  """Year, month, day, hour, minute and second, [N, 6]; -1 where unknown."""
  found = np.full((len(texts), 6), -1, np.int64)
  for row, text in enumerate(texts):
    if not text:
      continue
    try:
      time = datetime.datetime.strptime(text, '%Y-%m-%d %H:%M:%S.%f')
    except ValueError as error:
      raise types.InputError(
        f"'datetime' of {path} in row {row}: {error}."
      ) from None
    found[row] = time.timetuple()[:6]
  return found
