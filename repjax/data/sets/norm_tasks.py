"""Host side: tasks that convolutions learn from a few rows, and others do not.

Li, Zhang and Arora, 'Why Are Convolutional Nets More Sample-Efficient Than
Fully-Connected Nets?', ICLR 2021. https://arxiv.org/abs/2010.08515

Each has one distribution of inputs that a group leaves as it is, so that a
learner which the group commutes with cannot tell the task from any other one
that the group makes of it. Rows are vectors: 'features' [N, D].
"""

from collections.abc import Sequence

import numpy as np

from repjax.data.reading import source
from repjax.types import InputError
from repjax.types import check_range

Seed = int | Sequence[int]


def halves(num_rows: int, *, dim: int, seed: Seed) -> source.Source:
  """Which half of a Gaussian vector is longer (sec. 5).

  x ~ N(0, I_D); the label is 1 where the first D / 2 squares have the larger
  sum. Rotations leave x as it is: D^2 rows are needed by what commutes with
  them, and a number that does not depend on D by a convolution of squares.

  Args:
    num_rows: N.
    dim: D, even.
    seed: Of the rows.
  """
  _check(num_rows, dim, divisor=2)
  rows = _gaussian(num_rows, dim, seed)
  squares = np.square(rows).reshape(num_rows, 2, dim // 2).sum(-1)
  return _classes('halves', rows, squares[:, 0] > squares[:, 1])


def channels(num_rows: int, *, side: int, seed: Seed) -> source.Source:
  """Which of two colours of a Gaussian image is longer (figure 1).

  x ~ N(0, I) of 3 x side x side numbers, colour after colour; the label is 1
  where the first one has the larger norm than the second one.

  Args:
    num_rows: N.
    side: Of the images.
    seed: Of the rows.
  """
  check_range('[1, inf)', side=side)
  _check(num_rows, 3 * side**2, divisor=1)
  rows = _gaussian(num_rows, 3 * side**2, seed)
  squares = np.square(rows).reshape(num_rows, 3, -1).sum(-1)
  return _classes('channels', rows, squares[:, 0] > squares[:, 1])


def weighted_squares(
  num_rows: int, *, dim: int, seed: Seed, weights_seed: int
) -> source.Source:
  """A sum of squares with any weights (the regression of sec. 5).

  x ~ N(0, I_D), 'target' [N, 1] = sum_i alpha_i (x_i^2 - 1) / sqrt(2 D), with
  alpha_i = 1 or -1 at random, so that targets have mean 0 and variance 1.

  Args:
    num_rows: N.
    dim: D.
    seed: Of the rows.
    weights_seed: Of the weights, the same for training and test rows.
  """
  _check(num_rows, dim, divisor=1)
  rows = _gaussian(num_rows, dim, seed)
  signs = np.random.default_rng([weights_seed, dim]).choice((-1, 1), dim)
  target = (np.square(rows) - 1) @ signs / np.sqrt(2 * dim)
  return source.from_arrays(
    'weighted_squares',
    {'features': rows, 'target': target[:, None].astype(np.float32)},
  )


def texture(dim: int) -> source.Source:
  """Two pixels that are neighbours, or have one between them (sec. 6).

  Row i is e_i + e_(i+1), of class 0, row D + i is e_i + e_(i+2), of class 1, on
  a circle. All rows there are, 2 D: who takes away some positions for training
  has the others for a test. Permutations of pixels keep what a pair can be, so
  this is the task for what commutes with those alone, as Adam does.

  Args:
    dim: D, from 5 on, where both kinds of pairs differ.
  """
  check_range('[5, inf)', dim=dim)
  eye = np.eye(dim, dtype=np.float32)
  rows = np.concatenate([eye + np.roll(eye, step, 1) for step in (1, 2)])
  return _classes('texture', rows, np.repeat([False, True], dim))


def positions(
  dim: int, num_rows: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of `texture` for training, and those for a test.

  Args:
    dim: D.
    num_rows: Training rows, half of each class, even and below 2 D.
    seed: Decides which positions.

  Returns:
    (indices of training rows, indices of all others). A test row's position may
    be one of training, with the other class.
  """
  if num_rows % 2 or not 0 < num_rows < 2 * dim:
    raise InputError(
      f'num_rows must be even and in (0, {2 * dim}); got {num_rows}'
    )
  rng = np.random.default_rng([seed, dim])
  chosen = np.concatenate(
    [start + rng.permutation(dim)[: num_rows // 2] for start in (0, dim)]
  )
  return chosen, np.setdiff1d(np.arange(2 * dim), chosen)


def signed_axes(num_rows: int, *, dim: int, seed: Seed) -> source.Source:
  """An axis and its sign: x = y e_i, the label is 1 where y is (sec. 4.1).

  Args:
    num_rows: N.
    dim: D.
    seed: Of the rows.
  """
  _check(num_rows, dim, divisor=1)
  rng = np.random.default_rng(seed)
  labels = rng.integers(2, size=num_rows)
  rows = np.zeros((num_rows, dim), np.float32)
  rows[np.arange(num_rows), rng.integers(dim, size=num_rows)] = 2 * labels - 1
  return _classes('signed_axes', rows, labels)


def _check(num_rows: int, dim: int, *, divisor: int) -> None:
  check_range('[1, inf)', num_rows=num_rows)
  if dim < divisor or dim % divisor:
    raise InputError(f'dim must be a multiple of {divisor}; got {dim}')


def _gaussian(num_rows: int, dim: int, seed: Seed):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((num_rows, dim), np.float32)


def _classes(name, rows, labels):
  return source.from_arrays(
    name,
    {'features': rows, 'label': np.asarray(labels, np.int32)},
    num_classes=2,
  )
