"""A search over config fields that is differentially private as a whole.

Papernot and Steinke, ICLR 2022 (https://arxiv.org/abs/2110.03620); see
`repjax.privacy.tuning`. The number of trials is drawn from a law that knows
nothing of the data, and so is each trial's candidate, with replacement; only
the best trial is published. What stays secret is in sealed/: the number of
trials, all trials, their seeds and the keys of their noise, which each draws
when it begins. Published are report.json and release/: the winner's parameters,
without its optimizer, which holds the key of its noise, and without its seed.
How long it took tells of the number of trials: publish at a time fixed before.

Every candidate must be private itself (`types.Experiment.guard`); the search
is accounted for the worst of them. Their score is either of rows that need no
privacy, or made private here, by noise on a count of correct rows.
"""

from collections.abc import Sequence
import secrets
import threading
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import executors
from launch.lib import private_candidates
from launch.lib import released
from launch.lib import space as spaces
from launch.lib import trials as all_trials
from repjax import files
from repjax import types
from repjax.privacy.search import laws

_PRIVATE = flags.DEFINE_bool(
  'private',
  False,
  'Search with differential privacy as a whole: --law draws the number of '
  'trials and each draws its fields from --space. Only the best is published.',
)
_LAW = flags.DEFINE_enum(
  'law',
  'negative_binomial',
  ['negative_binomial', 'poisson'],
  'With --private: law of the number of trials; the first is truncated.',
)
_ETA = flags.DEFINE_float(
  'eta',
  0.0,
  'Shape of the truncated negative binomial law, > -1; 1 is the geometric law. '
  'Smaller is cheaper, and more often a single trial.',
)
_EXPECTED = flags.DEFINE_float(
  'expected_trials', 10.0, 'With --private: trials on average.'
)
_MOST = flags.DEFINE_integer(
  'max_trials',
  None,
  'With --private: no more trials than these, whatever the law says, which '
  'delta pays for. By default exceeded with probability 1e-15.',
  lower_bound=1,
)
_DELTA = flags.DEFINE_float(
  'delta',
  None,
  "With --private: of the search; by default the candidates'.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_SCORE = flags.DEFINE_enum(
  'score',
  None,
  ['public', 'noisy'],
  'With --private: public says that --metric comes from rows that need no '
  'privacy; noisy that they do: --score_noise is added to their number of '
  'correct ones (a metric <split>/accuracy).',
)
_SCORE_NOISE = flags.DEFINE_float(
  'score_noise', 10.0, 'Standard deviation of that noise, in rows.'
)

NOT_COVERED = (
  'how long the search took, and everything in sealed/',
  'a second search on the same rows, also one begun again in another folder',
  'rows that --score=public is about',
)

ASKED_FOR = ('delta', 'law', 'eta', 'expected_trials', 'max_trials', 'score')


def is_asked_for() -> bool:
  """Whether --private is given."""
  return _PRIVATE.value


def refuse(train_flags: Sequence[str], **values: Any) -> None:
  """Refuses flags of the plain sweep that would void the privacy."""
  for flag, after in zip(train_flags, [*train_flags[1:], ''], strict=False):
    name, equals, value = flag.lstrip('-').partition('=')
    if name == 'track' and (value if equals else after) != 'tensorboard':
      raise types.InputError(
        f'--train_flags={flag} tells a server how many trials there are, and '
        'does not go with --private.'
      )
  reasons = {
    'trials': 'a fixed number of trials is not covered: --law draws it',
    'seed': 'who knows the seed knows the number of trials',
    'until': 'stopping early by the scores is not covered',
  }
  for name, value in values.items():
    if value is not None:
      raise types.InputError(
        f'--{name} does not go with --private: {reasons[name]}.'
      )


