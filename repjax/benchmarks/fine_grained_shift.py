"""Host side: which rows a training set has, by label and by another attribute.

Wiles, Gowal, Stimberg, Rebuffi, Ktena, Dvijotham and Cemgil, 'A Fine-Grained
Analysis on Distribution Shift', ICLR 2022 (https://arxiv.org/abs/2110.11328): a
shift is a table of attributes. The images of a label and a value of the
nuisance are the same in training and in the test; only how many there are of
each pair changes, and the test is uniform. A table is said in a few words,

    shift = [SpuriousCorrelation(num_rare=50), LabelNoise(0.3)]

and made by `shift_rows`. Sizes and rates are those of the authors' code
(https://github.com/google-deepmind/distribution_shift_framework); here parts
share no rows, and labels are noisy once for all (by default), not anew in each
step.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from repjax import types


class Part(NamedTuple):
  """Rows that are drawn with one probability.

  Attributes:
    name: For messages.
    cells: Whether a pair of label and value belongs to it, bool [C, A]; or how
      many rows of it, int [C, A].
    num_rows: How many, spread over the cells as evenly as can be; None for all
      that no other part takes. Left alone where `cells` has numbers.
    weight: Probability, relative to the other parts, that a row of a batch
      comes from here.
  """

  name: str
  cells: np.ndarray
  num_rows: int | None
  weight: float


class Draft(NamedTuple):
  """What conditions make of each other, one after the other.

  Attributes:
    parts: The common rows, and the rare ones where there are any.
    noise: Part of the labels that is drawn anew.
    redrawn: Whether they are drawn anew in every step.
  """

  parts: tuple[Part, ...]
  noise: float = 0.0
  redrawn: bool = False


# What a shift is composed of: draft -> draft.
Condition = Callable[[Draft], Draft]


# Shifts: they say which rows there are.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpuriousCorrelation:
  """The value tells the label, but for a few rows (SC).

  Label i comes with the value i. Where there are more values than labels,
  the others are rare, whatever the label.

  Attributes:
    num_rare: Rows of all pairs alike. The paper: 500 of dSprites, 50 of others.
    num_common: Rows of the pairs (i, i); None for all that there are.
    rare_weight: Part of the rows of a batch that are rare ones, on average.
  """

  num_rare: int
  num_common: int | None = None
  rare_weight: float = 0.5

  def __call__(self, draft: Draft) -> Draft:
    """A draft of two parts."""
    whole = _whole(draft)
    if whole.shape[0] > whole.shape[1]:
      raise types.InputError(
        f'{whole.shape[0]} labels cannot each come with one of '
        f'{whole.shape[1]} values: take another nuisance.'
      )
    pairs = np.eye(*whole.shape) > 0
    return _parted(
      draft, pairs, self.num_common, whole, self.num_rare, self.rare_weight
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowData:
  """Some values are rare, whatever the label (LDD).

  Attributes:
    num_rare: Rows of the other values; the paper goes from 1 to 10,000.
    share: The values 0, ..., int((A - 1) * share) are common. The authors' code
      has 0.7 for dSprites and 0.2 for others.
    num_common: Rows of the common values; None for all that there are.
    rare_weight: Part of the rows of a batch that are rare ones, on average: the
      authors draw them as often as the common ones.
  """

  num_rare: int
  share: float = 0.7
  num_common: int | None = None
  rare_weight: float = 0.5

  def __call__(self, draft: Draft) -> Draft:
    """A draft of two parts."""
    types.check_range('[0, 1)', share=self.share)
    whole = _whole(draft)
    common = np.zeros_like(whole)
    common[:, : int((whole.shape[1] - 1) * self.share) + 1] = True
    return _parted(
      draft, common, self.num_common, ~common, self.num_rare, self.rare_weight
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnseenData:
  """Some values are never seen (UDS): `LowData` without rare rows.

  Attributes:
    share: Decides which values are common, as that of `LowData` does.
    num_common: Rows of the common values; None for all that there are.
  """

  share: float = 0.7
  num_common: int | None = None

  def __call__(self, draft: Draft) -> Draft:
    """A draft of one part."""
    return LowData(num_rare=0, share=self.share, num_common=self.num_common)(
      draft
    )


@dataclasses.dataclass(frozen=True)
class Uniform:
  """All pairs alike: no shift.

  Attributes:
    num_common: Rows; None for all that there are.
  """

  num_common: int | None = None

  def __call__(self, draft: Draft) -> Draft:
    """A draft of one part."""
    _check_count('num_common', self.num_common)
    whole = _whole(draft)
    return draft._replace(parts=(Part('uniform', whole, self.num_common, 1.0),))


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Any table at all.

  Attributes:
    counts: Rows of each label and value, int [C, A]; or those of several parts,
      [P, C, A].
    weights: Probabilities of the parts, by default those of their rows.
  """

  counts: np.ndarray
  weights: Sequence[float] | None = None

  def __call__(self, draft: Draft) -> Draft:
    """A draft with a part for each table."""
    shape = _whole(draft).shape
    counts = np.asarray(self.counts)
    counts = counts[None] if counts.ndim == 2 else counts
    if (
      counts.shape[1:] != shape
      or not np.issubdtype(counts.dtype, np.integer)
      or counts.min() < 0
    ):
      raise types.InputError(
        f'A table has one count for each of {shape[0]} labels and {shape[1]} '
        f'values; got {counts.dtype} {counts.shape[1:]}.'
      )
    weights = self.weights
    if weights is None:
      weights = counts.sum((1, 2)).tolist()
    if len(weights) != len(counts):
      raise types.InputError(
        f'{len(counts)} tables need as many weights; got {weights}.'
      )
    return draft._replace(
      parts=tuple(
        Part(f'table {i}', table, None, float(weight))
        for i, (table, weight) in enumerate(zip(counts, weights, strict=True))
      )
    )


