"""Host side: what keeps the numbers of a run, besides its work directory.

    track = writers.several(('tensorboard', 'wandb'))
    run.fit(experiment, config, workdir, track=track)

All of them are a `report.Writer`. TensorBoard's files lie in the work
directory, so that what goes wrong is an error. The others are of somebody
else's house, by the user's own client and account, and a run that has trained
for a day does not end because that house is closed: it warns, once, and goes on
without.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import importlib.util
import pathlib
from typing import Any

from absl import logging

from repjax import report
from repjax import types
from repjax.tracking import mlflow_runs
from repjax.tracking import wandb_runs

# What can be asked for -> what opens it, given a work directory.
_OPEN: Mapping[str, Callable[[pathlib.Path], report.Writer]] = {
  'tensorboard': report.Events,
  'wandb': wandb_runs.Run,
  'mlflow': mlflow_runs.Run,
}
NAMES = tuple(_OPEN)


def several(names: Iterable[str]) -> Callable[[pathlib.Path], report.Writer]:
  """What opens several writers, each of which gets all.

  Args:
    names: Some of `NAMES`.

  Raises:
    InputError: There is no such writer, or its client is not installed; when a
      work directory is given, if it cannot be opened.
  """
  names = tuple(names)
  check(names)
  return lambda workdir: _Several(names, workdir)


def check(names: Iterable[str]) -> None:
  """Raises InputError for a writer that there is not, or not here."""
  for name in names:
    types.check_choice('--track', name, NAMES)
    if name != 'tensorboard' and importlib.util.find_spec(name) is None:
      raise types.InputError(
        f'--track={name} needs its client: pip install -e ".[{name}]"'
      )


class _Several:
  """A writer that hands all to others, as long as they take it."""

  def __init__(self, names, workdir):
    self._open: dict[str, report.Writer] = {}
    for name in names:
      try:
        self._open[name] = _OPEN[name](workdir)
      except (OSError, types.InputError):
        raise
      except Exception as error:  # Whatever a client raises.
        raise types.InputError(f'--track={name}: {error}') from error

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    self._each(lambda writer: writer.hyperparameters(fields))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._each(lambda writer: writer.scalars(step, values))

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    self._each(lambda writer: writer.image(step, name, path))

  def close(self, *, finished: bool) -> None:
    self._each(lambda writer: writer.close(finished=finished))

  def _each(self, call):
    for name, writer in list(self._open.items()):
      try:
        call(writer)
      except Exception as error:  # Whatever a client raises.
        if name == 'tensorboard':
          raise
        logging.warning(
          '--track=%s takes nothing more of this run, which goes on: %s',
          name,
          ' '.join(str(error).split())[:300],
        )
        del self._open[name]