def run(
  sweep: all_trials.Sweep, execute: executors.Executor, stop: threading.Event
) -> dict[str, Any]:
  """Searches with the settings of the flags; returns the report."""
  import jax

  if _SCORE.value is None:
    raise types.InputError(
      '--private needs --score: say whether the metric is of rows that need '
      'no privacy (--score=public) or has to be made private (--score=noisy).'
    )
  # Trials need the accelerator; this process only looks at experiments.
  jax.config.update('jax_platforms', 'cpu')
  law = _law()
  candidates = private_candidates.of_search(
    sweep,
    law,
    delta=_DELTA.value,
    max_trials=_MOST.value,
    score_noise=_SCORE_NOISE.value if _SCORE.value == 'noisy' else None,
  )
  sweep = candidates.sweep
  said = _said(sweep, candidates)
  logging.info(
    'the whole search is (%.4g, %.3g)-differentially private (one run: %.4g); '
    '%s, %g trials on average, at most %d',
    said['epsilon'],
    said['delta'],
    said['epsilon_of_one_run'],
    _LAW.value,
    law.mean,
    said['max_trials'],
  )
  with all_trials.held(sweep.workdir):
    plan = _sealed_plan(sweep, said, law, said['max_trials'])
    before = files.read_json_if_whole(sweep.workdir / 'report.json', 'privacy')
    if before is not None:  # Its budget is spent.
      logging.info('published before: %s', sweep.workdir / 'report.json')
      return before
    found = _run_sealed(sweep, plan, execute, stop)
    scores = [
      _score(sweep, candidates, trial, report)
      for trial, report in zip(plan['trials'], found, strict=True)
    ]
    return _publish(sweep, said, plan, scores)


def _law() -> laws.Law:
  try:
    if _LAW.value == 'poisson':
      law: laws.Law = laws.checked(laws.Poisson(_EXPECTED.value))
    else:
      law = laws.with_mean(_ETA.value, _EXPECTED.value)
    laws.most(law)
  except ValueError as error:
    raise types.InputError(
      f'--law={_LAW.value} --eta={_ETA.value} '
      f'--expected_trials={_EXPECTED.value}: {error}'
    ) from error
  return law


def _said(sweep, candidates) -> dict[str, Any]:
  """What the report says of privacy, and what makes this search this one."""
  first = candidates.statements[0]
  source = 'of rows that need no privacy'
  if _SCORE.value == 'noisy':
    source = f'noise of {_SCORE_NOISE.value:g} rows on the number of correct'
  return {
    'epsilon': candidates.costs.epsilon,
    'delta': candidates.delta,
    'epsilon_of_one_run': candidates.costs.one_run,
    'neighbours': first.neighbours,
    'unit': first.unit,
    'law': _LAW.value,
    'eta': _ETA.value if _LAW.value == 'negative_binomial' else None,
    'expected_trials': _EXPECTED.value,
    'max_trials': candidates.costs.limit,
    'score': f'{sweep.metric}: {source}',
    'bound': 'the smaller of the general lemma and theorem 2 (Poisson: 6) of '
    'Papernot and Steinke (2022), at each Renyi order, for the worst candidate',
    'not_covered': [*NOT_COVERED, *first.not_covered[1:]],
  }


def _sealed_plan(sweep, said, law, limit) -> dict[str, Any]:
  """The search that was drawn; draws it if this is the first time."""
  from repjax import checkpoint

  folder = sweep.workdir / 'sealed'
  path = folder / 'plan.json'
  identity = {
    **(sweep.identity() | {'more': []}),  # `data` says it, and is sealed.
    'metric': sweep.metric,
    'mode': sweep.mode,
    'score_noise': _SCORE_NOISE.value if _SCORE.value == 'noisy' else None,
    'data': [x for x in sweep.train_flags if x.startswith('--data_dir=')],
    # What was asked for: figures may differ in their last digits elsewhere.
    **{name: said[name] for name in ASKED_FOR},
  }
  if path.exists():
    plan = files.read_json(path, 'identity', 'trials')
    lines = checkpoint.differing_fields(plan['identity'], identity)
    if lines:
      raise types.InputError(
        f'--workdir={sweep.workdir} is that of another search: '
        f'{"; ".join(lines)}. A second one on the same rows spends more.'
      )
    return plan
  if (folder / 'trials').exists() or (sweep.workdir / 'report.json').exists():
    raise types.InputError(
      f'--workdir={sweep.workdir} holds a search without its plan ({path}): a '
      'second one spends more. Give another --workdir if that is meant.'
    )
  rng = np.random.default_rng(secrets.randbits(128))
  plan = {
    'identity': identity,
    'trials': [
      {
        'fields': spaces.draw(sweep.space, rng),
        'seed': int(rng.integers(2**31 - 1)),
        'noise': float(rng.standard_normal()),
      }
      for _ in range(*laws.sample(law, rng, 1, limit=limit))
    ],
  }
  folder.mkdir(parents=True, exist_ok=True)
  folder.chmod(0o700)
  files.write_json(path, plan)
  return plan


