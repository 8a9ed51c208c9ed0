"""Host side: Poisson-sampled batches of one shape, for private training.

Every row is in a step's batch with the same probability, independently of all
others: what the accounting of `repjax.privacy.accounting` assumes, and what
batches of a shuffled epoch are not. The number of rows is random, so batches
are filled up with row 0 and mask 0 to a fixed capacity.

Where more rows are drawn than a batch holds, a uniformly random part of them
is kept. That is paid for with a part of delta, and how unlikely it has to be
depends on delta, epsilon and the number of steps: `privacy.overflow.allowed`
goes into `capacity`, and `overflow_probability` into `accounting.epsilon`.

The generator (Philox) is not meant for cryptography: the guarantee is against
who does not know the seed and cannot guess it.
"""

import bisect
import dataclasses
from typing import Any

import numpy as np

from repjax import types
from repjax.data.batches import in_order
from repjax.data.reading import source as sources

_ROWS = 2  # Which random numbers; 0 and 1 are those of `batches`.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PoissonBatches(in_order.TrainBatches):
  """Poisson-sampled batches without end, see `poisson_batches`.

  Attributes:
    rate: Probability of each row to be in a batch.
  """

  rate: float

  @property
  def expected_batch_size(self) -> float:
    """Rows of a batch on average: the divisor of `optim.dp_sgd`."""
    return self.rate * len(self.source)

  @property
  def expected_rows(self) -> float:
    """Rows of a batch on average."""
    return self.expected_batch_size

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step, which counts from 0."""
    drawn = rows_at(step, len(self.source), self.rate, self.seed)
    drawn = drawn[: self.batch_size]
    rows = np.zeros(self.batch_size, np.int64)
    rows[: len(drawn)] = drawn
    mask = (np.arange(self.batch_size) < len(drawn)).astype(np.float32)
    return self._read(rows, mask, self._draws(step))


def poisson_batches(
  source: sources.Source,
  *,
  rate: float,
  capacity: int,
  seed: int,
  **reading: Any,
) -> PoissonBatches:
  """Batches in which each row is with probability `rate`, without end.

  Args:
    source: The rows.
    rate: In (0, 1]; expected batch size / rows of the set.
    capacity: Rows that a global batch can hold; see the function `capacity`.
    seed: >= 0. Decides the rows and all draws, together with the step.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Raises:
    InputError: If `rate` is out of range, or `capacity` does not divide over
      the processes or is below the mean.
  """
  if not 0 < rate <= 1:
    raise types.InputError(f'Need 0 < rate <= 1; got {rate=}')
  if capacity < rate * len(source):
    raise types.InputError(
      f'{capacity=} is below the mean batch of {rate * len(source):.1f} rows: '
      'use poisson.capacity(num_rows, rate).'
    )
  base = in_order.train_batches(
    source,
    batch_size=capacity,
    seed=seed,
    **reading,
  )
  return base.extended(PoissonBatches, rate=rate)


def rows_at(step: int, num_rows: int, rate: float, seed: int) -> np.ndarray:
  """Rows of one step's Poisson sample, in random order.

  The number of rows is binomial and, given it, all sets of that size are
  equally likely, which is the same as a coin for each row but costs only the
  rows that are drawn.
  """
  sequence = np.random.SeedSequence((seed, _ROWS, step))
  generator = np.random.Generator(np.random.Philox(sequence))
  count = generator.binomial(num_rows, rate)
  return generator.choice(num_rows, count, replace=False)


def overflow_probability(num_rows: int, rate: float, capacity: int) -> float:
  """Probability that a step draws more rows than `capacity`.

  For `num_rows` + 1 rows, so that it also holds for every neighbouring set.
  """
  from scipy import special  # Without its distributions: a second to import.

  others = num_rows + 1 - capacity
  if others <= 0:
    return 0.0
  # The tail of a binomial is a regularized incomplete beta function.
  return float(special.betainc(capacity + 1, others, rate))


def capacity(
  num_rows: int, rate: float, *, multiple: int = 1, tail: float = 1e-15
) -> int:
  """The smallest capacity that a step exceeds with probability <= `tail`.

  Args:
    num_rows: Rows of the set.
    rate: Probability of each to be drawn.
    multiple: What the capacity must be a multiple of: devices times
      microbatches.
    tail: Probability of an overflow in one step.
  """
  if not 0 < rate <= 1 or num_rows < 1 or multiple < 1 or not 0 < tail < 1:
    raise ValueError(
      'Need 0 < rate <= 1, num_rows >= 1, multiple >= 1 and 0 < tail < 1; got '
      f'{rate=}, {num_rows=}, {multiple=}, {tail=}'
    )

  def is_rare(size):
    return overflow_probability(num_rows, rate, size) <= tail

  # Not by an inverse, which is formed from 1 - tail: 1, for a small tail.
  least = bisect.bisect_left(range(num_rows + 1), True, key=is_rare)
  return -(-max(least, 1) // multiple) * multiple
