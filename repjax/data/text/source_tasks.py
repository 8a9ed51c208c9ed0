"""Host side: a task of instructions from any source of texts and answers.

Whatever `source.load` opens (prepared sets, a CSV or JSONL file of one's own)
or `source.from_arrays` wraps, told by templates as in Wei et al., ICLR 2022
(https://arxiv.org/abs/2109.01652), section 2.1.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import instructions
from repjax.data.text import templates as telling

# What stands in the row of a task for the column with its answers.
_ANSWER = 'answer'


def of_source(
  source: sources.Source,
  name: str,
  *,
  clusters: Sequence[str],
  templates: Sequence[telling.Template],
  answer: str = 'label',
  options: Sequence[str] = (),
  fields: Mapping[str, str] | None = None,
) -> instructions.Task:
  """A task, for `instructions.Suite`.

  >>> films = sources.from_arrays(
  ...   'films', {'text': ['Fine.', 'Dull.'], 'label': [1, 0]}
  ... )
  >>> ask = telling.Template('Is it good? {text} {options_}', '{answer}')
  >>> task = of_source(
  ...   films,
  ...   'films',
  ...   clusters=['sentiment'],
  ...   templates=[ask],
  ...   options=['no', 'yes'],
  ... )
  >>> [x.target for x in task.examples()]
  ['yes', 'no']

  Args:
    source: Rows; texts lose the blanks around them.
    name: Of the task.
    clusters: What it belongs to, one or several.
    templates: Ways to tell it: of columns, {answer}, and {options_}.
    answer: The column of answers: classes, which become their names, or texts.
    options: What is chosen from: names of classes in their order, or texts. ()
      takes the source's names of classes; answers that are texts then have no
      options.
    fields: Name in templates -> column, where they differ.

  Raises:
    InputError: The source lacks a column, one holds no texts, or an answer is
      none of the options; names the task, and the template or the row.
  """
  columns = {_ANSWER: answer, **(fields or {})}
  known = set(source.read([0]))
  if answer not in known:
    raise types.InputError(
      f'the task {name!r}: {source.name} has no column {answer!r} of answers, '
      f'but {sorted(known)}: name one by `answer`'
    )
  asked: set[str] = {_ANSWER}
  for template in templates:
    wanted = template.fields - {telling.COLUMN}
    missing = sorted(x for x in wanted if columns.get(x, x) not in known)
    if missing:
      raise types.InputError(
        f'the task {name!r}: the template {template.source!r} needs {missing}, '
        f'and {source.name} has {sorted(known)}: name columns by `fields`'
      )
    asked |= wanted
  values = {
    x: _texts(source.column(columns.get(x, x)), name, columns.get(x, x))
    for x in sorted(asked - {_ANSWER})
  }
  answers = source.column(answer)
  classes = np.issubdtype(answers.dtype, np.integer)
  choices = tuple(options) or (source.class_names or () if classes else ())
  listing = [x.source for x in templates if telling.COLUMN in x.fields]
  if listing and not choices:
    raise types.InputError(
      f'the task {name!r}: the template {listing[0]!r} lists options, and '
      'there are none: name them by `options`'
    )
  if classes and (choices or source.num_classes is not None):
    values[_ANSWER] = _named(answers, choices, name)
  else:
    values[_ANSWER] = _texts(answers, name, answer)
  shared: dict[str, Any] = {telling.COLUMN: tuple(choices)} if choices else {}
  rows = [
    {**dict(zip(values, row, strict=True)), **shared}
    for row in zip(*values.values(), strict=True)
  ]
  # Which answers are none of the options, says the task.
  return instructions.Task(name, tuple(clusters), rows, templates)


def _named(labels, names, task):
  """Names of classes, a row each."""
  wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
  if wrong.size:
    raise types.InputError(
      f'row {wrong[0]} of the task {task!r} has the class {labels[wrong[0]]}, '
      f'and options name {len(names)}, from 0 on: {[*names]}'
    )
  return [names[x] for x in labels]


def _texts(column, task, name):
  """Texts without blanks around them; numbers as Python writes them."""
  found = []
  for row, value in enumerate(column):
    if isinstance(value, bytes):
      value = value.decode('utf-8', 'replace')
    if np.ndim(value):
      raise types.InputError(
        f'row {row} of the task {task!r} has an array of shape '
        f'{np.shape(value)} in the column {name!r}, which is no text'
      )
    if isinstance(value, float | np.floating) and np.isnan(value):
      raise types.InputError(
        f'row {row} of the task {task!r} has no number in the column {name!r}: '
        'fill it in, or leave out the row'
      )
    found.append(str(value).strip())
  return found