# Conditions that lie on top of a shift.


@dataclasses.dataclass(frozen=True)
class LabelNoise:
  """Some training labels are drawn anew, uniformly over all classes.

  Attributes:
    rate: Part of the rows, in [0, 1].
    fixed: Whether they are drawn once for all, or in every step, as in the
      authors' code.
  """

  rate: float
  fixed: bool = True

  def __call__(self, draft: Draft) -> Draft:
    """The draft with noise."""
    types.check_range('[0, 1]', **{'label noise': self.rate})
    return draft._replace(noise=self.rate, redrawn=not self.fixed)


@dataclasses.dataclass(frozen=True)
class FixedSize:
  """A training set of T rows, behind the shift that says of which cells.

  Attributes:
    total: T, all parts together. (The authors' code has T common rows, and the
      rare ones in addition.)
    rare_share: What part of them is rare, but at least one row; 0.1 % in the
      authors' code. Without a rare part all are common.
  """

  total: int
  rare_share: float = 0.001

  def __call__(self, draft: Draft) -> Draft:
    """The draft with numbers of rows."""
    _check_count('total', self.total, least=2)
    types.check_range('[0, 1]', rare_share=self.rare_share)
    common, *rest = draft.parts
    if common.name == 'all':
      raise types.InputError(
        'FixedSize says how many rows of a shift there are: name the shift '
        'first, such as [SpuriousCorrelation(...), FixedSize(...)].'
      )
    if any(x.cells.dtype != bool for x in draft.parts):
      raise types.InputError('A table has its size: leave out FixedSize.')
    if not rest:
      return draft._replace(parts=(common._replace(num_rows=self.total),))
    rare = max(1, round(self.rare_share * self.total))
    return draft._replace(
      parts=(
        common._replace(num_rows=self.total - rare),
        rest[0]._replace(num_rows=rare),
      )
    )


def _whole(draft):
  """All cells, of a draft that has no shift yet."""
  if draft.parts[0].name != 'all':
    raise types.InputError('One training set has one shift: compose no two.')
  return np.ones(draft.parts[0].cells.shape, bool)


def _parted(draft, common, num_common, rare, num_rare, rare_weight):
  types.check_range('[0, 1]', rare_weight=rare_weight)
  _check_count('num_rare', num_rare)
  _check_count('num_common', num_common)
  if not num_rare:
    return draft._replace(parts=(Part('common', common, num_common, 1.0),))
  return draft._replace(
    parts=(
      Part('common', common, num_common, 1 - rare_weight),
      Part('rare', rare, num_rare, rare_weight),
    )
  )


def _check_count(name, count, least=0):
  if count is None:
    return
  types.check_range(f'[{least}, inf)', **{name: count})
  if not isinstance(count, int | np.integer):
    raise types.InputError(f'{name} is a whole number of rows; got {count!r}.')
