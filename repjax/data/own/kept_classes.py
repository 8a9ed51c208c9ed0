"""The names of a run's classes and what its rows are, in its work directory.

Files of one's own may have changed since: a folder that was renamed would give
its name to what was learned of another. So a run that goes on, is evaluated or
predicts has the classes that it began with, or says so; and one that goes on
has the rows, whatever their folder is called now.
"""

import hashlib
import pathlib
from typing import Any
from typing import Literal

import jax

from repjax import files
from repjax import types
from repjax.data.batches import in_order
from repjax.data.reading import prepared
from repjax.data.reading import source

_FILE, _KEY, _ROWS = 'classes.json', 'classes', 'rows'


def keep(
  workdir: pathlib.Path,
  experiment: types.Experiment,
  config: Any,
  resume_config: Literal['same', 'new'] = 'same',
) -> tuple[types.Experiment, bool]:
  """Checks the classes and the rows of a run, or has it keep them.

  They are written when the run begins: a launch that is refused, as one beside
  a run that holds the directory, leaves those that it finds.

  Args:
    workdir: Of the run.
    experiment: Of the run.
    config: Its numbers; of sets that are no files of one's own nothing is kept.
    resume_config: 'new' lets a run go on with other rows.

  Returns:
    The experiment, which is to be run, and whether it goes on with other rows.

  Raises:
    InputError: The run began with other classes, or with other rows.
  """
  if not _is_own(config):
    return experiment, False
  names, anew = names_of(experiment), False
  if _has_learned(workdir):
    check(workdir, experiment, config)
    anew = _has_other_rows(workdir, experiment, config)
    if anew and resume_config == 'same':
      raise types.InputError(
        f'--workdir={workdir} was trained on other rows than those of '
        f'{_file(config) or "--data_dir"}: give the data as they were, another '
        '--workdir, or --resume_config=new to go on with these.'
      )
  old = experiment.companion

  def begin(folder: pathlib.Path | None, step: int) -> None:
    old.begin(folder, step)
    rows = _rows(experiment, config)
    if jax.process_index() == 0:
      files.write_json(workdir / _FILE, {_KEY: names, _ROWS: rows})

  return experiment._replace(companion=old._replace(begin=begin)), anew


def _has_learned(workdir):
  return (workdir / 'report.json').exists() or any(
    (workdir / 'checkpoints').glob('[0-9]*')
  )


def _rows(experiment, config) -> str | None:
  """What the training rows are, as their files have them; None if unknown.

  A private run keeps none: it would tell who is in. Its guard compares rows.
  """
  if experiment.guard != types.Guard():
    return None
  if file := _file(config):
    with open(files.path_of(file), 'rb') as opened:
      return hashlib.file_digest(opened, 'sha256').hexdigest()
  split = config.data.train_split if 'train_split' in config.data else 'train'
  try:
    rows = source.load(config.data.name, split, data_dir=config.data.dir)
  except types.InputError:  # Of a recipe that reads them otherwise.
    return None
  return in_order.train_batches(
    rows, batch_size=1, seed=0, process_index=0, process_count=1
  ).fingerprint()


def _has_other_rows(workdir, experiment, config):
  kept = workdir / _FILE
  known = files.read_json(kept, _KEY).get(_ROWS) if kept.exists() else None
  # Runs from before kept none.
  return known is not None and known != _rows(experiment, config)


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
  if known is not None and known != names:  # None: there were no labels then.
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
  return names_of(experiment) if _is_own(config) else None


def _is_own(config):
  # Whoever has a config of their own may have no such group.
  named = 'data' in config and 'name' in config.data
  own = named and prepared.is_own(config.data.name, '')
  return own or bool(_file(config))


def _file(config) -> str:
  """A file of one's own that is read whole, JSON lines or proteins; or ''."""
  data = config.data if 'data' in config else {}
  fields = {'jsonl': 'file', 'proteins': 'path'}
  return data.get(fields.get(data.get('kind', ''), ''), '')