def _run_sealed(sweep, plan, execute, stop) -> list[dict[str, Any] | None]:
  """Reports of all trials; None for those whose loss was not finite."""
  folder = sweep.workdir / 'sealed' / 'trials'
  folders = [folder / f'{i:03}' for i in range(len(plan['trials']))]

  def is_open(x):
    return not (all_trials.report(x) or (x / 'diverged').exists())

  todo = [
    sweep.job(x, {**trial['fields'], 'seed': str(trial['seed'])})
    for x, trial in zip(folders, plan['trials'], strict=True)
    if is_open(x)
  ]

  def seen(job, code):
    # The worst of all scores. That it ended so is not covered, and said to be.
    if code == app.NON_FINITE:
      (job.log.parent / 'diverged').touch()

  logging.info('the search is running; its trials are in sealed/')
  codes = set(execute(todo, stop, seen).values())
  if stop.is_set() or app.PREEMPTED in codes:
    raise types.PreemptedError(
      'the search was stopped: run the same command again to go on.'
    )
  if codes - {0, app.NON_FINITE} or any(map(is_open, folders)):
    raise types.InputError(
      f'A trial could not run: see the output.txt of the trials in {folder}. '
      'Then run the same command again to go on.'
    )
  return [all_trials.report(x) or None for x in folders]


def _score(sweep, candidates, trial, report) -> float:
  """What a trial is ranked by, larger is better; -inf if it diverged.

  Raises:
    InputError: If its report has no privacy statement, or claims less than
      what the search was accounted for.
  """
  if report is None:
    return -np.inf
  said = report.get('privacy')
  if not said:
    raise types.InputError(
      'The report.json of a trial has no privacy statement: there is nothing '
      'to publish.'
    )
  grid = spaces.grid(sweep.space)
  planned = candidates.statements[0]
  if trial['fields'] in grid:
    planned = candidates.statements[grid.index(trial['fields'])]
  slack = 1 + 1e-6
  if (
    said['noise_multiplier'] * slack < planned.noise_multiplier
    or said['sampling_rate'] > planned.sampling_rate * slack
    or said['steps'] > planned.steps
    or said['delta'] > planned.delta * slack
    or said.get('overflow', 1.0) > planned.overflow * slack
    or any(said[x] != getattr(planned, x) for x in ('unit', 'neighbours'))
  ):
    raise types.InputError(
      'A trial was less private than the search was accounted for: there is '
      'nothing to publish.'
    )
  value = all_trials.metric_of(sweep, report)
  if _SCORE.value == 'noisy':
    value += _SCORE_NOISE.value * trial['noise'] / candidates.num_rows
  return sweep.sign * value if np.isfinite(value) else -np.inf


def _publish(sweep, said, plan, scores) -> dict[str, Any]:
  """Writes report.json and release/: the best trial, and nothing else."""
  best = int(np.argmax(scores)) if scores else -1
  found = best >= 0 and np.isfinite(scores[best])
  report = {'privacy': said, **sweep.identity(), 'more': [], 'best': None}
  if found:
    report['best'] = {
      'fields': plan['trials'][best]['fields'],
      sweep.metric: sweep.sign * scores[best],
    }
    folder = sweep.workdir / 'release'
    folder.mkdir(exist_ok=True)
    trial = sweep.workdir / 'sealed' / 'trials' / f'{best:03}'
    released.save_params(trial, folder / 'params.safetensors')
    logging.info(
      'best: %s: %s %.4f, in %s',
      report['best']['fields'],
      sweep.metric,
      sweep.sign * scores[best],
      folder,
    )
  else:
    logging.info('no trial has a result: take the config as it is')
  files.write_json(sweep.workdir / 'report.json', report)
  logging.info(
    'epsilon %.4g, delta %.3g for the whole search',
    said['epsilon'],
    said['delta'],
  )
  return report
