"""Evaluates a finished or running work directory on any split.

python -m launch.evaluate --workdir=/tmp/vit --split=test --step=best
"""

import json
import pathlib

from absl import flags
from absl import logging

from launch.lib import app
from repjax import types

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'A directory of launch.train.', required=True
)
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split to evaluate, for example test or train[:10%].'
)
_STEP = flags.DEFINE_string(
  'step', 'latest', 'Checkpoint: a step, latest, or best.'
)
_DATA_DIR = app.define_data_dir()
app.define_devices()


def main() -> None:
  """Restores a checkpoint and prints its metrics as one JSON object."""
  workdir = pathlib.Path(_WORKDIR.value)
  if not (workdir / 'config.json').exists():
    raise types.InputError(
      f'--workdir={workdir} holds no config.json: give a directory that '
      'launch.train has written.'
    )
  app.initialize()

  from launch.lib import building
  from repjax import checkpoint
  from repjax import loop
  from repjax import report

  stored = json.loads((workdir / 'config.json').read_text('utf-8'))['config']
  module = app.load_config_module(app.find_config(stored.pop('file')))
  preset = stored.pop('preset')
  config = module.get_config(*([preset] if preset else []))
  app.update(config, stored)
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  experiment = building.build(module, config, preset)
  store = checkpoint.Checkpoints(
    str(workdir / 'checkpoints'),
    keep=config.run.keep,
    best=config.run.best,
    best_mode=config.run.best_mode,
    read_only=True,
  )
  state = loop.init(experiment.method, experiment.train.batch(0), config.seed)
  restored = store.restore(state, step=_step(store))
  if restored is None:
    raise types.InputError(f'--workdir={workdir} holds no checkpoint yet.')
  state, _ = restored
  evaluator = loop.Evaluator(experiment.method)
  outputs, columns = evaluator(state, experiment.evals(_SPLIT.value))
  values = experiment.measure(outputs, columns)
  logging.info('step %d, %d rows', int(state.step), len(columns['mask']))
  run = report.Run(workdir)
  name = _SPLIT.value.replace('[', '_').replace(']', '').replace(':', '_')
  for kind, figure in experiment.figures(
    _SPLIT.value, outputs, columns
  ).items():
    run.figure(f'{name}_{kind}', figure)
  print(json.dumps({'step': int(state.step), 'split': _SPLIT.value, **values}))


def _step(store) -> int | None:
  if _STEP.value == 'latest':
    return None
  if _STEP.value == 'best':
    best = store.best_step()
    if best is None:
      raise types.InputError(
        '--step=best: this run kept no best checkpoint (config.run.best).'
      )
    return best
  try:
    return int(_STEP.value)
  except ValueError:
    raise types.InputError(
      f'--step={_STEP.value!r} is neither a number nor latest nor best.'
    ) from None


if __name__ == '__main__':
  app.run(main)
