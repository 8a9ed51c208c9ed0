"""From a recipe and its overridden fields to an experiment, or to one line.

What `build` or a network raises about a value is written by whoever knows its
meaning, often a library. Here it gets the name of the overridden field.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import copy
import functools
import re
from typing import Any

import jax
import ml_collections

from configs import presets
from repjax import parallel
from repjax import types

# What names a field or a flag; config.json is a file.
_FIELD = re.compile(r'\bconfig\.(?!json)|(?<!\S)--\w')
# Fields that are shown where none is told by the message.
_SHOWN = 4
_BETTER = {'accuracy': 'max', 'loss': 'min'}  # Everyone knows it.


def build(
  module: Any,
  config: ml_collections.ConfigDict,
  preset: str,
  *,
  looks_at_network: bool = True,
  **more: Any,
) -> types.Experiment:
  """The experiment of a recipe, whose network can be made.

  Args:
    module: The recipe.
    config: Of its `get_config(preset)`, perhaps with other values.
    preset: '' for the recipe's default.
    looks_at_network: Whether it will be trained here.
    **more: Arguments of the recipe's `build` besides the config.

  Raises:
    InputError: Whatever went wrong, if a field was overridden.
  """
  usual = module.get_config(*([preset] if preset else []))
  with explained(overrides(config, usual)):
    presets.check(config)
    check_best(config)
    experiment = module.build(config, **more)
    if looks_at_network:
      batch = experiment.train.batch(0)
      row = {name: x[:1] for name, x in batch.items()}
      jax.eval_shape(experiment.method.init, jax.random.key(0), row)
  return experiment


def helps(
  module: Any, config: ml_collections.ConfigDict, preset: str
) -> Callable[[str, Any], bool]:
  """Whether a run takes another value of a field, and is another by it.

  A method whose rows are compared takes no parts of a step, and of the groups
  of networks that a recipe has, one counts. What knows it is the recipe's
  `build` and a step of what it makes, so both are tried, without compiling.

  Args:
    module: The recipe.
    config: Of the run, as it is built.
    preset: '' for the recipe's default.

  Returns:
    (field, 'a.b', value) -> whether it is accepted and changes the step; yes
    where that cannot be found out.
  """

  def program(changed):
    experiment = build(module, changed, preset)
    batch = experiment.train.batch(0)
    rows = {
      k: x[: len(x) // jax.local_device_count()] for k, x in batch.items()
    }
    rng = jax.random.key(0)
    first = {name: x[:1] for name, x in rows.items()}
    state = jax.eval_shape(experiment.method.init, rng, first)
    step: Any = parallel.train_step(
      experiment.method.update, jax.local_devices()[:1]
    )
    return step.lower(state, rows, rng).as_text()

  @functools.cache
  def usual():
    try:
      return program(copy.deepcopy(config))
    except Exception:  # Where a device is full, for one, nothing can be built.
      return None

  def tried(name, value):
    if usual() is None:
      return True
    changed = copy.deepcopy(config)
    with changed.unlocked():
      changed.update_from_flattened_dict({name: value})
    try:
      return program(changed) != usual()
    except Exception:  # Whatever it raises, the run does not take it.
      return False

  return tried


def overrides(
  config: ml_collections.ConfigDict, usual: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Fields of a config, 'a.b', that have other values than the preset's."""
  before = presets.fields(usual)
  return {
    name: value
    for name, value in presets.fields(config).items()
    # NaN is unlike itself.
    if name not in before or value != before[name]
  }


def check_best(config: ml_collections.ConfigDict) -> None:
  """Refuses to keep the checkpoint that is the worst by a known measure."""
  found = presets.fields(config)
  mode, best = (str(found.get(f'run.{x}', '')) for x in ('best_mode', 'best'))
  better = _BETTER.get(best.rpartition('/')[2], mode)
  if mode != better:
    raise types.InputError(
      f'config.run.best={best} with config.run.best_mode={mode} keeps the '
      f'worst checkpoint: set --config.run.best_mode={better}.'
    )


def check_stage(config: Any, changed: dict[str, Any]) -> None:
  """Refuses overridden fields in whose place a run's stage has its own.

  Args:
    config: Perhaps with `stage` and `stages`, each with fields of its own.
    changed: Of `overrides`.
  """
  if 'stages' not in config or config.stage not in config.stages:
    return
  own = presets.fields(config.stages[config.stage])
  for name in changed:
    if name in own:
      raise types.InputError(
        f'--config.{name}={changed[name]} counts for nothing in config.stage='
        f'{config.stage}, which has its own: give '
        f'--config.stages.{config.stage}.{name}.'
      )


@contextlib.contextmanager
def explained(changed: dict[str, Any]) -> Iterator[None]:
  """Makes one line, which names fields, of what is raised inside."""
  try:
    yield
  except (OSError, types.NonFiniteError, types.PreemptedError):
    raise
  except Exception as error:
    text = ' '.join(str(error).split())
    ours = isinstance(error, types.InputError)
    if not changed or (ours and _FIELD.search(text)):
      raise
    if not ours:
      text = text[:300]
      if not isinstance(error, ValueError):
        text = f'{type(error).__name__}: {text} (--verbosity=1 says where)'
    raise types.InputError(f'{_named(changed, text)}: {text}') from error


def _named(changed, text):
  """The fields that a message is about, as far as that can be told."""
  words = set(re.findall(r'[a-z]\w*', text))
  told = [name for name in changed if name.rpartition('.')[2] in words]
  # Where none is told, each may be the reason that changes what is computed.
  deciding = [x for x in changed if x != 'data.dir' and x[:4] != 'run.']
  suspects = told or deciding or list(changed)
  names, more = suspects[:_SHOWN], len(suspects[_SHOWN:])
  return ' '.join(
    [f'--config.{name}={changed[name]}' for name in names]
    + ([f'and {more} more'] if more else [])
  )
