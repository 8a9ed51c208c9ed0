"""Trains one model: flags -> config -> method -> loop -> work directory.

    python -m launch.train --config=configs/vit.py:small --workdir=/tmp/vit

Run the same command again to go on after an interruption. Fields of the
config are overridden with --config.x.y=value.
"""

from collections.abc import Callable
import tempfile
import threading
import time

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import process
from launch.lib import recipes
from repjax import files
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

  from launch.lib import building
  from launch.lib import kept_classes
  from repjax import report
  from repjax import run

  report.Run(workdir)  # Whether it can be written, before data are read.
  config = _CONFIG.value
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  experiment = building.build(recipes.load_config_module(file), config, preset)
  kept_classes.keep(files.path_of(workdir), experiment, config)
  run.fit(
    experiment,
    config,
    workdir,
    origin={'file': file, 'preset': preset},
    resume_config='new' if _RESUME_CONFIG.value == 'new' else 'same',
    asked_to_stop=_catch_signals(),
    started=started,
  )


def _workdir(preset: str) -> str:
  if _WORKDIR.value:
    return _WORKDIR.value
  if preset != 'smoke':
    raise types.InputError(
      '--workdir is missing: give a folder for the run, for example '
      '--workdir=runs/first. Only the smoke preset goes without.'
    )
  return tempfile.mkdtemp(prefix='repjax-')


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
