"""Evaluates a finished or running work directory on any split.

    python -m launch.evaluate --workdir=/tmp/vit --split=test --step=best

With --episodes=5x1 its features are judged by few-shot episodes: classifiers
learn 5 classes from one row each, on what the layer --layer gets, and all see
the same episodes. Without --workdir those of what --config starts from, such as
published weights (--config.weights=FILE of configs/vit.py, for example). The
JSON has every classifier over every other, and a table of it is logged. With
--base_split=train rows of that split, of other classes, lend to the few
(Distribution Calibration). An agent that learned by acting (`configs/sac.py`)
is judged by what it earns in test episodes.

Features of another program are judged by

    python -m launch.evaluate --features=my.npz --episodes=5x1

an .npz file of the arrays features [R, D] and labels [R], and, for Distribution
Calibration, base_features and base_labels of other classes.

With --outputs=DIR what is predicted is written as CSV: of series the forecasts,
those of a file of one's own by --config=configs/pyraformer.py
--config.data.file=my.csv, and by --split=future those of what comes behind it.
Rows that came since the run was trained are the split `new`; the others
are split and scaled as they were then.

With --inputs=PATH it is evaluated on files of your own in the place of a split:
a folder with one of images for each class, or a .csv, .jsonl or .npz with
labels; classes are found by their names. `launch.predict` needs no labels.
"""

import csv
import pathlib

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import places
from launch.lib import restored
from repjax import files
from repjax import types
from repjax.data.reading import prepared

_FLAGS = restored.define_flags(needs_workdir=False)
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split to evaluate, for example test or train[:10%].'
)
_INPUTS = flags.DEFINE_string(
  'inputs', '', 'Files with labels of your own to evaluate, instead of --split.'
)
_EPISODES = flags.DEFINE_string(
  'episodes', '', 'Judge features by episodes of ways x shots, such as 5x1.'
)
_QUERIES = flags.DEFINE_integer(
  'queries', 15, 'Rows of each class that an episode is judged by.'
)
_NUM_EPISODES = flags.DEFINE_integer('num_episodes', 600, 'Number of episodes.')
_EPISODE_SEED = flags.DEFINE_integer(
  'episode_seed', 0, 'Draws the episodes.', lower_bound=0, upper_bound=2**32 - 1
)
_LAYER = flags.DEFINE_string(
  'layer', 'head', 'Layer whose input the features are, names joined by /.'
)
_FEATURES = flags.DEFINE_string(
  'features', '', 'An .npz file of features to judge by --episodes, of no run.'
)
_BASE_SPLIT = flags.DEFINE_string(
  'base_split', '', 'Split whose classes, others, lend to those of episodes.'
)
_POWER = flags.DEFINE_float(
  'power',
  None,
  'Tukey power of features in episodes; .5, or 1 where some are negative.',
)
_NEIGHBOURS = flags.DEFINE_integer(
  'neighbours', 2, 'Base classes that lend to a row of an episode.'
)
_ALPHA = flags.DEFINE_float('alpha', 0.21, 'Added to what their rows spread.')
_NUM_DRAWN = flags.DEFINE_integer(
  'num_drawn', 750, 'Features that are drawn for each class of an episode.'
)
_SHRINKAGE = flags.DEFINE_float(
  'shrinkage', 0.0, 'Of covariances of base classes, in [0, 1].'
)
_OUTPUTS = flags.DEFINE_string(
  'outputs', '', 'Folder in which predictions are written as CSV files.'
)
# What only episodes heed, and of it what only Distribution Calibration does.
_OF_BASE = (_NEIGHBOURS, _ALPHA, _NUM_DRAWN, _SHRINKAGE)
_OF_EPISODES = (
  *(_QUERIES, _NUM_EPISODES, _EPISODE_SEED, _LAYER, _BASE_SPLIT, _POWER),
  *_OF_BASE,
)


