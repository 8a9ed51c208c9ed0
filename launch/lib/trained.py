"""A work directory as a model that predicts: one line of a notebook.

    from launch.lib import trained
    found = trained.load('runs/demo')
    found.predict('photos/').table()

`found.model.apply(found.variables, images, train=False)` is the bare network.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

from absl import logging
import flax.linen as nn
import numpy as np

from launch.lib import restored
from repjax import loop
from repjax import types
from repjax.data.own import opening
from repjax.data.reading import prepared
from repjax.data.series import reading
from repjax.data.text import paired_text
from repjax.experiments import kept_series
from repjax.experiments import of_series
from repjax.export import networks
from repjax.metrics import classification

# As `experiment.tables` gives them: columns, and lines of them.
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


class Predicted(NamedTuple):
  """What was predicted.

  Attributes:
    names: What rows are called: files, or files and lines.
    outputs: Name -> one row an input, as `predict` of the method gives them.
    class_names: Of 'logits', [C]; None where no classes are predicted.
    tables: Name -> table, of recipes that have their own, such as forecasts.
  """

  names: Sequence[str]
  outputs: Mapping[str, np.ndarray]
  class_names: Sequence[str] | None
  tables: Mapping[str, Table]

  def table(self) -> Table:
    """Header and lines: classes and probabilities, or what the recipe writes.

    Raises:
      InputError: The recipe predicts neither.
    """
    if self.tables:
      header, lines = next(iter(self.tables.values()))
      if not self.names or header[0] != 'row':
        return header, lines
      named = [[self.names[int(row)], *line] for row, *line in lines]
      return ['input', *header[1:]], named
    if self.class_names is None:
      raise types.InputError(
        'Runs of this recipe predict neither classes nor tables, but '
        f'{", ".join(self.outputs)}: take them from launch.lib.trained.'
      )
    probabilities = np.exp(classification.log_softmax(self.outputs['logits']))
    best = probabilities.argmax(-1)
    header = ['input', 'predicted', 'probability']
    lines = [
      [name, self.class_names[i], row[i], *row]
      for name, i, row in zip(self.names, best, probabilities, strict=True)
    ]
    return [*header, *(f'p({x})' for x in self.class_names)], lines


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
  """A trained model.

  Attributes:
    workdir: Where it was trained.
    config: Its numbers.
    experiment: What trained it.
    state: As the checkpoint has it.
    said: What its directory says of its recipe, and the one that is executed.
  """

  workdir: pathlib.Path
  config: Any
  experiment: types.Experiment
  state: types.TrainState
  said: Mapping[str, Any]

  @functools.cached_property
  def network(self) -> networks.Network:
    """The network that `predict` applies, and what it is applied with.

    Raises:
      InputError: It applies none, or several.
    """
    return networks.of(
      self.experiment.method,
      self.state,
      restored.batch_of(self.experiment),
    )

  @property
  def model(self) -> nn.Module:
    """The linen module of `network`."""
    return self.network.module

  @property
  def variables(self) -> types.PyTree:
    """Parameters, or their average, and other collections of `network`."""
    return self.network.variables

  def predict(self, inputs: str | pathlib.Path) -> Predicted:
    """Predicts files, which need no labels; with them, too.

    Args:
      inputs: A file or a folder: of images, of texts or other rows (.csv,
        .jsonl, .txt, .npz); of series a .csv whose future is forecast, or that
        has grown and whose new rows are scored (else its test rows).

    Raises:
      InputError: They cannot be read, or are none that the run was trained on.
    """
    if 'data' not in self.config:
      raise types.InputError(
        'The recipe of this run has no config.data, which says how files are '
        'read: it predicts none.'
      )
    if {'horizon', 'label_column'} & {*self.config.data}:  # Series.
      return _of_series(self, str(inputs))
    split = f'{prepared.INPUTS}:{inputs}'
    batches = rows(self.experiment, self.config, split)
    outputs, columns = loop.Evaluator(self.experiment.method)(
      self.state, batches, split=split
    )
    data = self.config.data
    names = opening.named(data.name, split, data_dir=data.dir).rows
    class_names = None
    if 'logits' in outputs and outputs['logits'].ndim == 2:
      count = outputs['logits'].shape[1]
      class_names = batches.source.class_names or [str(i) for i in range(count)]
    return Predicted(
      names=names,
      outputs=outputs,
      class_names=class_names,
      tables={}
      if class_names
      else _as_lists(self.experiment.tables(split, outputs, columns)),
    )


def load(
  workdir: str | pathlib.Path,
  *,
  step: str = 'latest',
  data_dir: str = '',
) -> Trained:
  """What was trained in a work directory, from one of repjax's own recipes.

  Args:
    workdir: Of `launch.train`.
    step: Of the checkpoint: a number, 'latest' or 'best'.
    data_dir: Where its data are now; '' for where they were.

  Raises:
    InputError: There is no such checkpoint, or the data are not there.
  """
  return of(restored.load(str(workdir), step=step, data_dir=data_dir))


def of(made: restored.Restored) -> Trained:
  """The trained model of what was restored."""
  return Trained(**made._asdict())


def rows(experiment: types.Experiment, config: Any, split: str) -> Any:
  """Batches of files, of the shape that a run was trained on.

  Args:
    experiment: Of the run.
    config: Of the run.
    split: 'inputs:PATH' or 'labelled:PATH'.

  Raises:
    InputError: Files cannot be read, their rows have another shape, or runs of
      this recipe take none.
  """
  if not experiment.eval_splits:
    raise types.InputError(
      'This run acts in a world: there are no files that it could predict.'
    )
  batches = experiment.evals(split)
  read = batches.source
  if read.split != split:
    raise types.InputError(
      f'Runs of this recipe on config.data.name={config.data.name} take no '
      'files: their rows are made on the spot.'
    )
  data = config.data
  if 'column' in data and data.column:
    there = opening.named(data.name, split, data_dir=data.dir).columns
    path = split.partition(':')[2]
    wanted = paired_text.names(data.column, there)
    if len(wanted) > 1 and path.lower().endswith('.txt'):
      raise types.InputError(
        f'{path} has one text a line, and the run reads two, {data.column}: '
        'give a .csv or .jsonl with both columns.'
      )
    for column in set(wanted) - set(there):
      raise types.InputError(
        f'{path} has no column {column!r}, which the run reads '
        f'(config.data.column); it has {", ".join(there)}.'
      )
  usual, path = restored.batch_of(experiment), split.partition(':')[2]
  own = _image_shape(experiment)
  if own is not None and batches.decode is None:
    # Of what is stored: a transform may make something else of it.
    if read.encoded and read.image_shape is None:
      raise types.InputError(
        f'{path}: the images differ in size, and this run takes them as they '
        f'are: bring them to {own[0]} x {own[1]}.'
      )
    if read.image_shape not in (None, own):
      raise types.InputError(
        f"{path}: a row of 'image' is {read.image_shape}, and the run was "
        f'trained on {own}: bring them to that.'
      )
  found = _first(experiment, split)
  for name in types.INPUTS:
    if name not in usual:
      continue
    if name not in found or found[name].shape[1:] != usual[name].shape[1:]:
      there = found[name].shape[1:] if name in found else 'none'
      raise types.InputError(
        f'{path}: a row of {name!r} is {there}, and the run '
        f'was trained on {usual[name].shape[1:]}: bring them to that.'
      )
  return batches


def _image_shape(experiment):
  """(H, W, C) of the images of a run's own splits; None of many sizes."""
  for split in experiment.eval_splits:
    rows = getattr(experiment.evals(split), 'source', None)
    if rows is not None and rows.num_channels is not None:
      return rows.image_shape
  return None


