"""Host side: a generated table of people, their work and their incomes.

It has the columns of the census extract that is often called Adult (Becker and
Kohavi, 1996, https://doi.org/10.24432/C5XW20), numbers and words, and what is
redundant there: a number for each word of `education`, and `relationship`,
which says again most of `marital_status` and `sex`. No row and no rate of it is
of anybody: all is drawn from formulas here, in which `weight`, `race` and
`country` say nothing of the label.
"""

from typing import NamedTuple

import numpy as np

from repjax import types

_WORDS = dict(
  work=('private', 'own', 'company', 'local', 'state', 'federal', 'none'),
  education=tuple(f'level {i}' for i in range(1, 17)),
  marital_status=('never', 'married', 'divorced', 'separated', 'widowed'),
  occupation=(
    *('service', 'cleaning', 'transport', 'craft', 'clerical', 'sales'),
    *('technical', 'professional', 'managing'),
  ),
  relationship=(
    *('husband', 'wife', 'child', 'unmarried', 'not in family', 'other'),
  ),
  race=tuple(f'group {i}' for i in range(1, 6)),
  sex=('female', 'male'),
  country=tuple(f'country {i}' for i in range(1, 9)),
)


class Incomes(NamedTuple):
  """Rows of people.

  Attributes:
    numbers: Name -> [N].
    words: Name -> places in `names`, [N].
    names: Name -> what its words are.
    label: 1 for a large income, [N]; about a quarter of the rows.
  """

  numbers: dict[str, np.ndarray]
  words: dict[str, np.ndarray]
  names: dict[str, tuple[str, ...]]
  label: np.ndarray


def draw(num_rows: int, *, seed: int) -> Incomes:
  """People of a generated census.

  Args:
    num_rows: N.
    seed: Decides everything.

  Raises:
    InputError: `num_rows` is below 1.
  """
  types.check_range('[1, inf)', num_rows=num_rows)
  rng = np.random.default_rng([seed, num_rows])
  age = np.clip(17 + rng.gamma(2.6, 8.5, num_rows), 17, 90).astype(int)
  level = np.clip(np.rint(rng.normal(10, 2.6, num_rows)), 1, 16).astype(int)
  male = rng.random(num_rows) < 0.6
  status = _marital_status(rng, age)
  # Work that needs more years of school is done by those who have them.
  occupation = np.clip(
    np.rint((level - 4) * 0.6 + rng.normal(0, 1.8, num_rows)), 0, 8
  ).astype(int)
  hours = np.clip(rng.normal(40 + 0.8 * occupation, 9), 5, 99).astype(int)
  lucky, unlucky = rng.random((2, num_rows)) < [[0.08], [0.05]]
  gain = np.where(lucky, rng.lognormal(8.2, 1.0, num_rows), 0).astype(int)
  loss = np.where(unlucky, rng.normal(1900, 300, num_rows), 0).astype(int)
  married = status == 1
  logit = (
    -3.0
    + 0.45 * (level - 10)
    + 0.25 * (occupation - 4)
    + 2.2 * married
    + 0.05 * (np.minimum(age, 55) - 38)
    + 0.04 * (hours - 40)
    + 2.5 * (gain > 5000)
    + 1.0 * (loss > 1800)
  )
  label = rng.random(num_rows) < 1 / (1 + np.exp(-2.5 * logit))
  return Incomes(
    dict(
      age=age,
      weight=rng.lognormal(12, 0.5, num_rows).astype(int),
      education_num=level,
      capital_gain=gain,
      capital_loss=loss,
      hours_per_week=hours,
    ),
    dict(
      work=rng.choice(7, num_rows, p=(0.7, 0.08, 0.04, 0.07, 0.04, 0.04, 0.03)),
      education=level - 1,
      marital_status=status,
      occupation=occupation,
      relationship=_relationship(rng, status, male, age),
      race=rng.choice(5, num_rows),
      sex=male.astype(int),
      country=rng.choice(8, num_rows),
    ),
    _WORDS,
    label.astype(np.int32),
  )


def _marital_status(rng, age):
  """The older, the fewer have never married and the more are widowed."""
  old = np.clip((age - 17) / 50, 0, 1)
  share = np.stack(
    [
      np.maximum(1 - 2.2 * old, 0.06),
      np.minimum(1.6 * old, 0.6),
      0.06 + 0.15 * old,
      np.full(len(age), 0.03),
      0.2 * old**3,
    ],
    1,
  )
  edges = (share / share.sum(1, keepdims=True)).cumsum(1)
  return (rng.random((len(age), 1)) > edges[:, :-1]).sum(1)


def _relationship(rng, status, male, age):
  """Follows from status and sex but for those who live without a partner."""
  drawn = rng.choice(3, len(age), p=(0.3, 0.6, 0.1)) + 3
  alone = np.where((status == 0) & (age < 28), 2, drawn)
  return np.where(status == 1, np.where(male, 0, 1), alone)