def main() -> None:
  """Restores a checkpoint and prints its metrics as one JSON object."""
  from launch.lib import judged_features

  if _OUTPUTS.value:
    place = files.path_of(_OUTPUTS.value)
    places.check(place / 'a.csv', f'--outputs={place}')
  asked = judged_features.asked(_EPISODES.value) if _EPISODES.value else None
  if asked is None and not _FEATURES.value:
    _refuse(_OF_EPISODES, 'needs --episodes, such as 5x1')
  if asked is not None:
    _refuse((_OUTPUTS,), 'writes predictions, and --episodes makes none')
  if _FEATURES.value:
    _judge_file(asked)
    return
  if _INPUTS.value:
    _refuse((_SPLIT,), 'is what --inputs stands in the place of')
  of_episodes = asked and _of_episodes(asked, base=bool(_BASE_SPLIT.value))
  workdir: pathlib.Path | None = None
  if _FLAGS.workdir.value:
    workdir, experiment, state, config, _ = restored.restore(_FLAGS)
  else:
    experiment, state = restored.start(_FLAGS)
    config = _FLAGS.config.value

  import jax

  from repjax import loop

  split = _SPLIT.value
  if _INPUTS.value:
    from launch.lib import trained

    split = f'{prepared.LABELLED}:{_INPUTS.value}'
    trained.rows(experiment, config, split)  # Refuses what does not fit.
  if of_episodes is not None:
    judged = judged_features.measure(
      experiment,
      state,
      split,
      layer=_LAYER.value,
      base_split=_BASE_SPLIT.value,
      **of_episodes,
    )
    judged = {'step': int(state.step), 'split': split, **judged}
    if not jax.process_index():  # One of several says it.
      print(files.json_line(judged), end='', flush=True)
    return
  step = int(state.step)
  if not experiment.eval_splits:  # An agent that acts, in test episodes.
    _refuse((_OUTPUTS, _SPLIT), 'is of rows, and this run acts in a world')
    measures = experiment.companion.measures
    values = {name: float(measure(state)) for name, measure in measures.items()}
    print(files.json_line({'step': step, **values}), end='', flush=True)
    return
  evaluator = loop.Evaluator(experiment.method)
  seen = evaluator(state, experiment.evals(split), split=split)
  values = experiment.measure(*seen)
  logging.info('step %d, %d rows', step, len(seen[1]['mask']))
  if jax.process_index():
    return  # One of several says it.
  line = files.json_line({'step': step, 'split': split, **values})
  print(line, end='', flush=True)
  name = restored.file_name(split)
  if _OUTPUTS.value:
    _write(experiment.tables(split, *seen), files.path_of(_OUTPUTS.value), name)
  if workdir is not None:
    figures = experiment.figures(split, *seen)
    restored.draw(workdir, {f'{name}_{k}': x for k, x in figures.items()})


def _judge_file(asked):
  """Prints what classifiers make of features from elsewhere."""
  from launch.lib import features_file
  from launch.lib import judged_features

  if asked is None:
    raise types.InputError('--features needs --episodes, such as 5x1.')
  config, workdir = _FLAGS.config, _FLAGS.workdir
  for flag in (config, workdir, _INPUTS, _OUTPUTS, _BASE_SPLIT):
    if flag.value:
      raise types.InputError(
        f'--features are of no run: leave --{flag.name} out.'
      )
  _refuse(
    (_SPLIT, _LAYER, _FLAGS.step, _FLAGS.data_dir),
    'is of a run, and --features are of none',
  )
  path = files.path_of(_FEATURES.value)
  found = features_file.read(path)
  of_episodes = _of_episodes(asked, base=found.base is not None)
  app.initialize()
  judged = judged_features.judge(
    found.features, found.labels, base=found.base, **of_episodes
  )
  line = files.json_line({'features': str(path), **judged})
  print(line, end='', flush=True)


def _refuse(given, why):
  """Flags that would do nothing."""
  for flag in given:
    if flag.present:
      raise types.InputError(f'--{flag.name} {why}: leave it out.')


def _of_episodes(asked, *, base):
  from launch.lib import judged_features

  if not base:
    _refuse(
      _OF_BASE,
      'is of Distribution Calibration, which needs rows of base classes (by '
      '--base_split, or base_features in the file of --features)',
    )
  return dict(
    ways=asked[0],
    shots=asked[1],
    queries=_QUERIES.value,
    count=_NUM_EPISODES.value,
    seed=_EPISODE_SEED.value,
    settings=judged_features.Settings(
      power=_POWER.value,
      neighbours=_NEIGHBOURS.value,
      alpha=_ALPHA.value,
      num_drawn=_NUM_DRAWN.value,
      shrinkage=_SHRINKAGE.value,
    ),
  )


def _write(tables, folder, split):
  if not tables:
    raise types.InputError(
      '--outputs: runs of this recipe have no predictions to write as CSV.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  for name, (header, lines) in tables.items():
    path = folder / f'{split}_{name}.csv'
    # What was there stays until all is written.
    with (
      files.replacing(path) as partial,
      partial.open('w', newline='', encoding='utf-8') as file,
    ):
      csv.writer(file, lineterminator='\n').writerows([header, *lines])
    logging.info('%s: %s', name, path)


if __name__ == '__main__':
  app.run(main)
