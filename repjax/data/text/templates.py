"""Host side: rows of a task written as instructions, by templates.

Wei et al., 'Finetuned Language Models Are Zero-Shot Learners', ICLR 2022
(https://arxiv.org/abs/2109.01652), section 2.1: a task is told in about ten
ways, some of which turn it around (write a review that is ...).
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import string

import numpy as np

from repjax import types

# The field that stands for the list of options, and the column they are in.
OPTIONS, COLUMN = 'options_', 'options'


@dataclasses.dataclass(frozen=True)
class Template:
  """What is read and what is to be written, with {field} for a row's columns.

  `{options_}` is the row's options as FLAN lists them. Text is what it says:
  there are no conversions or formats.

  Attributes:
    source: What the model reads.
    target: What it is to write.
    inverted: Whether the task is turned around, which no evaluation is by.
  """

  source: str
  target: str
  inverted: bool = False

  def __post_init__(self):
    fields = fields_of(self.source) | fields_of(self.target)
    if not fields:
      raise types.InputError(
        f'the template {self.source!r} has no {{field}} of a row'
      )
    if COLUMN in fields:
      raise types.InputError(
        f'the template {self.source!r} has the field {COLUMN!r}: write '
        f'{{{OPTIONS}}} for the list of options'
      )
    if OPTIONS in fields_of(self.target):
      raise types.InputError(
        f'the template {self.source!r} has its options in the target, where '
        'they would be the answer'
      )

  @functools.cached_property
  def fields(self) -> frozenset[str]:
    """Columns that a row must have."""
    found = fields_of(self.source) | fields_of(self.target)
    return frozenset(COLUMN if x == OPTIONS else x for x in found)

  def write(self, row: Mapping[str, object]) -> tuple[str, str]:
    """(source, target) of a row.

    Raises:
      InputError: The row lacks a column.
    """
    missing = sorted(self.fields - set(row))
    if missing:
      raise types.InputError(
        f'the template {self.source!r} needs {missing}, and a row has '
        f'{sorted(row)}'
      )
    values = {name: row[name] for name in self.fields - {COLUMN}}
    if COLUMN in self.fields:
      values[OPTIONS] = listed(row[COLUMN])  # type: ignore[arg-type]
    return _filled(self.source, values), _filled(self.target, values)


def fields_of(text: str) -> set[str]:
  """Names in braces.

  Raises:
    InputError: A field is none: without a name, or with a format.
  """
  found = set()
  try:
    parts = _parsed(text)
  except ValueError as error:
    raise types.InputError(f'the template {text!r}: {error}') from error
  for _, name, form, conversion in parts:
    if name is None:
      continue
    if not name.isidentifier() or form or conversion:
      raise types.InputError(
        f'the template {text!r} has the field {name!r}: fields are names of '
        'columns, without formats'
      )
    found.add(name)
  return found


def listed(options: Iterable[str]) -> str:
  """Options as FLAN lists them: a line each, under a line 'OPTIONS:'.

  Raises:
    InputError: There are none, or two are the same.
  """
  options = [*options]
  if not options or len(set(options)) != len(options):
    raise types.InputError(f'options must be different and some: {options}')
  return 'OPTIONS:\n' + '\n'.join(f'- {x}' for x in options)


def check_answer(
  answer: str, options: Sequence[str], *, task: str, row: int
) -> None:
  """Raises InputError unless the answer is one of the options."""
  # As a list: a text would hold its parts, too.
  if answer not in [*options]:
    raise types.InputError(
      f'row {row} of the task {task!r} has the answer {answer!r}, which is '
      f'none of its options {[*options]}'
    )


def in_turn(num_rows: int, num_templates: int) -> np.ndarray:
  """Which template each row is written by: all of them equally often.

  As in the authors' code, row i has template i modulo the number of templates,
  and the rows that are left over at the end have none, -1.
  """
  types.check_range('[1, inf)', num_templates=num_templates)
  place = np.arange(num_rows)
  whole = num_rows // num_templates * num_templates
  return np.where(place < whole, place % num_templates, -1)


def with_stray(template: Template, column: str) -> Template:
  """A template as nine of the authors' are: 'n' in the place of a new line.

  The character stands behind a field, and models were trained with it: for
  comparisons with them. The right form is without.
  """
  field = f'{{{column}}}'
  return dataclasses.replace(
    template, source=template.source.replace(f'{field}\n', f'{field}n')
  )


@functools.lru_cache(maxsize=4096)
def _parsed(text):
  """Its literals and fields; thousands of rows are written by each template."""
  return tuple(string.Formatter().parse(text))


def _filled(text, values):
  parts = []
  for literal, name, _, _ in _parsed(text):
    parts.append(literal)
    if name is not None:
      parts.append(str(values[name]))
  return ''.join(parts)
