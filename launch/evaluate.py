"""Evaluates a finished or running work directory on any split.

python -m launch.evaluate --workdir=/tmp/vit --split=test --step=best
"""

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import restored
from repjax import files

_FLAGS = restored.define_flags()
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split to evaluate, for example test or train[:10%].'
)


def main() -> None:
  """Restores a checkpoint and prints its metrics as one JSON object."""
  workdir, experiment, state = restored.restore(_FLAGS)

  from repjax import loop

  split = _SPLIT.value
  evaluator = loop.Evaluator(experiment.method)
  seen = evaluator(state, experiment.evals(split), split=split)
  values = experiment.measure(*seen)
  step = int(state.step)
  logging.info('step %d, %d rows', step, len(seen[1]['mask']))
  line = files.json_line({'step': step, 'split': split, **values})
  print(line, end='', flush=True)
  name = restored.file_name(split)
  figures = experiment.figures(split, *seen)
  restored.draw(workdir, {f'{name}_{k}': x for k, x in figures.items()})


if __name__ == '__main__':
  app.run(main)
