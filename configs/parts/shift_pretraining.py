"""Networks that have seen another set before the benchmark's, for its study.

Wiles et al. (ICLR 2022, sec. 4) pretrain on ImageNet. Here on `digits`, at the
size of the benchmark's images, each in one of seven colours: what they show has
nothing to do with shapes, and their colours tell nothing of their labels.
https://arxiv.org/abs/2110.11328
"""

import itertools
from typing import Any

import jax
import numpy as np

from configs.parts import shift_methods
from repjax import types
from repjax.benchmarks import shift_training
from repjax.data.images import colours
from repjax.data.images import transforms
from repjax.data.reading import source as sources
from repjax.methods import step as steps
from repjax.protocols import side_by_side

# Red, green, blue, and what two or all of them make.
_INKS = tuple(x for x in itertools.product((0.0, 1.0), repeat=3) if any(x))


def coloured_digits(size: int) -> sources.Source:
  """Training digits in colour, enlarged to the side `size` on black ground."""
  painted = colours.painted(sources.load('digits', 'train'), _INKS, seed=0)
  columns = painted.columns()
  image = columns['image']
  factor = size // image.shape[1]
  if factor < 1:
    raise types.InputError(
      f'digits have {image.shape[1]} pixels, and images {size}: pretraining '
      'does not shrink them.'
    )
  image = image.repeat(factor, 1).repeat(factor, 2)
  margin = size - image.shape[1]
  before, after = margin // 2, margin - margin // 2
  pad = ((0, 0), (before, after), (before, after), (0, 0))
  return sources.from_arrays(
    'coloured digits',
    {'image': np.pad(image, pad), 'label': columns['label']},
  )


def networks(
  config: Any,
  cells: shift_training.Cells,
  scale: transforms.Transform,
) -> types.PyTree:
  """Variables of a pretrained network for each cell, one a seed.

  Args:
    config: Of the study; with `network`, `tx`, min_steps and batch_size.
    cells: Of the benchmark; those of a seed share a network.
    scale: What images go through before they are seen.
  """
  digits = coloured_digits(cells.columns['image'].shape[1])
  rows = side_by_side.rows(digits, scale)
  config = config.copy_and_resolve_references()
  config.method = 'erm'
  method = shift_methods.make(
    config, num_labels=10, group_counts=(len(digits),), steps=config.min_steps
  )
  seeds = tuple(dict.fromkeys(cells.seeds))
  trained = side_by_side.train(
    'pretraining',
    method,
    {},
    rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=config.min_steps,
    points=1,
    shared=rows,
  )
  places = np.array([seeds.index(x) for x in cells.seeds])
  return jax.tree.map(lambda x: x[places], steps.variables(trained.states))
