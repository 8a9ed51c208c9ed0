"""Host side: a run in Weights & Biases, by the user's own client.

Its settings are those of the client: `wandb login`, `WANDB_MODE=offline`,
`WANDB_PROJECT` ('repjax' if there is none), `WANDB_NAME` (the name of the work
directory if there is none). https://docs.wandb.ai/
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any
import uuid

from repjax.tracking import run_ids

_CLIENT = 'wandb'


class Run:
  """One run; a work directory that goes on goes on with its own.

  Steps that are made again after a resume are the same ones, bit for bit, and
  the client leaves them out; with --resume_config=new they are others, and what
  stands there is the old config's: another work directory begins anew.

  Args:
    workdir: Of the run; what the client writes is in its folder `wandb`.
  """

  def __init__(self, workdir: pathlib.Path):
    import wandb

    self._wandb = wandb
    run_id = run_ids.read(workdir, _CLIENT) or uuid.uuid4().hex[:12]
    run_ids.write(workdir, _CLIENT, run_id)
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'repjax'),
      name=os.environ.get('WANDB_NAME', workdir.name),
      id=run_id,
      resume='allow',
      dir=str(workdir),
      settings=wandb.Settings(console='off', quiet=True),
    )

  def hyperparameters(self, fields: Mapping[str, Any]) -> None:
    """What the run is."""
    self._run.config.update(dict(fields), allow_val_change=True)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers of a step."""
    self._run.log(dict(values), step=step)

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """A figure, as a PNG file."""
    image = self._wandb.Image(str(path))
    self._run.log({f'plots/{name}': image}, step=step)

  def close(self, *, finished: bool) -> None:
    """Ends the run, or the part of it that was made now."""
    self._run.finish(exit_code=0 if finished else 1)
