"""Host side: Poisson-sampled users and their rows, for privacy of users.

Where one person has many rows, hiding a row does not hide the person. Here
users are sampled, each with the same probability and independently of all
others, and of each user up to U rows, without replacement. A user's rows stand
side by side, so that `optim.dp_sgd(rows_per_user=U)` can clip their mean
gradient as one vector: a user then moves the sum by at most the clip norm, as a
row does elsewhere, and `privacy.accounting` holds with users in place of rows
(McMahan et al., 'Learning Differentially Private Recurrent Language Models',
ICLR 2018, https://arxiv.org/abs/1710.06963).
"""

import dataclasses
from typing import Any

import numpy as np

from repjax import types
from repjax.data.batches import in_order
from repjax.data.batches import poisson
from repjax.data.reading import source as sources

# What `privacy.statements.statement` says of whose privacy it is.
UNIT = 'all rows of one user'

_PICKS = 3  # Which random numbers; 0 to 2 are those of `batches`, `poisson`.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UserBatches(in_order.TrainBatches):
  """Batches of Poisson-sampled users without end, see `user_batches`.

  Attributes:
    rate: Probability of each user to be in a batch.
    rows_per_user: U, slots of each user in a batch.
    rows: Row numbers, sorted by user.
    starts: Where each user's rows begin in `rows`, and their end, [users + 1].
  """

  rate: float
  rows_per_user: int
  rows: np.ndarray
  starts: np.ndarray

  @property
  def num_users(self) -> int:
    """Users of the set."""
    return len(self.starts) - 1

  @property
  def expected_batch_size(self) -> float:
    """Users of a batch on average: the divisor of `optim.dp_sgd`."""
    return self.rate * self.num_users

  @property
  def expected_rows(self) -> float:
    """Rows of a batch on average."""
    taken = np.minimum(np.diff(self.starts), self.rows_per_user)
    return self.rate * float(taken.sum())

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0."""
    slots = self.rows_per_user
    drawn = poisson.rows_at(step, self.num_users, self.rate, self.seed)
    drawn = drawn[: self.batch_size // slots]
    rows = np.zeros((self.batch_size // slots, slots), np.int64)
    mask = np.zeros(rows.shape, np.float32)
    user = np.full(rows.shape, -1, np.int32)
    sequence = np.random.SeedSequence((self.seed, _PICKS, step))
    generator = np.random.Generator(np.random.Philox(sequence))
    for i, number in enumerate(drawn):
      own = self.rows[self.starts[number] : self.starts[number + 1]]
      if len(own) > slots:
        own = generator.choice(own, slots, replace=False)
      rows[i, : len(own)], mask[i, : len(own)], user[i] = own, 1, number
    batch = self._read(rows.reshape(-1), mask.reshape(-1), self._draws(step))
    size = self.batch_size // self.process_count
    part = slice(self.process_index * size, (self.process_index + 1) * size)
    batch.pop('user', None)
    if slots == 1:  # Then a user is a row, and nothing needs to know.
      return batch
    return {**batch, 'user': user.reshape(-1)[part]}


def user_batches(
  source: sources.Source,
  users: np.ndarray,
  *,
  rate: float,
  rows_per_user: int,
  capacity: int,
  seed: int,
  **reading: Any,
) -> UserBatches:
  """Batches in which each user is with probability `rate`, without end.

  A batch has capacity * rows_per_user rows and, besides what all batches have,
  'user' (int32, [B]) where rows_per_user > 1: numbers of users in the order of
  their sorted ids, -1 for padding. A user with fewer rows than slots fills them
  up with padding.

  Args:
    source: The rows.
    users: The user of each row, [rows of the source]: integers or text, for
      example `Source.column('user')`.
    rate: In (0, 1]; expected users of a batch / users of the set.
    rows_per_user: U >= 1; of more rows, U are chosen at random in each step.
    capacity: Users that a global batch can hold: `poisson.capacity(number of
      users, rate)`.
    seed: >= 0. Decides users, rows and all draws, together with the step.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Raises:
    InputError: If an argument is out of range, `users` does not have one entry
      a row, or `capacity` does not divide over the processes or is below the
      mean.
  """
  if not 0 < rate <= 1:
    raise types.InputError(f'Need 0 < rate <= 1; got {rate=}')
  if rows_per_user < 1:
    raise types.InputError(f'Need rows_per_user >= 1; got {rows_per_user=}')
  users = np.asarray(users)
  if users.shape != (len(source),):
    raise types.InputError(
      f'users has one entry a row, [{len(source)}]; got shape {users.shape}'
    )
  ids, counts = np.unique(users, return_counts=True)
  if capacity < rate * len(ids):
    raise types.InputError(
      f'{capacity=} is below the mean batch of {rate * len(ids):.1f} users: '
      'use poisson.capacity(num_users, rate).'
    )
  base = in_order.train_batches(
    source,
    batch_size=capacity * rows_per_user,
    seed=seed,
    **reading,
  )
  if capacity % base.process_count:
    raise types.InputError(
      f'{capacity=} users must be a multiple of the {base.process_count} '
      'processes, so that none sees a part of a user: use poisson.capacity('
      'num_users, rate, multiple=devices).'
    )
  return base.extended(
    UserBatches,
    rate=rate,
    rows_per_user=rows_per_user,
    rows=np.argsort(users, kind='stable'),
    starts=np.concatenate([[0], np.cumsum(counts)]),
  )


def check_named(users_of_rows: np.ndarray, column: str) -> None:
  """Raises InputError for rows without a user, who would be one user together.

  Args:
    users_of_rows: One a row.
    column: What they are called.
  """
  if users_of_rows.dtype.kind not in 'OSU':
    return
  empty = sum(not x.strip() for x in users_of_rows)
  if empty:
    raise types.InputError(
      f'The column {column!r} is empty in {empty} row(s), which would be '
      'protected as one user: say whose they are, or leave them out.'
    )
