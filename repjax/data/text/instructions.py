"""Host side: tasks in clusters, of which one is never trained on.

Wei et al., 'Finetuned Language Models Are Zero-Shot Learners', ICLR 2022
(https://arxiv.org/abs/2109.01652), section 2.2: a model is judged on a cluster
of tasks, none of which, and nothing alike, it has been trained on.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import files
from repjax import types
from repjax.data.text import templates


class Example(NamedTuple):
  """A row that is written out, and where it comes from.

  Attributes:
    source: What the model reads.
    target: What it is to write.
    options: What it chooses from, or ().
    task: Name of the task.
    template: Number of the template; -1 of an example from a file.
    row: Number of the task's row.
  """

  source: str
  target: str
  options: tuple[str, ...]
  task: str
  template: int
  row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Rows and the ways to tell them.

  Attributes:
    name: Of the task.
    clusters: What it belongs to, one or several.
    rows: Columns by name, a row each; with options, 'options' holds them.
    templates: Ways to tell it.
    answer: The column that must be among the options.
  """

  name: str
  clusters: tuple[str, ...]
  rows: Sequence[Mapping[str, Any]]
  templates: Sequence[templates.Template]
  answer: str = 'answer'

  def __post_init__(self):
    if not self.clusters or not self.rows or not self.templates:
      raise types.InputError(
        f'the task {self.name!r} needs clusters, rows and templates'
      )
    for number, row in enumerate(self.rows):
      if templates.COLUMN in row:
        if self.answer not in row:
          raise types.InputError(
            f'row {number} of the task {self.name!r} has options and no column '
            f'{self.answer!r}: say by `answer` which one has the right option'
          )
        templates.check_answer(
          row[self.answer], row[templates.COLUMN], task=self.name, row=number
        )

  def examples(self, *, cap: int | None = None) -> list[Example]:
    """Rows written by all templates in turn; what is left over is dropped.

    Args:
      cap: Rows that are used at most; the paper has 30,000.

    Raises:
      InputError: There are fewer rows than templates, so that none is left.
    """
    rows = self._first(cap)
    if len(rows) < len(self.templates):
      raise types.InputError(
        f'the task {self.name!r} has {len(rows)} row(s) for '
        f'{len(self.templates)} templates, and needs one for each: give it '
        'more rows (config.data.num_rows, num_eval_rows, cap)'
      )
    which = templates.in_turn(len(rows), len(self.templates))
    return [
      self._written(int(number), row)
      for row, number in enumerate(which)
      if number >= 0
    ]

  def told_by(self, template: int, *, cap: int | None = None) -> list[Example]:
    """All rows by one template, as an evaluation has them."""
    types.check_range(f'[0, {len(self.templates) - 1}]', template=template)
    count = len(self._first(cap))
    return [self._written(template, row) for row in range(count)]

  def _first(self, cap):
    if cap is not None:
      types.check_range('[1, inf)', cap=cap)
    return self.rows[:cap]

  def _written(self, number, row):
    columns, template = self.rows[row], self.templates[number]
    source, target = template.write(columns)
    # A task that is turned around has nothing to choose from.
    options = () if template.inverted else columns.get(templates.COLUMN, ())
    # As they would be written: of what is ranked, one is the target.
    told = tuple(
      template.write({**columns, self.answer: x})[1] for x in options
    )
    if options and (target not in told or len(set(told)) < len(told)):
      raise types.InputError(
        f'template {number} of the task {self.name!r} writes '
        f'{template.target!r}, from which its options cannot be told: write '
        f'{{{self.answer}}}, or call the template inverted'
      )
    return Example(source, target, told, self.name, number, row)


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
  """Tasks, and clusters that are too much alike to be apart.

  Attributes:
    tasks: All of them.
    alike: Pairs of clusters: neither is trained on where the other is held
      out. The authors have reading comprehension and common sense against
      'reading comprehension with common sense', and paraphrase against
      entailment.
  """

  tasks: Sequence[Task]
  alike: Sequence[tuple[str, str]] = ()

  def __post_init__(self):
    names = [x.name for x in self.tasks]
    if len(set(names)) != len(names):
      raise types.InputError(f'two tasks have one name: {sorted(names)}')
    for pair in self.alike:
      for cluster in pair:
        self._check(cluster)

  @property
  def clusters(self) -> tuple[str, ...]:
    """Names of all clusters."""
    return tuple(sorted({x for task in self.tasks for x in task.clusters}))

  def held_out(self, cluster: str) -> list[Task]:
    """The tasks of a cluster.

    Raises:
      InputError: There is no such cluster.
    """
    self._check(cluster)
    return [x for x in self.tasks if cluster in x.clusters]

  def training(self, cluster: str) -> list[Task]:
    """The tasks that are trained on where a cluster is held out.

    None is of any cluster that a held-out task belongs to, be it another one
    than `cluster`, nor of one that is alike (section 2.2).

    Raises:
      InputError: There is no such cluster, or no task is left.
    """
    seen = {x for task in self.held_out(cluster) for x in task.clusters}
    hidden = set(seen)
    for first, second in self.alike:
      hidden |= {second} if first in seen else set()
      hidden |= {first} if second in seen else set()
    kept = [x for x in self.tasks if not hidden & set(x.clusters)]
    if not kept:
      raise types.InputError(
        f'nothing is left to train on where {cluster!r} is held out: all tasks '
        f'are of {sorted(hidden)}'
      )
    return kept

  def _check(self, cluster):
    if cluster not in self.clusters:
      raise types.InputError(
        f'there is no cluster {cluster!r}; there are {[*self.clusters]}'
      )


