"""Host side: labels that are wrong on purpose."""

from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source as sources


class Noisy(NamedTuple):
  """Labels with noise.

  Attributes:
    labels: int32 [n].
    is_noisy: Whether the label of a row was drawn, bool [n]. Under
      among='all', a drawn label may be the right one.
  """

  labels: np.ndarray
  is_noisy: np.ndarray


def symmetric(
  labels: np.ndarray,
  rate: float,
  num_classes: int,
  seed: int,
  *,
  among: Literal['all', 'others'] = 'all',
) -> Noisy:
  """Draws the labels of round(rate * n) rows anew, uniformly over classes.

  The SAM paper (Foret et al., 2021, sec. 3.3,
  https://arxiv.org/abs/2010.01412) says only that labels are 'randomly
  flipped'. The papers that it compares with in table 4 draw among all classes,
  the right one included, which is the default here.

  Args:
    labels: Right labels, integers in [0, num_classes), [n].
    rate: Part of the rows, in [0, 1].
    num_classes: Number of classes.
    seed: Decides rows and labels.
    among: 'all' classes, or the 'others' than the right one. With 'all', a
      part rate / num_classes of the rows keeps its label by chance.
  """
  if not 0 <= rate <= 1 or among not in ('all', 'others'):
    raise ValueError(
      f"rate must be in [0, 1], among 'all' or 'others', got {rate=} {among=}"
    )
  if among == 'others' and num_classes < 2:
    raise ValueError(f'one class has no others, got {num_classes=}')
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(labels))[: round(rate * len(labels))]
  noisy = np.array(labels, np.int32)
  if among == 'all':
    noisy[rows] = rng.integers(num_classes, size=len(rows))
  else:
    shift = rng.integers(1, num_classes, size=len(rows))
    noisy[rows] = (noisy[rows] + shift) % num_classes
  is_noisy = np.zeros(len(labels), bool)
  is_noisy[rows] = True
  return Noisy(noisy, is_noisy)


def with_label_noise(
  source: sources.Source,
  rate: float,
  seed: int,
  *,
  among: Literal['all', 'others'] = 'all',
) -> sources.Source:
  """The source with noise in 'label'; 'clean_label' holds the right ones.

  Raises:
    InputError: If the source has no class labels.
  """
  if source.num_classes is None:
    raise types.InputError(f'{source.name} has no class labels to make noisy.')
  clean = source.column('label')
  noisy = symmetric(clean, rate, source.num_classes, seed, among=among)
  return source.with_columns(label=noisy.labels, clean_label=clean)
