"""The candidates of a private search: built, checked, and what they cost."""

from typing import Any
from typing import NamedTuple

from absl import logging

from configs import presets
from launch.lib import building
from launch.lib import one_candidate
from launch.lib import recipes
from launch.lib import space as spaces
from launch.lib import trials as all_trials
from repjax import types
from repjax.data.batches import users
from repjax.privacy import overflow
from repjax.privacy.search import costs
from repjax.privacy.search import laws
from repjax.privacy.statements import Statement

# Candidates that are looked at before the search.
_LARGEST_GRID = 1024
_OVERFLOW = 'dp.overflow'


class Candidates(NamedTuple):
  """All that a search may draw.

  Attributes:
    statements: What each claims, in the order of `spaces.grid`.
    delta: Of the whole search.
    costs: What the whole search costs.
    num_rows: Rows that a score with noise counts; else 0.
    sweep: What is searched: batches may have become larger.
  """

  statements: list[Statement]
  delta: float
  costs: costs.Costs
  num_rows: int
  sweep: all_trials.Sweep


def of_search(
  sweep: all_trials.Sweep,
  law: laws.Law,
  *,
  delta: float | None,
  max_trials: int | None,
  score_noise: float | None,
) -> Candidates:
  """Builds every candidate and accounts for the worst.

  Delta covers batches that overflow in all runs together, so that they may have
  to hold more rows than those of one run: where the command line says nothing
  of dp.overflow, it becomes what the search allows.

  Args:
    sweep: What is searched.
    law: Of the number of trials.
    delta: Of the search; that of the candidates if None.
    max_trials: Where the number of trials is cut; None leaves it to the law.
    score_noise: Standard deviation of the noise on counts of right rows; None
      if the score needs no privacy.

  Raises:
    InputError: If a candidate is not private, or a setting does not fit.
  """
  if 'seed' in sweep.space or 'seed' in sweep.overrides:
    raise types.InputError(
      'config.seed does not go with --private: each trial draws its own, which '
      'stays secret.'
    )
  if score_noise is not None and not score_noise > 0:
    raise types.InputError(f'--score_noise must be > 0; got {score_noise}.')
  settings: dict[str, Any] = dict(
    delta=delta, max_trials=max_trials, score_noise=score_noise
  )
  try:
    return _of_search(sweep, law, **settings)
  except overflow.TooOftenError as error:
    if not _can_grow(sweep):
      raise
    overrides = {**sweep.overrides, _OVERFLOW: error.enough}
    logging.info(
      '--config.%s=%g: a search allows batches to overflow less often than one '
      'run does',
      *(_OVERFLOW, error.enough),
    )
  # Larger batches change epsilon a little, and nothing else.
  return _of_search(sweep._replace(overrides=overrides), law, **settings)


def _can_grow(sweep) -> bool:
  """Whether dp.overflow is a field, and nobody has said what it is."""
  module = recipes.load_config_module(sweep.file)
  first = one_candidate.config_of(sweep, module, spaces.grid(sweep.space)[0])
  return presets.fields(first).get(_OVERFLOW) == 0


def _of_search(sweep, law, *, delta, max_trials, score_noise) -> Candidates:
  statements, num_rows = _statements(sweep, noisy=score_noise is not None)
  distinct = set(statements)
  protected = sorted({x.unit for x in distinct})
  if len(protected) > 1:
    raise types.InputError(
      f'--space: candidates protect different things, {" and ".join(protected)}'
      ', and a search claims the same of all: leave dp.user_column out of it.'
    )
  if spaces.has_ranges(sweep.space) and len(distinct) > 1:
    raise types.InputError(
      '--space: privacy differs between the ends of a range, and in between it '
      'is not known: give fields on which the noise, the batch size or the '
      'number of steps depend as lists.'
    )
  if delta is None:
    deltas = {x.delta for x in distinct}
    if len(deltas) > 1:
      raise types.InputError(f'--delta is missing: candidates have {deltas}.')
    delta = deltas.pop()
  try:
    found = costs.of_search(
      distinct, law, delta=delta, limit=max_trials, score_noise=score_noise
    )
  except types.InputError:
    raise
  except ValueError as error:
    limit = laws.most(law) if max_trials is None else max_trials
    raise types.InputError(f'--max_trials={limit}: {error}') from error
  return Candidates(statements, delta, found, num_rows, sweep)


def _statements(sweep, *, noisy):
  """(what each candidate claims, rows of the split that scores)."""
  grid = spaces.grid(sweep.space)
  if len(grid) > _LARGEST_GRID:
    raise types.InputError(
      f'--space has {len(grid)} candidates; all are looked at before a private '
      f'search, and {_LARGEST_GRID} are the most: give ranges, log(...), for '
      'fields that do not change the privacy of a run.'
    )
  module = recipes.load_config_module(sweep.file)
  split, _, metric = sweep.metric.partition('/')
  if noisy and metric != 'accuracy':
    raise types.InputError(
      f'--score=noisy is for a metric <split>/accuracy; got {sweep.metric}.'
    )
  statements, num_rows = [], set()
  for fields in grid:
    config = one_candidate.config_of(sweep, module, fields)
    experiment = building.build(
      module, config, sweep.preset, looks_at_network=False
    )
    # Nothing is trained here: keys that are kept nowhere will do.
    experiment = experiment.guard.begin(experiment, None, {})
    said = experiment.guard.statement(experiment.steps)
    if 'privacy' not in said:
      raise types.InputError(
        f'--config={sweep.file} with {fields} claims no privacy, so that a '
        'search over it has none either (types.Experiment.guard).'
      )
    statements.append(said['privacy'])
    if noisy:
      scored = experiment.evals(split).source
      if scored.num_classes is None:  # One row may then have many hits.
        raise types.InputError(
          '--score=noisy hides one row of the split that scores, which needs '
          f'one label a row, and {split} has none: score with rows that need '
          'no privacy, and leave out --score=noisy.'
        )
      num_rows.add(len(scored))
  if noisy and any(x.unit == users.UNIT for x in statements):
    raise types.InputError(
      '--score=noisy hides one row of the split that scores, and these runs '
      'protect users, who may have many: score with rows of other people and '
      'leave out --score=noisy.'
    )
  if len(num_rows) > 1:
    raise types.InputError(
      f'--score=noisy: candidates are scored by {sorted(num_rows)} rows, and '
      'the noise is for one number of them: leave the data out of --space.'
    )
  return statements, max(num_rows, default=0)
