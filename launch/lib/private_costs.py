"""What a private search costs: the worst of its candidates, and the law."""

from typing import Any
from typing import NamedTuple

import ml_collections
import numpy as np

from launch.lib import app
from launch.lib import space as spaces
from launch.lib import trials as all_trials
from repjax import types
from repjax.data.batches import users
from repjax.privacy import accounting
from repjax.privacy import tuning
from repjax.privacy.search import laws
from repjax.privacy.search import tradeoff

# Candidates that are looked at before the search.
_LARGEST_GRID = 1024


class Costs(NamedTuple):
  """What the search costs.

  Attributes:
    epsilon: Of the whole search.
    delta: Of the same.
    one_run: Epsilon of the worst candidate alone, with its score.
    law: Of the number of trials.
    limit: Largest number of trials.
    statements: Of all candidates, in the order of `spaces.grid`.
    num_rows: Rows that a score with noise counts; else 0.
  """

  epsilon: float
  delta: float
  one_run: float
  law: laws.Law
  limit: int
  statements: list[accounting.Statement]
  num_rows: int


def of_search(
  sweep: all_trials.Sweep,
  law: laws.Law,
  *,
  delta: float | None,
  max_trials: int | None,
  score_noise: float | None,
) -> Costs:
  """Builds every candidate and accounts for the worst.

  Args:
    sweep: What is searched.
    law: Of the number of trials.
    delta: Of the search; that of the candidates if None.
    max_trials: Where the number of trials is cut; by default where the law
      gets with probability 1e-15.
    score_noise: Standard deviation of the noise on the score's number of
      correct rows; None if the score needs no privacy.

  Raises:
    InputError: If a candidate is not private, or a setting does not fit.
  """
  grid = spaces.grid(sweep.space)
  if len(grid) > _LARGEST_GRID:
    raise types.InputError(
      f'--space has {len(grid)} candidates; all are looked at before a private '
      f'search, and {_LARGEST_GRID} are the most: give ranges, log(...), for '
      'fields that do not change the privacy of a run.'
    )
  module = app.load_config_module(sweep.file)
  split, _, metric = sweep.metric.partition('/')
  if score_noise is not None and metric != 'accuracy':
    raise types.InputError(
      f'--score=noisy is for a metric <split>/accuracy; got {sweep.metric}.'
    )
  statements, num_rows = [], 0
  for fields in grid:
    experiment = module.build(config_of(sweep, module, fields))
    said = experiment.guard.statement(experiment.steps)
    if 'privacy' not in said:
      raise types.InputError(
        f'--config={sweep.file} with {fields} claims no privacy, so that a '
        'search over it has none either (types.Experiment.guard).'
      )
    statements.append(said['privacy'])
    if score_noise is not None and not num_rows:
      num_rows = len(experiment.evals(split).source)
  distinct = set(statements)
  if score_noise is not None and any(x.unit == users.UNIT for x in distinct):
    raise types.InputError(
      '--score=noisy hides one row of the split that scores, and these runs '
      'protect users, who may have many: score with rows of other people and '
      'leave out --score=noisy.'
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
  curve, power = _worst(distinct, score_noise)
  # The batches of every run may overflow, which is another mechanism.
  lost = law.mean * max(x.steps * x.overflow for x in distinct)
  limit = laws.most(law) if max_trials is None else max_trials
  try:
    found = tuning.epsilon_of_best(
      curve, law, delta, power=power, limit=limit, lost=lost
    )
  except ValueError as error:
    raise types.InputError(f'--max_trials={limit}: {error}') from error
  one = tuning.epsilon(curve, delta)
  return Costs(found, delta, one, law, limit, statements, num_rows)


def _worst(
  statements, score_noise
) -> tuple[accounting.RdpCurve, tradeoff.Power]:
  """One bound for every candidate, with the score's part."""
  known = [
    dict(
      noise_multiplier=x.noise_multiplier,
      sampling_rate=x.sampling_rate,
      steps=x.steps,
    )
    for x in statements
  ]
  curves = [accounting.rdp_curve(**x) for x in known]
  orders = curves[0].orders
  epsilons = np.max([x.epsilons for x in curves], axis=0)
  if score_noise is not None:
    if not score_noise > 0:
      raise types.InputError(f'--score_noise must be > 0; got {score_noise}.')
    # A row changes the count by 1 at most.
    epsilons = epsilons + orders / (2 * score_noise**2)
  curve = accounting.RdpCurve(orders, epsilons)
  power = tradeoff.from_rdp(curve)
  if score_noise is None and len(known) <= 8:
    at = np.linspace(0, 12, 121)
    deltas = np.max([accounting.profile(at, **x) for x in known], axis=0)
    power = tradeoff.both(power, tradeoff.from_profile(at, deltas))
  return curve, power


def config_of(
  sweep: all_trials.Sweep, module: Any, fields: spaces.Fields
) -> ml_collections.ConfigDict:
  """The config of one candidate."""
  config = module.get_config(*([sweep.preset] if sweep.preset else []))
  config.update_from_flattened_dict(sweep.overrides)
  for name, value in fields.items():
    app.set_field(config, name, value)
  for flag in sweep.train_flags:
    if flag.startswith('--data_dir='):
      config.data.dir = flag.partition('=')[2]
  return config