def mixing_rates(sizes: Sequence[int], *, cap: int = 3000) -> np.ndarray:
  """Probability of each task: by its number of rows, but no more than `cap`.

  Raffel et al., JMLR 2020 (https://arxiv.org/abs/1910.10683), section 3.5.2;
  3,000 is FLAN's.
  """
  types.check_range('[1, inf)', cap=cap)
  rates = np.minimum(np.asarray(sizes, np.float64), cap)
  if not len(rates) or rates.min() <= 0:
    raise types.InputError(f'every task needs rows; there are {[*sizes]}')
  return rates / rates.sum()


def read_jsonl(path: str | os.PathLike) -> dict[str, list[Example]]:
  """Examples of a file of FLAN's shape, by task.

  Args:
    path: A JSON object a line: 'inputs', 'targets', optional 'task' and
      'options'.

  Raises:
    InputError: A line is no such object; names the line.
  """
  found: dict[str, list[Example]] = {}
  try:
    # Texts may hold what else `splitlines` takes for the end of a line.
    lines = files.path_of(path).read_text('utf-8-sig').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise types.InputError(f'cannot read {path}: {error}') from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if '\\ud' in line.lower():  # Half of a pair is no character.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
      raise types.InputError(f'{path}, line {number}: {error}') from error
    known = {'inputs', 'targets', 'task', 'options'}
    if (
      not isinstance(row, dict)
      or not {'inputs', 'targets'} <= set(row) <= known
      or not all(isinstance(x, str) for k, x in row.items() if k != 'options')
      or not isinstance(row.get('options', []), list)
      or not all(isinstance(x, str) for x in row.get('options', []))
    ):
      raise types.InputError(
        f"{path}, line {number}: needs the texts 'inputs' and 'targets', and "
        "may have the text 'task' and a list of texts 'options'"
      )
    task, options = row.get('task', ''), tuple(row.get('options', ()))
    if options:
      templates.check_answer(row['targets'], options, task=task, row=number)
    rows = found.setdefault(task, [])
    made = Example(row['inputs'], row['targets'], options, task, -1, len(rows))
    rows.append(made)
  if not found:
    raise types.InputError(f'{path} holds no example')
  return found
