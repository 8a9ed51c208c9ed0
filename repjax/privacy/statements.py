"""Host side: what a private run may claim, with all that the claim rests on."""

import dataclasses
import importlib.metadata
from typing import Any

from repjax.privacy import accounting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
  """What a run may claim, with all that the claim rests on.

  Attributes:
    epsilon: Of (epsilon, delta)-differential privacy.
    delta: Of (epsilon, delta)-differential privacy.
    neighbours: The relation between data sets that the claim is about.
    unit: Whose privacy it is.
    sampling: How batches were drawn.
    sampling_rate: Probability of a row to be in a batch.
    noise_multiplier: Of the whole step, as given to `optim.dp_sgd`.
    steps: Number of updates.
    overflow: Probability that a batch held more rows than its capacity.
    accountant: 'pld' or 'rdp'.
    software: What computed epsilon; the report has the version of repjax.
    not_covered: What the claim leaves out.
  """

  epsilon: float
  delta: float
  neighbours: str
  unit: str
  sampling: str
  sampling_rate: float
  noise_multiplier: float
  steps: int
  overflow: float
  accountant: str
  software: str
  not_covered: tuple[str, ...]

  def to_dict(self) -> dict[str, Any]:
    """As it goes into a run's report."""
    return dataclasses.asdict(self)


NOT_COVERED = (
  'the choice of hyperparameters on the same rows (repjax.privacy.tuning)',
  'metrics of the training rows that were looked at',
  'rows of one person that occur more than once',
  'the number of rows (or users), from which the noise and the divisor follow: '
  'it counts as public',
  'random numbers that an attacker can predict, and floating-point rounding',
  'what is read off the rows before training, which counts as public: names '
  'and number of classes, columns and their kinds, which rows train where a '
  'file says no split',
  'weights, tokenizers and means that were fitted to the same rows: what a run '
  'starts from and reads by has to be of public ones',
)


def statement(
  *,
  noise_multiplier: float,
  sampling_rate: float,
  steps: int,
  delta: float,
  accountant: accounting.Accountant = 'pld',
  sampling: accounting.Sampling = 'poisson',
  overflow: float = 0.0,
  num_rows: int | None = None,
  unit: str = 'one row of the training set',
) -> Statement:
  """Everything that a run may claim; arguments as of `accounting.epsilon`.

  Args:
    unit: Whose privacy it is.
  """
  found = accounting.epsilon(
    noise_multiplier=noise_multiplier,
    sampling_rate=sampling_rate,
    steps=steps,
    delta=delta,
    accountant=accountant,
    sampling=sampling,
    overflow=overflow,
    num_rows=num_rows,
  )
  software = f'dp-accounting {importlib.metadata.version("dp-accounting")}'
  if accountant == 'pld':
    software += ' and repjax.privacy.losses'
  return Statement(
    epsilon=found,
    delta=delta,
    neighbours='data sets that differ by adding or removing one unit',
    unit=unit,
    sampling='Poisson' if sampling == 'poisson' else 'all rows in every step',
    sampling_rate=sampling_rate,
    noise_multiplier=noise_multiplier,
    steps=steps,
    overflow=overflow,
    accountant=accountant,
    software=software,
    not_covered=NOT_COVERED,
  )
