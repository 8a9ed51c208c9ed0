"""Trains one model: flags -> config -> method -> loop -> work directory.

    python -m launch.train --config=configs/vit.py:small --workdir=runs/vit
    python -m launch.train --config=configs/vit.py:small --dry_run

Run the same command again to go on after an interruption. Fields of the
config are overridden with --config.x.y=value. --dry_run says how large, how
costly and how long the run would be, and writes nothing.
"""

from collections.abc import Callable
import functools
import tempfile
import threading
import time

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import process
from launch.lib import recipes
from repjax import types

_CONFIG = app.define_config()
_DATA_DIR = app.define_data_dir()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'Where the run is written and from where it resumes. May be left out with '
  'the smoke preset only: then nothing of the run is kept.',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run',
  False,
  'Only say what the run would be: parameters, flops and memory of a step, '
  'steps, and the time that they take here.',
)
_RESUME_CONFIG = flags.DEFINE_enum(
  'resume_config',
  'same',
  ['same', 'new'],
  'What to do when the work directory was made with another config: refuse, '
  'or go on from its checkpoint with the new one.',
)
_TRACK = flags.DEFINE_list(
  'track',
  ['tensorboard'],
  'What gets numbers and figures, too: tensorboard, wandb, mlflow.',
)
app.define_devices()
flags.mark_flag_as_required('config')


def main() -> None:
  """Builds the experiment of the flags and trains it."""
  if _DRY_RUN.value:
    _describe()
    return
  _, preset = app.config_name()
  if _WORKDIR.value:
    _train(_WORKDIR.value)
  elif preset == 'smoke':
    with tempfile.TemporaryDirectory(prefix='repjax-') as workdir:
      _train(workdir)
    logging.info('nothing of it is kept: no --workdir was given')
  else:
    raise types.InputError(
      '--workdir is missing: give a folder for the run, for example '
      '--workdir=runs/first. Only the smoke preset goes without.'
    )


def _describe() -> None:
  app.initialize()

  from launch.lib import dry_run
  from launch.lib import step_memory
  from repjax.tracking import writers

  writers.check(_TRACK.value)
  with step_memory.explained(_CONFIG.value, _helps):
    for line in dry_run.describe(_experiment(), _CONFIG.value, _helps):
      print(line, flush=True)


def _experiment() -> types.Experiment:
  from launch.lib import building

  file, preset = app.config_name()
  config = _CONFIG.value
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  module = recipes.load_config_module(file)
  usual = module.get_config(*([preset] if preset else []))
  building.check_stage(config, building.overrides(config, usual))
  return building.build(module, config, preset)


@functools.cache
def _known() -> Callable[[str, object], bool]:
  from launch.lib import building

  file, preset = app.config_name()
  return building.helps(recipes.load_config_module(file), _CONFIG.value, preset)


def _helps(name: str, value: object) -> bool:
  """Whether another value of a field would change this run; see `building`."""
  return _known()(name, value)


def _train(workdir: str) -> None:
  started = time.monotonic()
  file, preset = app.config_name()
  app.initialize()

  from launch.lib import step_memory
  from repjax import report
  from repjax import run
  from repjax.tracking import writers

  # Whether it can be written, before data are read.
  track = writers.several(_TRACK.value)
  report.Run(workdir)
  logging.info('reading data and building the network')
  experiment = _experiment()
  with step_memory.explained(_CONFIG.value, _helps):
    run.fit(
      experiment,
      _CONFIG.value,
      workdir,
      origin={'file': file, 'preset': preset},
      resume_config='new' if _RESUME_CONFIG.value == 'new' else 'same',
      asked_to_stop=_catch_signals(),
      started=started,
      track=track,
      compiled=functools.partial(step_memory.say, _CONFIG.value, _helps),
    )


def _catch_signals() -> Callable[[], bool]:
  """SIGTERM and SIGINT ask the run to stop; a second one ends it at once.

  With several processes `jax.distributed` listens for SIGTERM itself.

  Returns:
    Whether the run was asked to stop.
  """
  import jax

  asked = threading.Event()
  if jax.process_count() > 1:
    return asked.is_set

  def stop(name):
    asked.set()
    logging.warning('%s: stopping after this step', name)

  process.on_signal(stop)
  return asked.is_set


if __name__ == '__main__':
  app.run(main)
