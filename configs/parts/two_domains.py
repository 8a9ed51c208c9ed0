"""A domain with labels, and another one without: rows, networks, teachers.

The base set has labels and classes to learn; the target set has others. All
images have one size, but for base sets whose images differ in size, which are
cropped whenever they are read.
"""

import numpy as np

from configs import presets
from repjax import types
from repjax.data.images import recipes
from repjax.data.images import transforms
from repjax.data.images.corruptions import applying
from repjax.data.reading import source as sources
from repjax.data.sets import glyphs
from repjax.data.sets import tasks
from repjax.models import conv_net
from repjax.models import resnet
from repjax.protocols import side_by_side

# The numbers of all that is said here.
DOMAINS: presets.Layer = dict(
  paper=dict(
    eval_batch_size=256,
    data=dict(
      # base_rows: of characters that are drawn; others are as many as there.
      **dict(base='imagenet2012', base_split='train', num_base=64, base_rows=0),
      name='eurosat/rgb',
      **dict(unlabelled_split='train[:20%]', target_split='train[20%:]'),
      # One of the common corruptions of the target, as of ImageNet-C, or ''.
      **dict(corruption='', severity=4),
      **dict(base_held_out=0.05, held_out=0.1, eval_splits=('val',)),
    ),
    augment=dict(
      **dict(size=224, flip=True, area=(0.08, 1.0)),
      **dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    network='resnet',
    resnet=dict(stage_sizes=(1, 1, 1, 1), block='basic'),
    conv_net=dict(channels=(16, 32, 64)),
  ),
  small=dict(
    eval_batch_size=360,
    data=dict(
      **dict(base='glyphs', base_split='', num_base=40, base_rows=2400),
      **dict(unlabelled_split='train', target_split='test'),
      **dict(corruption='gaussian_noise', base_held_out=0.15),
    ),
    augment=dict(size=8, flip=False, mean=(0.3,), std=(0.37,)),
    network='conv_net',
  ),
  omniglot=dict(
    on='small',
    data=dict(
      **dict(name='mnist', base='omniglot', base_split='small1'),
      **dict(unlabelled_split='train[:2000]', target_split='test[:1000]'),
    ),
    augment=dict(size=14),
  ),
  smoke=dict(
    data=dict(num_base=5, base_rows=200), conv_net=dict(channels=(4, 8))
  ),
)

# Splits: base rows to learn from and those held out; rows of the target
# without labels, likewise, and those that episodes are made of.
SPLITS = ('base', 'val', 'unlabelled', 'held_out', 'target')


def load(config, split: str) -> sources.Source:
  """Rows of one of `SPLITS`.

  Args:
    config: With seed, the groups `data` and `augment`, and `glyphs`.
    split: One of them.

  Raises:
    InputError: If the split is another one, or has no rows.
  """
  types.check_choice('split', split, SPLITS)
  data = config.data
  if split == 'target':
    return _of_target(config, data.target_split, 0)
  is_base = split in ('base', 'val')
  if is_base:
    rows, share = _base(config), data.base_held_out
  else:
    rows = _of_target(config, data.unlabelled_split, 1)
    share = data.held_out
  types.check_range(
    '[0, 1)', **{'config.data.' + 'base_' * is_base + 'held_out': share}
  )
  order = np.random.default_rng([config.seed, len(rows)]).permutation(len(rows))
  kept, held_out = np.split(order, [round(len(rows) * (1 - share))])
  return rows.select(kept if split in ('base', 'unlabelled') else held_out)


def _base(config):
  """All rows of the base classes, which the seed draws."""
  data = config.data
  types.check_range('[2, inf)', **{'config.data.num_base': data.num_base})
  if data.base == 'glyphs':
    types.check_range('[1, inf)', **{'config.data.base_rows': data.base_rows})
    return glyphs.draw(
      data.base_rows,
      num_classes=data.num_base,
      seed=config.seed,
      alphabet=config.seed,
      size=config.augment.size,
    )
  try:
    rows = sources.load(data.base, data.base_split, data_dir=data.dir)
  except types.InputError as error:
    raise types.InputError(
      f"config.data.base={data.base} is 'glyphs' or a set, of which "
      f'config.data.base_split={data.base_split} is read: {error}'
    ) from error
  if rows.image_shape is not None:  # Others are cropped when they are read.
    rows = _of_one_size(config, data.base, data.base_split)
  there = np.unique(rows.column('label'))
  if len(there) < data.num_base:
    raise types.InputError(
      f'config.data.num_base={data.num_base}, but {data.base} '
      f'{data.base_split} has rows of {len(there)} classes: ask for fewer.'
    )
  rng = np.random.default_rng([config.seed, len(there)])
  chosen = rng.permutation(there)[: data.num_base]
  return tasks.of_classes(rows, chosen, relabel=True)


def _of_one_size(config, name, split):
  rows = sources.load(name, split, data_dir=config.data.dir)
  rows.check_images()
  return tasks.resized(rows, config.augment.size, len(config.augment.mean))


def _of_target(config, split, seed):
  rows = _of_one_size(config, config.data.name, split)
  if not config.data.corruption:
    return rows
  return applying.corrupted(
    rows,
    config.data.corruption,
    severity=config.data.severity,
    scale='imagenet',
    seed=seed,
  )


def columns(config, split: str) -> dict[str, np.ndarray]:
  """All rows of a split as the network sees them, in memory."""
  rows = load(config, split)
  made = recipe(config, rows)
  return side_by_side.rows(
    rows,
    made.evaluate or transforms.compose(),
    decode=made.decode_evaluate,
  )


def recipe(config, rows: sources.Source) -> transforms.Recipe:
  """What rows of either set go through."""
  return recipes.images(rows, **config.augment)


def network(config):
  """The classifier of the base classes."""
  kinds = dict(conv_net=conv_net.ConvNet, resnet=resnet.ResNet)
  chosen = presets.choose('network', config.network, kinds)
  return chosen(num_classes=config.data.num_base, **config[config.network])
