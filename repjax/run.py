"""An experiment in a work directory: restore, fit, evaluate, save, report.

    experiment = recipe.build(config)
    result = run.fit(experiment, config, 'runs/first')

Called again with the same arguments it goes on where it was, and a finished run
is returned at once. No flags: `launch.train` and notebooks call the same.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
import os
import pathlib
import time
from typing import Any
from typing import Literal

from absl import logging
import jax
import numpy as np

from repjax import checkpoint
from repjax import files
from repjax import loop
from repjax import parallel
from repjax import plots
from repjax import report
from repjax import trees
from repjax import types
from repjax.metrics import averages

# Of studies; they stood in configs once, and so they do in old directories.
_OF_STUDIES = ('claims', 'study', 'seeds', 'arms', 'generation')


def identity(config: Any) -> dict[str, Any]:
  """What decides a run's result: all but where and how often to write.

  As it comes back from a JSON file, so that both can be compared.
  """
  fields = json.loads(files.json_line(config.to_dict()))
  fields.pop('run', None)
  fields.get('data', {}).pop('dir', None)
  return without_studies(fields)


def without_studies(fields: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config without what only studies read."""
  return {name: x for name, x in fields.items() if name not in _OF_STUDIES}


def fit(
  experiment: types.Experiment,
  config: Any,
  workdir: str | os.PathLike,
  *,
  origin: Mapping[str, str] | None = None,
  resume_config: Literal['same', 'new'] = 'same',
  asked_to_stop: Callable[[], bool] = lambda: False,
  started: float | None = None,
  track: Callable[[pathlib.Path], report.Writer] = report.Events,
  compiled: Callable[[jax.stages.Compiled], None] | None = None,
) -> dict[str, Any]:
  """Trains an experiment in a directory, from where it was left there.

  Args:
    experiment: From a recipe's `build(config)`.
    config: With `seed` and the group `run`: log_every (steps, 0 for never),
      eval_every and save_every (0 for the end alone), keep (checkpoints), best
      (what chooses one more, '' for none) and best_mode ('max' or 'min').
    workdir: Where all is written; see `report`.
    origin: 'file' and 'preset' of the config, for `launch.evaluate`.
    resume_config: What to do where the directory was made with another config:
      refuse ('same'), or go on from its checkpoint with this one ('new').
    asked_to_stop: Polled after every step: whether to save and stop.
    started: `time.monotonic()` of the beginning; that of this call if None.
    track: What gets the run's numbers, too; see `tracking.writers`.
    compiled: Called with the compiled step before the first; see `loop.fit`.

  Returns:
    The content of report.json.

  Raises:
    InputError: If the directory cannot be written, was made with another
      config, or the experiment's guard refuses.
    NonFiniteError: If a loss is not finite; checkpoints from before are kept.
    PreemptedError: If it was asked to stop; the state is saved.
  """
  types.check_choice('resume_config', resume_config, ('same', 'new'))
  started = time.monotonic() if started is None else started
  if jax.process_count() > 1:
    from repjax import agreement  # Who is alone loads none of it.

    agreement.check(agreement.facts(experiment, config, origin or {}))
  from repjax.data.own import kept_classes  # Not a part of every program.

  experiment, anew = kept_classes.keep(
    files.path_of(workdir), experiment, config, resume_config
  )
  directory = report.Run(workdir, track=track)
  with directory.held():
    finished = directory.result()
    if (
      finished is not None
      and not anew
      and _same(finished['config'], config, directory, resume_config)
    ):
      logging.info('%s is finished: %s', workdir, finished.get('result'))
      return finished
    directory.log()
    return _fit(
      *(experiment, config, directory, origin or {}, resume_config),
      *(asked_to_stop, started, compiled),
    )


def _fit(
  experiment, config, directory, origin, resume_config, asked, since, compiled
):
  _check_best(experiment, config)
  experiment = experiment.guard.begin(
    experiment, directory.workdir, identity(config)
  )
  store = checkpoint.Checkpoints(
    str(directory.workdir / 'checkpoints'),
    keep=config.run.keep,
    best=config.run.best,
    best_mode=config.run.best_mode,
  )
  state, sums = _begin(experiment, config, directory, store, resume_config)
  experiment.companion.begin(directory.workdir, int(state.step))
  result = directory.workdir / 'report.json'
  if directory.is_writer and result.exists():  # A shorter run's: not done yet.
    result.replace(result.with_name('report.before.json'))
  # Now that nothing has refused: evaluation goes by it.
  directory.start({**origin, **config.to_dict()})
  batch_size = round(experiment.train.expected_rows)
  logging.info(
    '%s parameters, %s steps of %s rows; compiling the first',
    f'{trees.size(state.params):,}',
    f'{experiment.steps:,}',
    f'{batch_size:,}',
  )

  def write(step, means):
    experiment.guard.watch(means)
    directory.write(step, means)

  progress = loop.Progress(
    every=config.run.log_every,
    steps=experiment.steps,
    batch_size=batch_size,
    write=write,
    start=int(state.step),
    sums=sums,
    also=experiment.guard.line,
  )
  evaluate = _Evaluation(experiment)

  def act(step, state, _):
    experiment.companion.follow(step, state)
    evaluates = step == experiment.steps or _due(step, config.run.eval_every)
    if not evaluates and not _due(step, config.run.save_every):
      return
    progress.check(state)
    with progress.pause():
      values = {}
      if evaluates:
        values = evaluate(state)
        logging.info('step %s  %s', f'{step:,}', averages.summary(values))
        directory.write(step, values)
      experiment.companion.save(step)
      store.save(state, identity(config), values, sums=progress.sums)

  def stop(step, state, _):
    if parallel.agree_to_stop(step, asked=asked()):
      progress.check(state)
      experiment.companion.save(step)
      store.save(state, identity(config), sums=progress.sums)
      store.wait()
      raise types.PreemptedError(
        f'stopped after step {step}, which is saved: run the same command '
        'again to go on.'
      )

  try:
    state = loop.fit(
      experiment.method,
      experiment.train.iterate,
      steps=experiment.steps,
      seed=config.seed,
      state=state,
      hooks=(progress, act, stop),
      compiled=compiled,
    )
    if not evaluate.values and evaluate(state) and resume_config == 'new':
      directory.write(experiment.steps, evaluate.values)  # None were left.
  except types.NonFiniteError as error:
    store.wait()
    kept = store.steps()
    raise types.NonFiniteError(
      f'{error}. Checkpoints from before it are kept: {kept or "none"}. '
      'Try a smaller --config.tx.learning_rate or another --config.seed.'
    ) from error
  store.close()
  return _finish(
    experiment,
    directory,
    evaluate,
    {
      'steps': experiment.steps,
      'best_step': store.best_step(),
      **{
        name: x.to_dict()
        for name, x in experiment.guard.statement(experiment.steps).items()
      },
      'params_crc32': trees.crc32(jax.device_get(state.params)),
      'seconds': time.monotonic() - since,
      'train_seconds': progress.train_seconds,
      'config': identity(config),
    },
  )


