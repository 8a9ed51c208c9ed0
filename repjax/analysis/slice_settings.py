"""Host side: settings in which it is known where a classifier fails.

Eyuboglu et al., 'Domino: Discovering Systematic Errors with Cross-Modal
Embeddings', ICLR 2022 (https://arxiv.org/abs/2203.14960), section 4: a method
that discovers slices is measured where there is one by construction. Three
kinds, over any labelled set whose rows have attributes,

    rare          a subclass is a small part of its class
    correlated    another attribute goes with the target, but for some rows
    noisy         labels of a subclass are wrong at some rate

with a model that was trained on such rows, or with `synthetic` predictions
that are worse on the slice. Counts are exact; rows are drawn without
replacement.
"""

from typing import NamedTuple

import numpy as np

from repjax import types


class Setting(NamedTuple):
  """Rows of a set, and what a model fails on.

  Attributes:
    rows: Which of the set they are, [n].
    labels: Their targets, 0 or 1, perhaps noisy, [n].
    slices: Whether they belong to each of S slices, bool [n, S].
  """

  rows: np.ndarray
  labels: np.ndarray
  slices: np.ndarray


def rare(
  target: np.ndarray,
  member: np.ndarray,
  *,
  strength: float,
  num_rows: int,
  seed: int | list[int],
) -> Setting:
  """Half of the rows are positive, few of these of a subclass: the slice.

  Args:
    target: Whether rows of the set are positive, [N].
    member: Whether they are of the subclass, [N]; none may be negative.
    strength: Part of the positive rows that are, in (0, 1); the paper has .01
      to .1.
    num_rows: n.
    seed: Of the draw.

  Raises:
    InputError: A subclass has negative rows or would have none, or the set has
      too few rows of a kind.
  """
  types.check_range('(0, 1)', strength=strength)
  target, member = _masks(target, member)
  if (member & ~target).any():
    raise types.InputError(
      f'{(member & ~target).sum()} rows of the subclass are not positive: a '
      'rare slice is a part of the positive class.'
    )
  positive = num_rows // 2
  few = round(strength * positive)
  types.check_range('[1, inf)', **{'rows of the rare slice': few})
  rng = np.random.default_rng(seed)
  rows = _drawn(
    rng,
    (
      ('rare', member, few),
      ('other positive', target & ~member, positive - few),
      ('negative', ~target, num_rows - positive),
    ),
  )
  return Setting(rows, target[rows].astype(np.int32), member[rows][:, None])


def correlated(
  target: np.ndarray,
  attribute: np.ndarray,
  *,
  strength: float,
  num_rows: int,
  seed: int | list[int],
) -> Setting:
  """An attribute goes with the target; two slices in which it does not.

  Half of the rows are positive and half have the attribute. The slices are
  the negative rows with it and the positive rows without it.

  Args:
    target: Whether rows of the set are positive, [N].
    attribute: Whether they have it, [N].
    strength: Pearson's correlation of both, in (0, 1); the paper has .2 to .8.
    num_rows: n.
    seed: Of the draw.

  Raises:
    InputError: The set has too few rows of a kind.
  """
  types.check_range('(0, 1)', strength=strength)
  if num_rows % 2:
    raise types.InputError(f'half of the rows are positive: {num_rows=} is odd')
  target, attribute = _masks(target, attribute)
  same = round((1 + strength) / 4 * num_rows)
  other = num_rows // 2 - same
  types.check_range('[1, inf)', **{'rows of each slice': other})
  rng = np.random.default_rng(seed)
  rows = _drawn(
    rng,
    (
      ('positive with the attribute', target & attribute, same),
      ('positive without it', target & ~attribute, other),
      ('negative with the attribute', ~target & attribute, other),
      ('negative without it', ~target & ~attribute, same),
    ),
  )
  target, attribute = target[rows], attribute[rows]
  slices = np.stack([~target & attribute, target & ~attribute], 1)
  return Setting(rows, target.astype(np.int32), slices)


def noisy(
  target: np.ndarray,
  member: np.ndarray,
  *,
  strength: float,
  num_rows: int,
  seed: int | list[int],
) -> Setting:
  """Labels of a subclass are wrong at some rate; the slice is all of it.

  Args:
    target: Whether rows of the set are positive, [N].
    member: Whether they are of the subclass, [N].
    strength: Part of its labels that are turned, in (0, 1); the paper has .01
      to .3.
    num_rows: n, half of them positive.
    seed: Of the draw.

  Raises:
    InputError: No row of the subclass is drawn, or none of its labels would be
      wrong, or the set has too few rows of a kind.
  """
  types.check_range('(0, 1)', strength=strength)
  target, member = _masks(target, member)
  rng = np.random.default_rng(seed)
  half = num_rows // 2
  rows = _drawn(
    rng,
    (('positive', target, half), ('negative', ~target, num_rows - half)),
  )
  inside = np.flatnonzero(member[rows])
  if not inside.size:
    raise types.InputError(
      f'none of the {num_rows} drawn rows is of the subclass: raise num_rows.'
    )
  wrong = round(strength * len(inside))
  types.check_range('[1, inf)', **{'wrong labels of the noisy slice': wrong})
  turned = rng.permutation(inside)[:wrong]
  labels = target[rows].astype(np.int32)
  labels[turned] = 1 - labels[turned]
  return Setting(rows, labels, member[rows][:, None])


def synthetic(
  setting: Setting,
  *,
  seed: int | list[int],
  inside: float = 0.4,
  outside: float = 0.8,
  sharpness: float = 10.0,
) -> np.ndarray:
  """Predictions of a model that is worse on the slices, [n, 2].

  A row is read rightly with a probability that is its sensitivity or
  specificity. The probability of the class that it is taken for is drawn from
  Beta(.8 sharpness, .2 sharpness), and so may be below one half.

  Args:
    setting: Its labels are what is predicted.
    seed: Of the draws.
    inside: Probability of rows of any slice.
    outside: Probability of other rows.
    sharpness: Sum of the numbers of the Beta distribution, > 0.
  """
  types.check_range('[0, 1]', inside=inside, outside=outside)
  types.check_range('(0, inf)', sharpness=sharpness)
  rng = np.random.default_rng(seed)
  right = rng.random(len(setting.labels)) < np.where(
    setting.slices.any(1), inside, outside
  )
  sure = rng.beta(0.8 * sharpness, 0.2 * sharpness, len(right))
  own = np.where(right, sure, 1 - sure)
  one = np.where(setting.labels == 1, own, 1 - own)
  return np.stack([1 - one, one], 1).astype(np.float32)


def _masks(*columns):
  columns = tuple(np.asarray(x) for x in columns)
  for column in columns:
    if column.dtype != bool or column.shape != columns[0].shape:
      raise types.InputError(
        'target and attribute are truth values of the same rows; got '
        f'{[f"{x.dtype} {x.shape}" for x in columns]}.'
      )
  return columns


def _drawn(rng, parts):
  """Rows of all parts, (what they are, who they are, how many), shuffled."""
  found = []
  for name, mask, count in parts:
    there = np.flatnonzero(mask)
    if len(there) < count:
      raise types.InputError(
        f'a setting needs {count} {name} rows, and the set has {len(there)}: '
        'lower num_rows.'
      )
    found.append(rng.permutation(there)[:count])
  return rng.permutation(np.concatenate(found))
