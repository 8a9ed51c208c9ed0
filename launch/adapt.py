"""Adapts a work directory to a stream without labels; says what it is worth.

    python -m launch.adapt --workdir=runs/cifar --corruption=contrast,fog

The network as it was trained, with statistics of each batch, with statistics
between those and the trained ones, and with Tent's updates of its norms see the
same stream, once; labels are for the table alone. Prints the table, and writes
adapt_<split>.json and plots into the work directory, which is not changed
otherwise. Any run will do that predicts classes and has norms. Runs on one
device.
"""

import pathlib
import re
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import restored
from repjax import files
from repjax import types

_FLAGS = restored.define_flags()
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split that streams by, for example test or train[:10%].'
)
_CORRUPTION = flags.DEFINE_list(
  'corruption',
  ['none'],
  'Names of corruptions, each a stream of its own; "none" is the split as it '
  'is, "common" all 15, "held_out" the four to choose settings on.',
)
_SEVERITY = flags.DEFINE_integer('severity', 5, 'Of the corruption.', 1, 5)
_SCALE = flags.DEFINE_enum(
  'scale',
  'cifar',
  ['cifar', 'imagenet'],
  'Constants of the corruption: for images of about 32 or of 224 pixels.',
)
_ORDER = flags.DEFINE_enum(
  'order',
  'shuffled',
  ['shuffled', 'sorted', 'as_it_is'],
  'Order of the stream; "sorted" is by label.',
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 200, 'Rows of a batch.', 1)
_OPTIMIZER = flags.DEFINE_enum(
  'optimizer', 'adam', ['adam', 'sgd'], 'Of Tent; sgd has momentum 0.9.'
)
_RATE = flags.DEFINE_float('learning_rate', 1e-3, 'Of Tent.')
_STEPS = flags.DEFINE_integer('steps', 1, 'Updates of Tent a batch.', 1)
_WHEN = flags.DEFINE_enum(
  'predict',
  'before',
  ['before', 'after'],
  'Whether Tent predicts a batch before the update that it makes, as in the '
  "authors' code, or after it, by one more forward pass.",
)
_BLEND = flags.DEFINE_float(
  'blend', 200.0, 'Rows that the trained statistics count as in "blended".'
)
_CONFIDENCE = flags.DEFINE_float(
  'confidence',
  1.0,
  'Share of the largest entropy below which rows count in Tent; 1 for all.',
)
_RESET_EVERY = flags.DEFINE_integer(
  'reset_every', 0, 'Batches between resets of Tent; 1: episodic, 0: none.', 0
)
_RESET_BELOW = flags.DEFINE_float(
  'reset_below',
  0.0,
  'Share of the largest entropy: Tent is reset when a moving average of its '
  'entropy falls below.',
)
_ONLY = flags.DEFINE_string(
  'only', '', 'Regular expression of scales and biases that adapt; all if "".'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of corruption and order.', 0)


def main() -> None:
  """Runs all forms over each stream and prints a table of their errors."""
  streams = _streams()
  for flag in (_SEVERITY, _SCALE):
    if flag.present and streams == ['none']:
      raise types.InputError(
        f'--{flag.name} is of corruptions, and --corruption names none: give '
        'some, such as --corruption=common, or leave it out.'
      )
  select = _select()
  types.check_range('(0, inf)', **{'--learning_rate': _RATE.value})
  types.check_range('(0, inf)', **{'--blend': _BLEND.value})
  types.check_range('(0, 1]', **{'--confidence': _CONFIDENCE.value})
  types.check_range('[0, 1)', **{'--reset_below': _RESET_BELOW.value})
  workdir, experiment, state, *_ = restored.restore(_FLAGS)

  import jax
  import optax

  from repjax import plots
  from repjax import start
  from repjax.data.batches import in_order
  from repjax.data.reading import decoded
  from repjax.protocols import adaptation

  if jax.process_count() > 1:
    raise types.InputError(
      'launch.adapt runs on one device: start one process.'
    )
  split = _SPLIT.value
  evals = experiment.evals(split)
  if not isinstance(evals, in_order.EvalBatches):
    raise types.InputError(
      f'--workdir={workdir} is a run whose {split} is no set of rows, of which '
      'a stream could be made.'
    )
  state = jax.device_put(
    jax.device_get(start.as_predicted(state)), jax.local_devices()[0]
  )

  source = evals.source
  if evals.decode is not None:
    # Corruptions are those of images as the network gets them.
    source = decoded.decoded(source, evals.decode)

  def batches(name):
    return in_order.eval_batches(
      adaptation.shifted(
        source,
        name,
        severity=_SEVERITY.value,
        scale='imagenet' if _SCALE.value == 'imagenet' else 'cifar',
        order=_order(),
        seed=_SEED.value,
      ),
      batch_size=_BATCH_SIZE.value,
      transform=evals.transform,
    )

  first = batches(streams[0]).batch(0)
  shapes = jax.eval_shape(experiment.method.predict, state, first)
  if (
    'logits' not in shapes
    or shapes['logits'].ndim != 2
    or ('label' not in first)
  ):
    raise types.InputError(
      f'--workdir={workdir} is a run that predicts no classes: entropy over '
      'classes is what adapts.'
    )
  made = adaptation.forms(
    experiment.method.predict,
    state,
    first,
    optax.adam(_RATE.value)
    if _OPTIMIZER.value == 'adam'
    else optax.sgd(_RATE.value, momentum=0.9),
    blend=_BLEND.value,
    select=select,
    steps=_STEPS.value,
    when='after' if _WHEN.value == 'after' else 'before',
    confidence=_CONFIDENCE.value,
    reset_every=_RESET_EVERY.value,
    reset_below=_RESET_BELOW.value,
  )
  step = jax.jit(made.step)
  table, errors = {}, {}
  for name in streams:
    logits, labels = _run(step, state, made.init(state), batches(name))
    table[name] = adaptation.measure(
      logits, labels, window=max(_BATCH_SIZE.value, 200)
    )
    errors[name] = {k: x.argmax(-1) != labels for k, x in logits.items()}
    _warn(name, table[name])
  print(_as_text(table), end='', flush=True)
  _write(workdir, int(state.step), table)
  restored.draw(workdir, _figures(plots, restored.file_name(split), errors))


def _run(step, state, adapted, batches):
  """Logits of each form and labels, of all rows in the order of the stream."""
  import jax

  from repjax.protocols import adaptation

  logits, labels = {}, []
  for batch in batches:
    adapted, outputs = step(
      state, adapted, {k: x for k, x in batch.items() if k != 'index'}
    )
    real = batch['mask'] > 0
    labels.append(batch['label'][real])
    for name, x in jax.device_get(outputs).items():
      logits.setdefault(name, []).append(x[real])
  return (
    {x: np.concatenate(logits[x]) for x in adaptation.NAMES if x in logits},
    np.concatenate(labels),
  )


def _streams() -> list[str]:
  """Names of corruptions; refuses unknown ones before anything is read."""
  from repjax import trees
  from repjax.data.images import corruptions

  groups = {'common': corruptions.COMMON, 'held_out': corruptions.HELD_OUT}
  known = ('none', *corruptions.COMMON, *corruptions.HELD_OUT)
  names = [x for name in _CORRUPTION.value for x in groups.get(name, (name,))]
  for name in names:
    if name not in known:
      raise types.InputError(
        f'--corruption={name}: there is none of this name.'
        f'{trees.nearest(name, known)} There are {", ".join(known)}, common '
        'and held_out.'
      )
  if not names:
    raise types.InputError('--corruption names no stream: give at least one.')
  return list(dict.fromkeys(names))


def _select():
  try:
    only = re.compile(_ONLY.value)
  except re.error as error:
    raise types.InputError(
      f'--only={_ONLY.value} is no regular expression: {error}.'
    ) from error
  return lambda path: only.search('/'.join(path)) is not None


def _order() -> Any:
  return _ORDER.value.replace('_', ' ')


def _warn(name, measured):
  row = measured['Tent']['collapsed_at']
  if row is not None:
    logging.warning(
      '%s: Tent collapses near row %d: it predicts few classes, and is sure of '
      'them. Try a smaller --learning_rate, --reset_every or --confidence=0.4.',
      name,
      row,
    )


def _as_text(table) -> str:
  """Errors in percent, a row a stream and a column a form."""
  arms = list(next(iter(table.values())))
  width = max(len(x) for x in (*table, 'error [%]'))
  rows = [[100 * table[name][arm]['error'] for arm in arms] for name in table]
  named = list(zip(table, rows, strict=True))
  if len(named) > 1:
    named.append(('mean', np.mean(rows, 0)))
  lines = [f'{"error [%]":{width}}' + ''.join(f'{arm:>10}' for arm in arms)]
  lines += [
    f'{name:{width}}' + ''.join(f'{x:10.1f}' for x in row)
    for name, row in named
  ]
  return '\n'.join(lines) + '\n'


def _write(workdir: pathlib.Path, step: int, table) -> None:
  path = workdir / f'adapt_{restored.file_name(_SPLIT.value)}.json'
  settings = {
    x.name: x.value
    for x in (
      _SPLIT,
      _SEVERITY,
      _SCALE,
      _ORDER,
      _BATCH_SIZE,
      _OPTIMIZER,
      _RATE,
      _STEPS,
      _WHEN,
      _BLEND,
      _CONFIDENCE,
      _RESET_EVERY,
      _RESET_BELOW,
      _ONLY,
      _SEED,
    )
  }
  try:
    files.write_json(path, {'step': step, **settings, 'streams': table})
    logging.info('table: %s', path)
  except OSError as error:
    logging.warning('The table is not written: %s', error)


def _figures(plots, split, errors):
  """Errors of all streams, and how they go on average along the stream."""
  arms = list(next(iter(errors.values())))
  along = {}
  for arm in arms:
    wrong = np.mean([x[arm] for x in errors.values()], 0)
    rows = np.arange(1, len(wrong) + 1)
    along[arm] = rows, np.cumsum(wrong) / rows
  return {
    f'adapt_{split}': plots.bars(
      {
        name.replace('_', '\n'): {k: np.array([v.mean()]) for k, v in x.items()}
        for name, x in errors.items()
      },
      ylabel='error',
    ),
    f'adapt_{split}_along': plots.lines(
      along, xlabel='rows of the stream', ylabel='error so far'
    ),
  }


if __name__ == '__main__':
  app.run(main)