def _first(experiment, split):
  return next(iter(experiment.evals(split)))


def _of_series(run, file):
  """Forecasts of what comes behind a file, or scores of its rows."""
  if not pathlib.Path(file).expanduser().is_file():
    raise types.InputError(f'There is no file {file}: give a .csv of series.')
  if not run.config.run.fitted:
    raise types.InputError(
      f'{run.workdir} has no {kept_series.FILE}, by whose scales files are '
      'predicted, as runs on spacecraft have none: launch.evaluate judges it '
      'by its own splits.'
    )
  there = restored.Restored(
    *(run.workdir, run.experiment, run.state, run.config, run.said)
  )
  changes = {'data.file': file}
  data = run.config.data
  if 'label_column' in data and data.label_column not in reading.header(file):
    changes['data.label_column'] = ''
  made = restored.again(there, changes)
  experiment = made.experiment
  split = of_series.FUTURE if 'horizon' in data else _scored(experiment)
  outputs, columns = loop.Evaluator(experiment.method)(
    made.state, experiment.evals(split), split=split
  )
  tables = _as_lists(experiment.tables(split, outputs, columns))
  return Predicted([], outputs, None, tables)


def _scored(experiment):
  """The split whose rows are scored: those that are new, if there are any."""
  try:
    experiment.evals(kept_series.NEW)
  except kept_series.NothingNew:
    logging.info(
      'the file has no rows behind those that the run knew: its test rows are '
      'scored'
    )
    return experiment.eval_splits[-1]
  return kept_series.NEW


def _as_lists(tables):
  """Tables whose lines can be read more than once."""
  return {
    name: (x, [list(y) for y in lines]) for name, (x, lines) in tables.items()
  }
