"""What a sweep can know of its trials before it starts one."""

from collections.abc import Sequence
from typing import Any

from absl import logging
import ml_collections

from launch.lib import recipes
from launch.lib import space as spaces
from launch.lib import trials
from repjax import types


def config_of(
  sweep: trials.Sweep, module: Any, fields: spaces.Fields
) -> ml_collections.ConfigDict:
  """The config of one candidate."""
  config = module.get_config(*([sweep.preset] if sweep.preset else []))
  config.update_from_flattened_dict(sweep.overrides)
  for name, value in fields.items():
    recipes.set_field(config, name, value)
  for flag in sweep.train_flags:
    if flag.startswith('--data_dir='):
      config.data.dir = flag.partition('=')[2]
  return config


def check_built(
  sweep: trials.Sweep, candidates: Sequence[spaces.Fields]
) -> None:
  """Refuses candidates that no run could be made of, before any trains.

  Raises:
    InputError: What `build` says of the first of them, and its fields.
  """
  import jax

  from launch.lib import building

  jax.config.update('jax_platforms', 'cpu')
  module = recipes.load_config_module(sweep.file)
  for fields in candidates:
    try:
      with building.explained(dict(fields)):
        config = config_of(sweep, module, fields)
        building.build(module, config, sweep.preset, looks_at_network=False)
    except types.InputError as error:
      named = ', '.join(f'{name}={value}' for name, value in fields.items())
      raise types.InputError(f'{named}: {error}') from error


def check_metric(
  sweep: trials.Sweep, candidates: Sequence[spaces.Fields]
) -> None:
  """Refuses a metric that the trials will not measure, by the first of them.

  Raises:
    InputError: With what there is.
  """
  import jax

  from repjax import run

  # Trials need the accelerator; this process only looks at an experiment.
  jax.config.update('jax_platforms', 'cpu')
  module = recipes.load_config_module(sweep.file)
  try:
    names = run.measures(module.build(config_of(sweep, module, candidates[0])))
  # Whatever is wrong with it, the trial will say, and others may go; and data
  # may be on the machines of the trials alone.
  except Exception as error:
    logging.warning('--metric=%s is not checked: %s', sweep.metric, error)
    return
  if sweep.metric not in names:
    raise types.InputError(
      f'--metric={sweep.metric} will not be measured; there are '
      f'{", ".join(names)}.'
    )
