"""Host side: a run in MLflow, by the user's own client.

Its settings are those of the client: `MLFLOW_TRACKING_URI`,
`MLFLOW_EXPERIMENT_NAME` ('repjax' if there is none). https://mlflow.org/docs/
"""

from collections.abc import Mapping
import os
import pathlib
import re
import time
from typing import Any

from repjax.tracking import run_ids

_CLIENT = 'mlflow'
# What MLflow allows of names, values and numbers of parameters at once.
_STRANGE, _LONGEST, _AT_ONCE = r'[^\w\-./ ]', 500, 100


class Run:
  """One run; a work directory that goes on goes on with its own.

  Args:
    workdir: Of the run.
  """

  def __init__(self, workdir: pathlib.Path):
    import mlflow

    self._entities = mlflow.entities
    self._client = mlflow.MlflowClient()
    self._id = run_ids.read(workdir, _CLIENT)
    if self._id:
      self._client.update_run(self._id, status='RUNNING')
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'repjax')
    found = self._client.get_experiment_by_name(name)
    group = (
      self._client.create_experiment(name)
      if found is None
      else found.experiment_id
    )
    made = self._client.create_run(group, run_name=workdir.name)
    self._id = made.info.run_id
    run_ids.write(workdir, _CLIENT, self._id)

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    """What the run is; what it was before stays, as MLflow wants it."""
    known = self._client.get_run(self._id).data.params
    params = [
      self._entities.Param(_name(name), str(x)[:_LONGEST])
      for name, x in fields.items()
      if _name(name) not in known
    ]
    for first in range(0, len(params), _AT_ONCE):
      self._client.log_batch(self._id, params=params[first : first + _AT_ONCE])

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""
    now = int(1000 * time.time())
    self._client.log_batch(
      self._id,
      metrics=[
        self._entities.Metric(_name(name), x, now, step)
        for name, x in values.items()
      ],
    )

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """A figure, as a PNG file."""
    del step, name  # The file has its name, and a run one of each.
    self._client.log_artifact(self._id, str(path), 'plots')

  def close(self, *, finished: bool) -> None:
    """Ends the run, or the part of it that was made now."""
    self._client.set_terminated(
      self._id, status='FINISHED' if finished else 'KILLED'
    )


def _name(name: str) -> str:
  return re.sub(_STRANGE, '_', name)
