r"""Predicts files of your own with what was trained.

    python -m launch.predict --workdir=runs/demo --inputs=photos/new
    python -m launch.predict --workdir=runs/text --inputs=new.csv \
      --outputs=out.csv

--inputs is a file or a folder: of images; of texts or other rows, as .csv,
.jsonl, .txt (a text a line) or .npz, with the columns of the training set; or,
for a run on series, a .csv. Labels are not needed. A classifier gives classes
and probabilities, a model that writes gives texts, one of series forecasts of
what comes behind the file, or scores of the rows that came since the run was
trained (of its test rows, if none did). --outputs=FILE.csv or
FILE.jsonl; without, lines of JSON are printed.
"""

import csv
import io
import json
import pathlib

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import places
from launch.lib import restored
from repjax import files
from repjax import types

_FLAGS = restored.define_flags()
_INPUTS = flags.DEFINE_string(
  'inputs', None, 'File or folder that is predicted.', required=True
)
_OUTPUTS = flags.DEFINE_string(
  'outputs', '', 'File that is written, .csv or .jsonl; prints JSON if empty.'
)


def main() -> None:
  """Restores a checkpoint and predicts."""
  place = pathlib.Path(_OUTPUTS.value)
  if _OUTPUTS.value and place.suffix.lower() not in ('.csv', '.jsonl'):
    raise types.InputError(
      f'--outputs={place}: the name of a file that ends in .csv or .jsonl.'
    )
  if not _INPUTS.value:
    raise types.InputError('--inputs is empty: give a file or a folder.')
  place = files.path_of(_OUTPUTS.value)
  if _OUTPUTS.value:
    _check(place, files.path_of(_INPUTS.value))
  made = restored.restore(_FLAGS)

  from launch.lib import trained

  predicted = trained.of(made).predict(_INPUTS.value)
  header, lines = predicted.table()
  logging.info(
    'step %d, %s row(s) of %s', int(made.state.step), len(lines), _INPUTS.value
  )
  import jax

  if jax.process_index():
    return  # One of several says it.
  if not _OUTPUTS.value:
    print(_json(header, lines), end='', flush=True)
    return
  write = _json if place.suffix.lower() == '.jsonl' else _csv
  place.parent.mkdir(parents=True, exist_ok=True)
  files.replace(place, write(header, lines))
  logging.info('predictions: %s', place)


def _check(place, inputs):
  """Refuses a file that cannot be written, before anything is predicted."""
  if place.resolve() == inputs.resolve():
    raise types.InputError(
      f'--outputs={place} is what is predicted: give another file.'
    )
  if inputs.is_dir() and inputs.resolve() in place.resolve().parents:
    raise types.InputError(
      f'--outputs={place} is inside of --inputs, where it would be what the '
      'next call predicts: give a file elsewhere.'
    )
  if place.is_dir():
    raise types.InputError(f'--outputs={place} is a folder: give a file.')
  places.check(place, f'--outputs={place}')


def _csv(header, lines):
  text = io.StringIO(newline='')
  csv.writer(text, lineterminator='\n').writerows([header, *lines])
  return text.getvalue()


def _json(header, lines):
  return ''.join(
    json.dumps(dict(zip(header, map(_plain, line), strict=True))) + '\n'
    for line in lines
  )


def _plain(value):
  """A value as JSON has it."""
  if isinstance(value, np.datetime64):
    return str(value)
  return value.item() if isinstance(value, np.generic) else value


if __name__ == '__main__':
  app.run(main)
