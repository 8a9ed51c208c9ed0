"""Host side: tables of attributes, realised exactly.

    plan = make_plan(shift, counts(label, group, 3, 10), seed=0)
    rows = realise(plan, label, group, seed=0)

The training set has the counts of the plan, row for row, or it is an error that
names the pair of label and value that lacks rows. How a shift is said stands in
`fine_grained_shift`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.data import noise
from repjax.data.images import transforms
from repjax.data.reading import source as sources


class Plan(NamedTuple):
  """A table of attributes that has the rows that it needs.

  Attributes:
    counts: Rows of each part, label and value, int [P, C, A].
    weights: Probabilities of the parts, [P], with sum 1.
    noise: Part of the labels that is drawn anew.
    redrawn: Whether they are drawn anew in every step.
  """

  counts: np.ndarray
  weights: np.ndarray
  noise: float
  redrawn: bool


def make_plan(
  conditions: Sequence[shifts.Condition], available: np.ndarray, *, seed: int
) -> Plan:
  """The counts that conditions ask for.

  Args:
    conditions: A shift, and what lies on top of it.
    available: Rows that there are of each label and value, int [C, A].
    seed: Decides which cells get the odd rows of what does not divide evenly.

  Raises:
    InputError: If a cell lacks rows (names the first one), or nothing is left.
  """
  available = np.asarray(available)
  draft = shifts.Draft(
    (shifts.Part('all', np.ones(available.shape, bool), None, 1.0),)
  )
  for condition in conditions:
    draft = condition(draft)
  rng = np.random.default_rng([seed, available.size])
  left = available.copy()
  counts: dict[int, np.ndarray] = {}
  # Those that take what is left come last.
  order = sorted(
    range(len(draft.parts)), key=lambda i: _takes_the_rest(draft.parts[i])
  )
  for place in order:
    part = draft.parts[place]
    if part.cells.dtype != bool:
      wanted = part.cells
    elif part.num_rows is None:
      wanted = np.where(part.cells, np.maximum(left, 1), 0)
    else:
      wanted = _spread(part.cells, part.num_rows, rng)
    _check_rows(part.name, wanted, left, available)
    counts[place] = wanted
    left = left - wanted
  kept = [i for i in sorted(counts) if counts[i].any()]
  weights = np.array([draft.parts[i].weight for i in kept], np.float64)
  if not kept or not weights.sum() > 0 or weights.min() < 0:
    raise types.InputError(
      'The shift leaves no row to train on: raise its numbers of rows and its '
      'weights.'
    )
  return Plan(
    np.stack([counts[i] for i in kept]),
    weights / weights.sum(),
    draft.noise,
    draft.redrawn,
  )


class Realised(NamedTuple):
  """Rows of a training set, part by part.

  Attributes:
    rows: Places in the set that they come from, int64 [N]; none twice.
    label: Labels, some of which may be noise, int32 [N].
    sizes: Rows of each part, [P].
    weights: Probabilities of the parts, [P].
  """

  rows: np.ndarray
  label: np.ndarray
  sizes: np.ndarray
  weights: np.ndarray


def realise(
  plan: Plan, label: np.ndarray, group: np.ndarray, *, seed: int
) -> Realised:
  """Draws the rows of a plan without replacement.

  Args:
    plan: Made for these very rows.
    label: In [0, C), [M].
    group: Value of the nuisance, in [0, A), [M].
    seed: Decides which rows, and which labels are noise.
  """
  _, num_labels, num_values = plan.counts.shape
  rng = np.random.default_rng([seed, len(label)])
  shuffled = rng.permutation(len(label))
  cell = (np.asarray(label, np.int64) * num_values + group)[shuffled]
  order = shuffled[np.argsort(cell, kind='stable')]
  cells = np.bincount(cell, minlength=num_labels * num_values)
  taken = np.cumsum(cells) - cells  # Where the next row of a cell stands.
  rows = []
  for table in plan.counts.reshape(len(plan.counts), -1):
    rows += [order[i : i + n] for i, n in zip(taken, table, strict=True)]
    taken = taken + table
  chosen = np.concatenate(rows)
  made = np.asarray(label, np.int32)[chosen]
  if plan.noise and not plan.redrawn:
    made = noise.symmetric(made, plan.noise, num_labels, seed).labels
  return Realised(chosen, made, plan.counts.sum((1, 2)), plan.weights)


def counts(
  label: np.ndarray, group: np.ndarray, num_labels: int, num_values: int
) -> np.ndarray:
  """Rows of each label and value, int [C, A]."""
  table = np.zeros((num_labels, num_values), np.int64)
  np.add.at(table, (np.asarray(label), np.asarray(group)), 1)
  return table


def training_set(source: sources.Source, realised: Realised) -> sources.Source:
  """The source of realised rows with their labels, part by part."""
  return source.select(realised.rows).with_columns(label=realised.label)


def redrawn_labels(rate: float, num_labels: int) -> transforms.Transform:
  """Label noise that is drawn in every step (`LabelNoise(fixed=False)`)."""

  def apply(columns, draws):
    drawn = transforms.randint(draws[:, 1], num_labels)
    label = np.where(draws[:, 0] < rate, drawn, columns['label'])
    return {**columns, 'label': label.astype(np.int32)}

  return transforms.Transform(2, apply)


def _takes_the_rest(part):
  return part.cells.dtype == bool and part.num_rows is None


def _spread(cells, num_rows, rng):
  """So many rows over the cells; which ones get the odd rows, is drawn."""
  places = rng.permutation(np.flatnonzero(cells))
  if num_rows and not len(places):
    raise types.InputError(
      f'The table cannot be realised: a part of {num_rows} row(s) has no cell, '
      'as where the nuisance has one value: ask for none of them.'
    )
  if not len(places):
    return np.zeros(cells.shape, np.int64)
  table = np.zeros(cells.size, np.int64)
  table[places] = num_rows // len(places)
  table[places[: num_rows % len(places)]] += 1
  return table.reshape(cells.shape)


def _check_rows(name, wanted, left, available):
  short = np.argwhere(wanted > left)
  if len(short):
    label, value = short[0]
    raise types.InputError(
      f'The table cannot be realised: its {name} part asks for '
      f'{wanted[label, value]} row(s) of label {label} with value {value}, of '
      f'which {left[label, value]} of {available[label, value]} are left: ask '
      'for fewer, or give more rows.'
    )
