"""Host side: batches of domains, as functions of (seed, step).

What PyPI's `wilds` draws with its loaders (`common/data_loaders.py`): groups
all alike, or several groups a batch. Its draws come from global generators
whose state nothing saves; here a resumed run goes on with the batches that it
would have seen, as with all batches of `repjax.data.batches`. Shuffled epochs
are `in_order.train_batches`, evaluation is `in_order.eval_batches`.
"""

from collections.abc import Iterator
import dataclasses
import sys
from typing import Any

import numpy as np

from repjax import types
from repjax.data.batches import in_order
from repjax.data.reading import source as sources

# Which random numbers; 0 to 3 are those of `batches`, `poisson` and `users`.
_UNIFORM, _GROUPS = 4, 5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UniformBatches(in_order.TrainBatches):
  """Batches that draw all groups alike, see `uniform_batches`.

  Attributes:
    groups: Rows by group, of those that have any.
  """

  groups: tuple[np.ndarray, ...]

  def rows_at(self, step: int) -> np.ndarray:
    """Rows of the global batch of one step, [B]."""
    rng = _generator(self.seed, _UNIFORM, step)
    which = rng.integers(len(self.groups), size=self.batch_size)
    place = rng.random(self.batch_size)
    sizes = np.array([len(x) for x in self.groups])[which]
    place = np.minimum((place * sizes).astype(np.int64), sizes - 1)
    return np.array(
      [self.groups[g][i] for g, i in zip(which, place, strict=True)]
    )

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0."""
    mask = np.ones(self.batch_size, np.float32)
    return self._read(self.rows_at(step), mask, self._draws(step))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupBatches(in_order.TrainBatches):
  """Batches of some groups each, see `group_batches`.

  Attributes:
    groups: Rows by group, of those that have any.
    groups_per_batch: Groups of a batch.
    uniform: Whether all groups are drawn alike, or by their rows.
    distinct: Whether the groups of a batch differ.
  """

  groups: tuple[np.ndarray, ...]
  groups_per_batch: int
  uniform: bool
  distinct: bool

  def rows_at(self, step: int) -> np.ndarray:
    """Rows of the global batch of one step, [B], group by group."""
    rng = _generator(self.seed, _GROUPS, step)
    sizes = np.array([len(x) for x in self.groups])
    drawn = rng.choice(
      len(self.groups),
      size=self.groups_per_batch,
      replace=not self.distinct,
      p=None if self.uniform else sizes / sizes.sum(),
    )
    each = self.batch_size // self.groups_per_batch
    # As there: a group that has exactly as many rows as are drawn repeats some.
    return np.concatenate(
      [
        rng.choice(self.groups[g], each, replace=len(self.groups[g]) <= each)
        for g in drawn
      ]
    )

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0; its rows are mixed.

    Rows of a group do not stand side by side, so that each device gets some of
    every group.
    """
    rows = self.rows_at(step).reshape(self.groups_per_batch, -1).T.reshape(-1)
    mask = np.ones(self.batch_size, np.float32)
    return self._read(rows, mask, self._draws(step))


def uniform_batches(
  source: sources.Source, *, batch_size: int, seed: int, **reading: Any
) -> UniformBatches:
  """Rows with replacement, each group with the same probability, without end.

  A row's probability is 1 / (groups * rows of its group): the loader 'standard'
  with uniform_over_groups.

  Args:
    source: With a column 'group' (`Subset.source(grouper)`).
    batch_size: Rows of a global batch.
    seed: >= 0. Decides rows and all draws, together with the step.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Raises:
    InputError: There is no such column, or `batch_size` does not divide.
  """
  base = in_order.train_batches(
    source, batch_size=batch_size, seed=seed, **reading
  )
  return base.extended(UniformBatches, groups=_by_group(source))