def measures(experiment: types.Experiment) -> list[str]:
  """Names of what an evaluation will measure, without any compute.

  Each split is measured on its first batch, of which nothing is predicted.
  """
  state = jax.eval_shape(
    experiment.method.init, jax.random.key(0), experiment.train.batch(0)
  )
  names = []
  for split in experiment.eval_splits:
    batch = next(iter(experiment.evals(split)))
    shapes = jax.eval_shape(experiment.method.predict, state, batch)
    real = batch['mask'] > 0
    real[0] |= not real.any()  # One of several may have padding alone: row 0.
    outputs = {k: np.ones(x.shape, x.dtype)[real] for k, x in shapes.items()}
    columns = {name: x[real] for name, x in batch.items() if x.ndim == 1}
    with np.errstate(all='ignore'):
      names += [f'{split}/{x}' for x in experiment.measure(outputs, columns)]
  return [*names, *experiment.companion.measures]


class _Evaluation:
  """Measures all splits of an experiment; keeps what the last one saw."""

  def __init__(self, experiment):
    self._experiment = experiment
    self._evaluator = loop.Evaluator(experiment.method)
    self.last = {}  # Split -> (outputs, columns).
    self.values = {}

  def __call__(self, state) -> dict[str, float]:
    made = self._experiment
    for split in made.eval_splits:
      seen = self._evaluator(state, made.evals(split), split=split)
      self.last[split] = seen
      for name, x in made.measure(*seen).items():
        self.values[f'{split}/{name}'] = x
    for name, measure in made.companion.measures.items():
      self.values[name] = float(measure(state))
    return dict(self.values)


def _check_best(experiment, config):
  """Refuses a metric that only the first evaluation would miss."""
  if config.run.best:
    names = measures(experiment)
    if config.run.best not in names:
      raise types.InputError(
        f'config.run.best={config.run.best!r} is not measured; there are '
        f'{", ".join(names)}.'
      )


def _begin(experiment, config, directory, store, resume_config):
  """The state to go on from, and the sums of the interval that it is amid.

  Before any compute: a run never trains what it cannot resume.
  """
  guard = experiment.guard
  fresh = guard.keyed(
    loop.init(experiment.method, experiment.train.batch(0), config.seed)
  )
  guard.check(experiment, fresh, config.run.best)
  stored = store.read()
  if stored is None:
    same, state = True, experiment.warm_start(fresh)
    guard.resumed(fresh, state, same)  # It may have brought keys along.
  else:
    same = _same(stored.config, config, directory, resume_config)
    state = checkpoint.as_state(stored, fresh)
  if jax.process_count() > 1:
    from repjax import agreement

    agreement.check_start(state)
  if stored is None:
    directory.truncate(-1)
    return state, {}
  guard.resumed(fresh, state, same)
  step = int(state.step)
  if step > experiment.steps:
    raise types.InputError(
      f'--workdir={directory.workdir} has trained {step:,} steps, more than '
      f'the {experiment.steps:,} of this config: raise config.epochs or '
      'min_steps, or give another --workdir.'
    )
  store.set_aside_after(step)
  directory.truncate(step)
  logging.info('resuming from the checkpoint of step %d', step)
  return state, stored.sums if same else {}


def _finish(experiment, directory, evaluate, facts):
  for name, figure in plots.curves(directory.history()).items():
    directory.figure(name, figure)
  for split, seen in evaluate.last.items():
    for name, figure in experiment.figures(split, *seen).items():
      directory.figure(f'{split}_{name}', figure)
  made = {'result': evaluate.values, **facts, **report.environment()}
  directory.finish(made)
  logging.info(
    'finished %s steps in %.0f s (%.0f s of training): %s',
    f'{experiment.steps:,}',
    facts['seconds'],
    facts['train_seconds'],
    averages.summary(made['result']),
  )
  logging.info('report: %s, beside plots/', directory.workdir / 'report.json')
  return made


def _same(stored, config, directory, resume_config) -> bool:
  """Whether a work directory was made with this config; refuses if not."""
  lines = checkpoint.differing_fields(without_studies(stored), identity(config))
  if lines and resume_config == 'same':
    raise types.InputError(
      f'--workdir={directory.workdir} was made with another config: '
      f'{"; ".join(lines)}. Give another --workdir, or --resume_config=new '
      'to go on from its checkpoint with the new config.'
    )
  return not lines


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
