"""Host side: what keeps the numbers of a run, by one small protocol.

    with TensorBoard, Weights & Biases and MLflow behind it:
    several = writers.Writers(('tensorboard', 'wandb'), workdir)

A work directory holds all of it in any case (`report`). TensorBoard writes
there, too, so that what goes wrong is an error; the others are of somebody
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
from typing import Protocol

from absl import logging

from repjax import types
from repjax.tracking import mlflow_runs
from repjax.tracking import tensorboard
from repjax.tracking import wandb_runs


class Writer(Protocol):
  """Keeps what a run says of itself."""

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    """What the run is: field, 'tx.learning_rate', -> value."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """A figure, as a PNG file."""

  def close(self, *, finished: bool) -> None:
    """Nothing more comes, or not before the run goes on."""


# What can be asked for -> what opens it, given a work directory.
_OPEN: Mapping[str, Callable[[pathlib.Path], Writer]] = {
  'tensorboard': tensorboard.Events,
  'wandb': wandb_runs.Run,
  'mlflow': mlflow_runs.Run,
}
NAMES = tuple(_OPEN)


def check(names: Iterable[str]) -> None:
  """Raises InputError for a writer that there is not, or not here."""
  for name in names:
    types.check_choice('--track', name, NAMES)
    if name != 'tensorboard' and importlib.util.find_spec(name) is None:
      raise types.InputError(
        f'--track={name} needs its client: pip install -e ".[{name}]"'
      )


class Writers:
  """Several writers, each of which gets all.

  Args:
    names: Of `NAMES`.
    workdir: Of the run.

  Raises:
    InputError: One cannot be opened; says why.
  """

  def __init__(self, names: Iterable[str], workdir: pathlib.Path):
    self._open: dict[str, Writer] = {}
    self._step = 0
    check(names)
    for name in names:
      try:
        self._open[name] = _OPEN[name](workdir)
      except (OSError, types.InputError):
        raise
      except Exception as error:  # Whatever a client raises.
        raise types.InputError(f'--track={name}: {error}') from error

  def hyperparameters(self, config: Mapping[str, Any]) -> None:
    """What the run is, by nested fields."""
    fields = flat(config)
    self._each(lambda writer: writer.hyperparameters(fields))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""
    self._step = step
    plain = {name: float(x) for name, x in values.items()}
    self._each(lambda writer: writer.scalars(step, plain))

  def image(self, name: str, path: pathlib.Path) -> None:
    """A figure of the last step, as a PNG file."""
    self._each(lambda writer: writer.image(self._step, name, path))

  def close(self, *, finished: bool) -> None:
    """Nothing more comes."""
    self._each(lambda writer: writer.close(finished=finished))
    self._open = {}

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


def flat(config: Mapping[str, Any], stem: str = '') -> dict[str, Any]:
  """Nested fields by one name each.

  >>> flat({'tx': {'rate': 0.1}, 'splits': ['test']})
  {'tx.rate': 0.1, 'splits': "['test']"}
  """
  fields: dict[str, Any] = {}
  for name, x in config.items():
    if isinstance(x, Mapping):
      fields |= flat(x, f'{stem}{name}.')
    else:
      is_plain = isinstance(x, bool | int | float | str)
      fields[f'{stem}{name}'] = x if is_plain else str(x)
  return fields