def group_batches(
  source: sources.Source,
  *,
  batch_size: int,
  groups_per_batch: int,
  seed: int,
  uniform: bool = True,
  distinct: bool = True,
  **reading: Any,
) -> GroupBatches:
  """Some groups, and equally many rows of each, without end: loader 'group'.

  Rows of a group are drawn without replacement where it has more than are
  drawn. (There, an epoch is floor(rows / batch) batches; here batches have no
  end, and a run's length is its number of steps.)

  Args:
    source: With a column 'group' (`Subset.source(grouper)`).
    batch_size: Rows of a global batch.
    groups_per_batch: Groups of a batch; divides `batch_size`.
    seed: >= 0. Decides groups, rows and all draws, together with the step.
    uniform: Whether all groups are drawn alike, or by their rows.
    distinct: Whether the groups of a batch differ.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Raises:
    InputError: The batch cannot be divided, or there are fewer groups with rows
      than a batch needs.
  """
  types.check_range('[1, inf)', groups_per_batch=groups_per_batch)
  if batch_size % groups_per_batch:
    raise types.InputError(
      f'config.batch_size={batch_size} must be a multiple of '
      f'groups_per_batch={groups_per_batch}.'
    )
  groups = _by_group(source)
  if distinct and groups_per_batch > len(groups):
    raise types.InputError(
      f'groups_per_batch={groups_per_batch}, but {source.name} {source.split} '
      f'has rows of {len(groups)} groups: lower it, or group by other fields.'
    )
  base = in_order.train_batches(
    source, batch_size=batch_size, seed=seed, **reading
  )
  return base.extended(
    GroupBatches,
    groups=groups,
    groups_per_batch=groups_per_batch,
    uniform=uniform,
    distinct=distinct,
  )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JointBatches:
  """Labelled and unlabelled rows in one batch, see `joint`.

  Attributes:
    labelled: Batches of rows with labels.
    unlabelled: Batches of rows without.
  """

  labelled: in_order.TrainBatches
  unlabelled: in_order.TrainBatches

  @property
  def expected_rows(self) -> float:
    """Rows of a global batch, with and without labels."""
    return self.labelled.expected_rows + self.unlabelled.expected_rows

  def fingerprint(self) -> str:
    """Tells pairs of sets apart by their rows."""
    return f'{self.labelled.fingerprint()}-{self.unlabelled.fingerprint()}'

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0.

    Rows of both kinds are spread evenly, so that each device gets its share.
    """
    parts = (self.labelled.batch(step), self.unlabelled.batch(step))
    names = sorted(set(parts[0]) & set(parts[1]))
    left = (set(parts[0]) ^ set(parts[1])) & {'strong', 'strong_2', 'image'}
    if left:
      raise types.InputError(
        f'Labelled and unlabelled rows differ in {sorted(left)}: give both '
        'the same kind of transform.'
      )
    sizes = [len(x['mask']) for x in parts]
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
    order = np.argsort(place, kind='stable')
    batch = {
      name: np.concatenate([x[name] for x in parts])[order] for name in names
    }
    has = np.repeat(np.array([1, 0], np.float32), sizes)[order]
    return {**batch, 'labelled': has}

  def iterate(self, start_step: int = 0) -> Iterator[in_order.Batch]:
    """batch(start_step), batch(start_step + 1), ..., read ahead, endless."""
    return self.labelled._stream(self.batch, start_step, sys.maxsize)


def joint(
  labelled: in_order.TrainBatches, unlabelled: in_order.TrainBatches
) -> JointBatches:
  """Batches that hold rows of two kinds, told apart by 'labelled' (1 or 0).

  A step of U-WILDS: so many rows with labels and so many without. 'label' of
  the latter is -1 and never read; 'index' counts inside of each kind.

  Args:
    labelled: Of rows with labels, of any kind.
    unlabelled: Of rows without, of the same columns; any batch size.
  """
  return JointBatches(labelled=labelled, unlabelled=unlabelled)


def _by_group(source):
  """Rows of each group that has any, by their numbers."""
  group = source.column('group')
  order = np.argsort(group, kind='stable')
  starts = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
  return tuple(np.split(order, starts[1:]))


def _generator(seed, purpose, step):
  sequence = np.random.SeedSequence((seed, purpose, step))
  return np.random.Generator(np.random.Philox(sequence))
