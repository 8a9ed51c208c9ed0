"""Host side: sets of candidate labels, of which one is right.

The column 'candidates' of a row says which classes may be its label, bool [C].
Sets are drawn once, before training, as in Lv et al., 'Progressive
Identification of True Labels for Partial-Label Learning', ICML 2020
(https://arxiv.org/abs/2002.08053), and the papers that follow it.
"""

from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.reading import source as sources

COLUMN = 'candidates'


def uniform(num_classes: int, rate: float) -> np.ndarray:
  """Rates at which any class is a candidate beside any other, [C, C].

  Args:
    num_classes: C.
    rate: q of the papers, in [0, 1): a set has 1 + q (C - 1) labels on average.
  """
  return by_distance(num_classes, [rate] * (num_classes - 1))


def by_distance(num_classes: int, rates: Sequence[float]) -> np.ndarray:
  """Rates that depend on the class, [C, C]: those after it, round and round.

  A label's successors are taken for it more often than others.

  Args:
    num_classes: C.
    rates: Of the first successor, the second, ..., at most C - 1 numbers in
      [0, 1); 0 for those that are left out.

  Raises:
    InputError: If there are too many of them, or one is out of range.
  """
  types.check_range('[2, inf)', num_classes=num_classes)
  if len(rates) >= num_classes:
    raise types.InputError(
      f'A class has {num_classes - 1} others; got {len(rates)} rates.'
    )
  for rate in rates:
    types.check_range('[0, 1)', rate=rate)
  first = np.zeros(num_classes)
  first[0], first[1 : len(rates) + 1] = 1, rates
  return np.stack([np.roll(first, c) for c in range(num_classes)])


def within(groups: Sequence[int], rate: float) -> np.ndarray:
  """Rates that are `rate` within a group of classes and 0 beyond it, [C, C].

  PiCO's hierarchical sets (Wang et al., ICLR 2022,
  https://arxiv.org/abs/2201.08984), whose groups are the coarse labels of
  CIFAR-100.

  Args:
    groups: The group of each class, [C].
    rate: In [0, 1).
  """
  group = np.asarray(groups)
  same = group[:, None] == group[None]
  return np.where(same, uniform(len(group), rate), 0)


def of_instances(
  label: np.ndarray, probabilities: np.ndarray, rate: float | None = None
) -> np.ndarray:
  """Rates that depend on the row, [N, C]: what a classifier takes it for.

  Xu et al., 'Instance-Dependent Partial Label Learning', NeurIPS 2021
  (https://arxiv.org/abs/2110.12911): a class's probability over that of the
  likeliest wrong one.

  Args:
    label: Right labels, [N].
    probabilities: Of a classifier that was trained on them, [N, C].
    rate: What a row's rates are scaled to on average over all C classes, and
      then cut at 1, as the authors' code does (0.4 there); None leaves them as
      they are.

  Raises:
    InputError: If shapes differ, or what should be probabilities is none.
  """
  label, rates = np.asarray(label), np.array(probabilities, np.float64)
  if rates.shape[:-1] != label.shape or rates.ndim != 2:
    raise types.InputError(
      f'Probabilities are [{len(label)}, classes]; got {rates.shape}.'
    )
  if not (np.isfinite(rates).all() and (rates >= 0).all()):
    raise types.InputError('Probabilities are finite and >= 0.')
  rows = np.arange(len(label))
  rates[rows, label] = 0
  most = rates.max(-1, keepdims=True)
  rates = rates / np.where(most > 0, most, 1)
  if rate is not None:
    types.check_range('[0, 1]', rate=rate)
    mean = rates.mean(-1, keepdims=True)
    rates = np.minimum(rates / np.where(mean > 0, mean, 1) * rate, 1)
  rates[rows, label] = 1
  return rates


