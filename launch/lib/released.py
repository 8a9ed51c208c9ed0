"""What a private search publishes of its best trial: arrays, and no state."""

import pathlib

import numpy as np

from repjax import files

# Where a checkpoint has what a run predicts with; an average is what is scored.
_FROM = {
  'params/': 'params/',
  'model_state/': 'model_state/',
  'extra/params/': 'params/',
  'extra/statistics/': 'model_state/',
}


def save_params(trial: pathlib.Path, path: pathlib.Path) -> None:
  """The parameters that a trial's last checkpoint predicts with.

  Args:
    trial: Its work directory.
    path: File of safetensors to write.
  """
  import orbax.checkpoint as ocp
  from safetensors import numpy as safetensors

  steps = [
    int(x.name) for x in (trial / 'checkpoints').iterdir() if x.name.isdigit()
  ]
  with ocp.StandardCheckpointer() as reader:
    arrays = reader.restore(trial / 'checkpoints' / str(max(steps)) / 'state')
  kept = {
    to + name.removeprefix(begin): np.ascontiguousarray(x)
    for begin, to in _FROM.items()
    for name, x in arrays.items()
    if name.startswith(begin)
  }
  with files.replacing(path) as partial:
    safetensors.save_file(kept, partial)
