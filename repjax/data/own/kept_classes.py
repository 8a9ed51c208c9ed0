"""The names of a run's classes, kept in its work directory.

Files of one's own may have changed since: a folder that was renamed would give
its name to what was learned of another. So a run that goes on, is evaluated or
predicts has the classes that it began with, or says so.
"""

import pathlib
from typing import Any

import jax

from repjax import files
from repjax import types
from repjax.data.batches import in_order
from repjax.data.reading import prepared

_FILE, _KEY = 'classes.json', 'classes'


def keep(
  workdir: pathlib.Path, experiment: types.Experiment, config: Any
) -> types.Experiment:
  """Checks the names of the classes of a run, or has it keep them.

  They are written when the run begins: a launch that is refused, as one beside
  a run that holds the directory, leaves those that it finds.

  Args:
    workdir: Of the run.
    experiment: Of the run.
    config: Its numbers; of sets that are no files of one's own nothing is kept.

  Returns:
    The experiment, which is to be run.

  Raises:
    InputError: The run began with other classes.
  """
  names = _names(experiment, config)
  if names is None:
    return experiment
  if _has_learned(workdir):
    check(workdir, experiment, config)
  old = experiment.companion

  def begin(folder: pathlib.Path | None, step: int) -> None:
    old.begin(folder, step)
    # A run that was stopped before its first checkpoint has learned none.
    if jax.process_index() == 0 and not (
      _has_learned(workdir) and (workdir / _FILE).exists()
    ):
      files.write_json(workdir / _FILE, {_KEY: names})

  return experiment._replace(companion=old._replace(begin=begin))


def _has_learned(workdir):
  return (workdir / 'report.json').exists() or any(
    (workdir / 'checkpoints').glob('[0-9]*')
  )


def check(
  workdir: pathlib.Path, experiment: types.Experiment, config: Any
) -> None:
  """Refuses data whose classes are not those of the run.

  Args:
    workdir: Of the run.
    experiment: With the data as they are now.
    config: Its numbers.

  Raises:
    InputError: They differ in their names or in their order.
  """
  names, kept = _names(experiment, config), workdir / _FILE
  if names is None or not kept.exists():
    return
  known = files.read_json(kept, _KEY)[_KEY]
  if known != names:
    pairs = zip(known, names, strict=False)
    renamed = [f'{x!r} is now {y!r}' for x, y in pairs if x != y]
    sizes = f'there are {len(names)}, and were {len(known)}'
    place = [*renamed, sizes][0]
    raise types.InputError(
      f'The classes of --data_dir are not those that {workdir} was trained on: '
      f'{place}. Give the data as they were, or another --workdir.'
    )


def names_of(experiment: types.Experiment) -> list[str] | None:
  """Names of the classes of the rows that a run is evaluated on, or None."""
  for split in experiment.eval_splits:
    batches = experiment.evals(split)
    if isinstance(batches, in_order.EvalBatches):
      names = batches.source.class_names
      if names is not None:
        return list(names)
  return None


def _names(experiment, config):
  """Names of the classes of an experiment's own files, or None."""
  # Whoever has a config of their own may have no such group.
  named = 'data' in config and 'name' in config.data
  own = named and prepared.is_own(config.data.name, '')
  return names_of(experiment) if own else None
