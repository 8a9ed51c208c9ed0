"""Trains one model: flags -> config -> method -> loop -> work directory.

    python -m launch.train --config=configs/vit.py:small --workdir=/tmp/vit

Run the same command again to go on after an interruption. Fields of the
config are overridden with --config.x.y=value.
"""

import signal
import tempfile
import threading
import time

from absl import flags
from absl import logging

from launch import app
from repjax import types

_CONFIG = app.define_config()
_DATA_DIR = app.define_data_dir()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'Where the run is written and from where it resumes. May be left out with '
  'the smoke preset only: then a temporary folder is used.',
)
_RESUME_CONFIG = flags.DEFINE_enum(
  'resume_config',
  'same',
  ['same', 'new'],
  'What to do when the work directory was made with another config: refuse, '
  'or go on from its checkpoint with the new one.',
)
app.define_devices()
flags.mark_flag_as_required('config')


def main() -> None:
  """Builds the experiment of the flags and trains it."""
  started = time.monotonic()
  file, preset = app.config_name()
  workdir = _workdir(preset)
  app.initialize()

  from repjax import report

  run = report.Run(workdir)
  config = _CONFIG.value
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  experiment = app.load_config_module(file).build(config)
  finished = run.result()
  if finished is not None and _same(finished['config'], config, workdir):
    logging.info('%s is finished: %s', workdir, finished['result'])
    return
  run.start({'file': file, 'preset': preset, **config.to_dict()})
  train(experiment, config, run, started=started)


def train(experiment: types.Experiment, config, run, *, started: float):
  """Fits, evaluates, saves and reports one experiment in one directory."""
  import jax

  from repjax import checkpoint
  from repjax import loop
  from repjax import parallel
  from repjax import plots
  from repjax import private
  from repjax import report
  from repjax import trees

  identity = app.identity(config)
  store = checkpoint.Checkpoints(
    str(run.workdir / 'checkpoints'),
    keep=config.run.keep,
    best=config.run.best,
    best_mode=config.run.best_mode,
  )
  # Before any compute, so that a run never trains what it cannot resume.
  first = experiment.train.batch(0)
  state = fresh = loop.init(experiment.method, first, config.seed)
  is_private = experiment.privacy is not None
  if is_private:
    private.check(experiment, fresh, best=config.run.best)
  restored = store.restore(state)
  if restored is not None:
    state, stored = restored
    same = _same(stored, config, run.workdir)
    if is_private:
      private.check_resumed(fresh, state, same_config=same)
    step = int(state.step)
    store.set_aside_after(step)
    run.truncate(step)
    logging.info('resuming from the checkpoint of step %d', step)
  else:
    state = experiment.warm_start(state)
    run.truncate(-1)
  start = int(state.step)
  logging.info(
    '%s parameters, %s steps of %s rows',
    f'{trees.size(state.params):,}',
    f'{experiment.steps:,}',
    f'{experiment.batch_size:,}',
  )

  evaluator = loop.Evaluator(experiment.method)
  progress = loop.Progress(
    every=config.run.log_every,
    steps=experiment.steps,
    batch_size=experiment.batch_size,
    write=run.write,
    start=start,
    also=lambda step: (
      {'epsilon': experiment.privacy(step).epsilon} if is_private else {}
    ),
  )
  measured = {}  # Of the last evaluation: what the report ends with.

  def evaluate(state):
    values = {}
    for split in experiment.eval_splits:
      outputs, columns = evaluator(state, experiment.evals(split))
      numbers = experiment.measure(outputs, columns)
      values.update({f'{split}/{name}': x for name, x in numbers.items()})
      measured[split] = (outputs, columns)
    return values

  def evaluate_and_save(step, state, sums):
    del sums
    last = step == experiment.steps
    evaluates = last or _due(step, config.run.eval_every)
    if not evaluates and not _due(step, config.run.save_every):
      return
    progress.check(state)
    with progress.pause():
      values = {}
      if evaluates:
        values = evaluate(state)
        logging.info('step %s  %s', f'{step:,}', _summary(values))
        run.write(step, values)
      store.save(state, identity, values)

  asked = _catch_signals()

  def stop(step, state, sums):
    del sums
    if parallel.agree_to_stop(step, asked=asked.is_set()):
      progress.check(state)
      store.save(state, identity)
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
      hooks=(progress, evaluate_and_save, stop),
    )
    if not measured:  # Nothing was left to train.
      evaluate(state)
  except types.NonFiniteError as error:
    store.wait()
    kept = store.steps()
    raise types.NonFiniteError(
      f'{error}. Checkpoints from before it are kept: {kept or "none"}. '
      'Try a smaller --config.tx.learning_rate or another --config.seed.'
    ) from error
  store.close()

  for name, figure in plots.curves(run.history()).items():
    run.figure(name, figure)
  result = {}
  for split, (outputs, columns) in measured.items():
    numbers = experiment.measure(outputs, columns)
    result.update({f'{split}/{name}': x for name, x in numbers.items()})
    for name, figure in experiment.figures(split, outputs, columns).items():
      run.figure(f'{split}_{name}', figure)
  run.finish(
    {
      'result': result,
      'steps': experiment.steps,
      'best_step': store.best_step(),
      **(
        {'privacy': experiment.privacy(experiment.steps).to_dict()}
        if is_private
        else {}
      ),
      'params_crc32': trees.crc32(jax.device_get(state.params)),
      'seconds': time.monotonic() - started,
      'train_seconds': progress.train_seconds,
      'config': identity,
      **report.environment(),
    }
  )
  logging.info(
    'finished %s steps in %.0f s (%.0f s of training): %s',
    f'{experiment.steps:,}',
    time.monotonic() - started,
    progress.train_seconds,
    _summary(result),
  )
  logging.info('plots: %s', run.workdir / 'plots')
  logging.info('report: %s', run.workdir / 'report.json')


def _workdir(preset: str) -> str:
  if _WORKDIR.value:
    return _WORKDIR.value
  if preset != 'smoke':
    raise types.InputError(
      '--workdir is missing: give a folder for the run, for example '
      '--workdir=runs/first. Only the smoke preset goes without.'
    )
  return tempfile.mkdtemp(prefix='repjax-')


def _same(stored, config, workdir) -> bool:
  """Whether a work directory was made with this config; refuses if not."""
  from repjax import checkpoint

  lines = checkpoint.differing_fields(stored, app.identity(config))
  if lines and _RESUME_CONFIG.value == 'same':
    raise types.InputError(
      f'--workdir={workdir} was made with another config: '
      f'{"; ".join(lines)}. Give another --workdir, or --resume_config=new '
      'to go on from its checkpoint with the new config.'
    )
  return not lines


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _summary(values) -> str:
  from repjax import metrics

  return metrics.summary(values)


def _catch_signals() -> threading.Event:
  """SIGTERM and SIGINT ask the run to stop; a second one ends it at once.

  With several processes `jax.distributed` listens for SIGTERM itself.
  """
  import jax

  asked = threading.Event()
  if jax.process_count() > 1:
    return asked

  def handler(number, frame):
    del frame
    if asked.is_set():
      raise KeyboardInterrupt
    asked.set()
    logging.warning('%s: stopping after this step', signal.Signals(number).name)

  signal.signal(signal.SIGTERM, handler)
  signal.signal(signal.SIGINT, handler)
  return asked


if __name__ == '__main__':
  app.run(main)
