"""A work directory that was trained: its experiment and one of its states.

Or, where none is asked for, what a config starts from: published weights.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import Any
from typing import NamedTuple

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch.lib import app
from launch.lib import recipes
from repjax import files
from repjax import types


class Flags(NamedTuple):
  """The flags that say what is restored.

  Attributes:
    config: --config, of a recipe that is none of repjax's own.
    workdir: --workdir.
    step: --step, the checkpoint.
    data_dir: --data_dir.
  """

  config: Any
  workdir: flags.FlagHolder
  step: flags.FlagHolder
  data_dir: flags.FlagHolder


class Restored(NamedTuple):
  """What was trained.

  Attributes:
    workdir: Where.
    experiment: Built again, as it was trained.
    state: As the checkpoint has it.
    config: Its numbers.
    said: 'file' and 'preset' of the recipe that was executed, and what
      config.json says.
  """

  workdir: pathlib.Path
  experiment: types.Experiment
  state: types.TrainState
  config: Any
  said: Mapping[str, Any]


def define_flags(*, needs_workdir: bool = True) -> Flags:
  """Defines the flags of `restore` and `start`, and those of devices.

  Args:
    needs_workdir: False where `start` will do.
  """
  config = config_flags.DEFINE_config_file(
    'config',
    None,
    "Config file to execute where the run's is none of repjax's own, with its "
    'preset; --config.x.y=value changes fields of the run.',
  )
  workdir = flags.DEFINE_string(
    'workdir',
    None,
    'A directory of launch.train.'
    + " '' takes what --config starts from." * (not needs_workdir),
    required=needs_workdir,
  )
  step = flags.DEFINE_string(
    'step', 'latest', 'Checkpoint: a step, latest, or best.'
  )
  data_dir = app.define_data_dir()
  app.define_devices()
  return Flags(config, workdir, step, data_dir)


def restore(
  given: Flags, *, changes: Mapping[str, Any] | None = None
) -> Restored:
  """Builds the experiment of a work directory and reads a checkpoint.

  Joins the job's processes first.

  Args:
    given: The flags.
    changes: Fields of the config, 'a.b', over those of the run and the flags.
  """
  workdir = files.path_of(given.workdir.value)
  if not (workdir / 'checkpoints').is_dir():
    raise types.InputError(
      f'--workdir={workdir} holds no checkpoints: give a directory that '
      'launch.train has written.'
    )
  said = _said(workdir, given)
  app.initialize()
  overrides: dict[str, Any] = {}
  if given.config is not None and given.config.value is not None:
    overrides = config_flags.get_override_values(flags.FLAGS['config'])
  return _read(
    workdir,
    said,
    given.step.value,
    data_dir=given.data_dir.value,
    changes={**overrides, **(changes or {})},
  )


def load(
  workdir: str,
  *,
  step: str = 'latest',
  data_dir: str = '',
  changes: Mapping[str, Any] | None = None,
  field: str = 'workdir',
) -> Restored:
  """A work directory of one of repjax's own recipes, without flags.

  Args:
    workdir: Where it was trained.
    step: Of the checkpoint: a number, 'latest' or 'best'.
    data_dir: Where its data are now; '' for where they were.
    changes: Fields of the config, 'a.b', over those of the run.
    field: What names the directory, for messages.
  """
  path = files.path_of(workdir)
  if not (path / 'checkpoints').is_dir():
    raise types.InputError(
      f'{field}={workdir} holds no checkpoints: give directories that '
      'launch.train has written.'
    )
  said = _written(path)
  said = {**said, 'file': recipes.own_recipe(said['file'])}
  return _read(path, said, step, data_dir=data_dir, changes=changes or {})


def again(made: Restored, changes: Mapping[str, Any]) -> Restored:
  """The same recipe and checkpoint, with further changes of the config.

  Args:
    made: What was restored.
    changes: Fields of the config, 'a.b', over those that `made` has.
  """
  from configs import presets

  step = str(int(made.state.step))
  changes = {**presets.fields(made.config), **changes}
  return _read(made.workdir, made.said, step, data_dir='', changes=changes)


def batch_of(experiment: types.Experiment) -> types.HostBatch:
  """Rows as they are predicted: of the first split that has inputs."""
  first = None
  for split in experiment.eval_splits:
    batch = next(iter(experiment.evals(split)))
    if any(name in batch for name in types.INPUTS):
      return batch
    first = batch if first is None else first
  return experiment.train.batch(0) if first is None else first


def beside(workdir: str, given: Flags, field: str) -> Restored:
  """The newest checkpoint of a further work directory, after `restore`.

  Args:
    workdir: Which one; of one of repjax's own recipes.
    given: The flags: --data_dir counts for it, too.
    field: The flag that names it.
  """
  return load(workdir, data_dir=given.data_dir.value, field=field)


def _read(workdir, said, step, *, data_dir, changes) -> Restored:
  """What stands in a work directory, with changes over its config."""
  from launch.lib import building
  from repjax import checkpoint
  from repjax import loop
  from repjax.data.own import kept_classes

  stored_fields = dict(said)
  module = recipes.load_config_module(stored_fields.pop('file'))
  preset = stored_fields.pop('preset')
  config = module.get_config(*([preset] if preset else []))
  if stored_fields:
    recipes.update(config, stored_fields)
  store = checkpoint.Checkpoints(
    str(workdir / 'checkpoints'),
    keep=config.run.keep,
    best=config.run.best,
    best_mode=config.run.best_mode,
    read_only=True,
  )
  stored = store.read(step=_step(store, step))
  if stored is None:
    raise types.InputError(f'{workdir} holds no checkpoint yet.')
  _as_trained(config, stored, workdir)
  _with_what_it_kept(config, workdir)
  config.update_from_flattened_dict(changes)
  if data_dir:
    config.data.dir = data_dir
  experiment = building.build(module, config, preset)
  kept_classes.check(workdir, experiment, config)
  state = checkpoint.as_state(
    stored,
    loop.init(experiment.method, experiment.train.batch(0), config.seed),
  )
  return Restored(workdir, experiment, state, config, said)


def start(given: Flags) -> tuple[types.Experiment, types.TrainState]:
  """What a run of --config would start from: published weights, say.

  Joins the job's processes first.
  """
  if given.step.present:
    raise types.InputError(
      '--step is of a --workdir, and there is none: leave it out.'
    )
  if given.config.value is None:
    raise types.InputError(
      'Give --workdir, a directory of launch.train, or --config with '
      '--config.weights=... for what a run would start from.'
    )
  app.initialize()

  from launch.lib import building
  from repjax import loop

  file, preset = app.config_name()
  module, config = recipes.load_config_module(file), given.config.value
  if given.data_dir.value:
    config.data.dir = given.data_dir.value
  experiment = building.build(module, config, preset)
  fresh = loop.init(experiment.method, experiment.train.batch(0), config.seed)
  return experiment, experiment.warm_start(fresh)


def draw(workdir: pathlib.Path, figures: Any) -> None:
  """Saves figures, name -> figure, beside those of the run, where one may."""
  from repjax import report

  if not figures:
    return
  try:
    run = report.Run(workdir)
    for name, figure in figures.items():
      run.figure(name, figure)
  except (types.InputError, OSError) as error:
    logging.warning('No plots are written: %s', error)


def file_name(split: str) -> str:
  """A split as a part of a file's name."""
  return re.sub(r'[\[:/~]+', '_', split).replace(']', '')