def draw(
  label: np.ndarray, rates: np.ndarray, *, seed: int, noise: float = 0.0
) -> np.ndarray:
  """Draws each class of each row on its own.

  Args:
    label: Right labels, integers in [0, C), [N].
    rates: Of each row, [N, C]; `table[label]` of a table of classes. What
      stands at the right label does not matter.
    seed: Of the draws.
    noise: Probability that the right label is missing, in [0, 1), as in the
      authors' code of PiCO+. Sets that come out empty are drawn again, whole,
      so that fewer labels than that are missing in the end: where few others
      are candidates, far fewer.

  Returns:
    bool [N, C].

  Raises:
    InputError: If `noise` or a rate is out of range, labels are no classes of
      the rates, or the set of a row stays empty.
  """
  types.check_range('[0, 1)', noise=noise)
  label, rates = np.asarray(label), np.array(rates, np.float64)
  if rates.ndim != 2 or rates.shape[:1] != label.shape:
    raise types.InputError(
      f'Rates are one a class of {len(label)} rows; got {rates.shape}.'
    )
  _check_label(label, rates.shape[1])
  rates[np.arange(len(label)), label] = 1 - noise
  if not ((rates >= 0) & (rates <= 1)).all():
    raise types.InputError('Rates are probabilities, numbers in [0, 1].')
  rng = np.random.default_rng([seed, len(label)])
  found = rng.random(rates.shape) < rates
  for _ in range(1000):
    empty = np.flatnonzero(~found.any(1))
    if not empty.size:
      return found
    found[empty] = rng.random((len(empty), rates.shape[1])) < rates[empty]
  raise types.InputError(
    f'{noise=} leaves sets without any label: lower it, or raise the rates.'
  )


def check(candidates: np.ndarray, label: np.ndarray | None = None) -> None:
  """Refuses sets that nothing can be learned from.

  Args:
    candidates: 1 for a candidate, [N, C].
    label: Right labels that each set must have, [N]; None where they are not
      known, or sets are noisy.

  Raises:
    InputError: If what is given is no sets, or a set is empty or lacks its
      label; names the row.
  """
  candidates = np.asarray(candidates)
  if candidates.ndim != 2 or not np.isin(candidates, (0, 1)).all():
    raise types.InputError(
      'Candidates are 0 or 1 for each row and class, [N, C]; got '
      f'{candidates.dtype} {candidates.shape}.'
    )
  full = (candidates > 0).sum(1) > 0
  if not full.all():
    raise types.InputError(
      f'Row {full.argmin()} has no candidate label ({np.sum(~full)} of '
      f'{len(full)} rows have none): leave such rows out.'
    )
  if label is None:
    return
  label = np.asarray(label)
  if label.shape != full.shape:
    raise types.InputError(
      f'Labels are one a set, [{len(full)}]; got {label.shape}.'
    )
  _check_label(label, candidates.shape[1])
  has = candidates[np.arange(len(label)), label] > 0
  if not has.all():
    raise types.InputError(
      f'The candidates of row {has.argmin()} do not have its label '
      f'{label[has.argmin()]} (so {np.sum(~has)} of {len(has)} rows): mend '
      'them, or say that they are noisy.'
    )


def attached(
  source: sources.Source, candidates: np.ndarray, *, noisy: bool = False
) -> sources.Source:
  """The source with a column 'candidates'.

  Args:
    source: N rows; its column 'label' is what sets are checked against.
    candidates: [N, C].
    noisy: Whether sets may lack their label.

  Raises:
    InputError: As `check` does, or if there are not C classes.
  """
  check(candidates, None if noisy else source.column('label'))
  if source.num_classes not in (None, candidates.shape[1]):
    raise types.InputError(
      f'{source.name} has {source.num_classes} classes, and the sets '
      f'{candidates.shape[1]}.'
    )
  return source.with_columns(**{COLUMN: np.asarray(candidates).astype(bool)})


def _check_label(label, num_classes):
  if label.size and not (label.min() >= 0 and label.max() < num_classes):
    raise types.InputError(
      f'Labels must be in [0, {num_classes}), the classes of the sets; got '
      f'{label.min()} to {label.max()}.'
    )
