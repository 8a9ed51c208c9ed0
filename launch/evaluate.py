"""Evaluates a finished or running work directory on any split.

    python -m launch.evaluate --workdir=/tmp/vit --split=test --step=best

With --episodes=5x1 its features are judged by few-shot episodes: classifiers
learn 5 classes from one row each, on what the layer --layer gets, and all see
the same episodes.
"""

import pathlib
from typing import Any

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch.lib import app
from launch.lib import recipes
from repjax import files
from repjax import types

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  "Config file to execute where the run's is none of repjax's own, with its "
  'preset; --config.x.y=value changes fields of the run.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'A directory of launch.train.', required=True
)
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split to evaluate, for example test or train[:10%].'
)
_STEP = flags.DEFINE_string(
  'step', 'latest', 'Checkpoint: a step, latest, or best.'
)
_EPISODES = flags.DEFINE_string(
  'episodes', '', 'Judge features by episodes of ways x shots, such as 5x1.'
)
_QUERIES = flags.DEFINE_integer(
  'queries', 15, 'Rows of each class that an episode is judged by.'
)
_NUM_EPISODES = flags.DEFINE_integer('num_episodes', 600, 'Number of episodes.')
_LAYER = flags.DEFINE_string(
  'layer', 'head', 'Layer whose input the features are, names joined by /.'
)
_DATA_DIR = app.define_data_dir()
app.define_devices()


def main() -> None:
  """Restores a checkpoint and prints its metrics as one JSON object."""
  workdir = files.path_of(_WORKDIR.value)
  if not (workdir / 'checkpoints').is_dir():
    raise types.InputError(
      f'--workdir={workdir} holds no checkpoints: give a directory that '
      'launch.train has written.'
    )
  said = _said(workdir)
  from launch.lib import few_shot

  asked = few_shot.asked(_EPISODES.value) if _EPISODES.value else None
  app.initialize()

  from launch.lib import building
  from repjax import checkpoint
  from repjax import loop

  module = recipes.load_config_module(said.pop('file'))
  preset = said.pop('preset')
  config = module.get_config(*([preset] if preset else []))
  if said:
    recipes.update(config, said)
  store = checkpoint.Checkpoints(
    str(workdir / 'checkpoints'),
    keep=config.run.keep,
    best=config.run.best,
    best_mode=config.run.best_mode,
    read_only=True,
  )
  stored = store.read(step=_step(store))
  if stored is None:
    raise types.InputError(f'--workdir={workdir} holds no checkpoint yet.')
  _as_trained(config, stored, workdir)
  if _CONFIG.value is not None:
    config.update_from_flattened_dict(
      config_flags.get_override_values(flags.FLAGS['config'])
    )
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  experiment = building.build(module, config, preset)
  state = checkpoint.as_state(
    stored,
    loop.init(experiment.method, experiment.train.batch(0), config.seed),
  )
  split = _SPLIT.value
  if asked is not None:
    values = few_shot.measure(
      experiment,
      state,
      split,
      layer=_LAYER.value,
      ways=asked[0],
      shots=asked[1],
      queries=_QUERIES.value,
      count=_NUM_EPISODES.value,
      seed=config.seed,
    )
    line = {'step': int(state.step), 'split': split, **values}
    print(files.json_line(line), end='', flush=True)
    return
  evaluator = loop.Evaluator(experiment.method)
  seen = evaluator(state, experiment.evals(split), split=split)
  values = experiment.measure(*seen)
  step = int(state.step)
  logging.info('step %d, %d rows', step, len(seen[1]['mask']))
  line = files.json_line({'step': step, 'split': split, **values})
  print(line, end='', flush=True)
  _draw(workdir, experiment.figures(split, *seen))


def _said(workdir: pathlib.Path) -> dict[str, Any]:
  """What config.json says, with the 'file' that is executed and its 'preset'.

  With --config only these two, where config.json is damaged.
  """
  try:
    said = files.read_json(workdir / 'config.json', 'config')['config']
    if not isinstance(said, dict) or not all(
      isinstance(said.get(x), str) for x in ('file', 'preset')
    ):
      raise types.InputError(
        f'{workdir / "config.json"} is damaged: it names no recipe'
      )
  except types.InputError as error:
    if _CONFIG.value is None:
      raise types.InputError(
        f'{error}. Give --config, with which the run was made.'
      ) from error
    logging.warning('%s', error)
    said = {}
  if _CONFIG.value is None:
    return {**said, 'file': recipes.own_recipe(said['file'])}
  file, preset = app.config_name()
  return {**said, 'file': file, 'preset': preset}


def _as_trained(config, stored, workdir) -> None:
  """Sets all fields to those that the checkpoint was saved with."""
  from repjax import checkpoint
  from repjax import run

  kept = run.without_studies(stored.config)
  lines = checkpoint.differing_fields(run.identity(config), kept)
  if lines:
    logging.warning(
      '%s is not what the checkpoint was saved with, by which it is '
      'evaluated: %s',
      workdir / 'config.json',
      '; '.join(lines),
    )
  data = {**kept['data'], 'dir': config.data.dir}
  recipes.update(config, {**kept, 'run': config.run.to_dict(), 'data': data})


def _draw(workdir, figures):
  """Figures beside those of the run, where one may write."""
  from repjax import report

  if not figures:
    return
  try:
    run = report.Run(workdir)
    name = _SPLIT.value.replace('[', '_').replace(']', '').replace(':', '_')
    for kind, figure in figures.items():
      run.figure(f'{name}_{kind}', figure)
  except (types.InputError, OSError) as error:
    logging.warning('No plots are written: %s', error)


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