def _said(workdir: pathlib.Path, given: Flags) -> dict[str, Any]:
  """What config.json says, with the 'file' that is executed and its 'preset'.

  With --config only these two, where config.json is damaged.
  """
  try:
    said = _written(workdir)
  except types.InputError as error:
    if given.config.value is None:
      raise types.InputError(
        f'{error}. Give --config, with which the run was made.'
      ) from error
    logging.warning('%s', error)
    said = {}
  if given.config.value is None:
    return {**said, 'file': recipes.own_recipe(said['file'])}
  file, preset = app.config_name()
  return {**said, 'file': file, 'preset': preset or said.get('preset', '')}


def _written(workdir: pathlib.Path) -> dict[str, Any]:
  """What config.json says, with the 'file' and 'preset' of its recipe."""
  said = files.read_json(workdir / 'config.json', 'config')['config']
  named = ('file', 'preset')
  if isinstance(said, dict) and not said.keys() & set(named):
    raise types.InputError(
      f'{workdir / "config.json"} names no recipe, as after run.fit without '
      "origin={'file': ..., 'preset': ...}"
    )
  if not isinstance(said, dict) or not all(
    isinstance(said.get(x), str) for x in named
  ):
    raise types.InputError(
      f'{workdir / "config.json"} is damaged: it names no recipe'
    )
  return said


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
  changed = {**kept, 'run': config.run.to_dict()}
  if 'data' in kept:  # Whoever has a config of their own may have none.
    changed['data'] = {**kept['data'], 'dir': config.data.dir}
  recipes.update(config, changed)


def _with_what_it_kept(config, workdir) -> None:
  """A run sees series by its splits and scales, and texts by its subwords."""
  from repjax.experiments import kept_series
  from repjax.experiments import kept_tokens

  kept = dict(fitted=kept_series.FILE, tokenizer=kept_tokens.FILE)
  for field, name in kept.items():
    if field in config.run and (workdir / name).exists():
      config.run[field] = str(workdir / name)


def _step(store, step) -> int | None:
  if step == 'latest':
    return None
  if step == 'best':
    best = store.best_step()
    if best is None:
      raise types.InputError(
        '--step=best: this run kept no best checkpoint (config.run.best).'
      )
    return best
  try:
    return int(step)
  except ValueError:
    raise types.InputError(
      f'--step={step!r} is neither a number nor latest nor best.'
    ) from None
