"""Host side: a row for each option, so that what is predicted ranks them.

What an evaluation knows of a row is how likely its target is. Of all options of
an example the likeliest one is the model's choice, as in Wei et al., ICLR 2022
(https://arxiv.org/abs/2109.01652), sections 2.3 and 3: reported as the mean
over templates, and by the template that was best on other rows.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import tokens as tokenizing


def by_each_template(
  tasks: Sequence[instructions.Task], *, cap: int | None = None
) -> list[instructions.Example]:
  """Rows by all templates, of tasks that have options.

  Args:
    tasks: Some.
    cap: Rows of each at most, equally many by each template.
  """
  written = [
    x
    for task in tasks
    for number in range(len(task.templates))
    for x in task.told_by(number, cap=cap)
  ]
  return [x for x in written if x.options]


def encoded(
  examples: Sequence[instructions.Example],
  tokenizer: tokenizing.Tokenizer,
  **shape: Any,
) -> sources.Source:
  """Each example as often as it has options, one of which is the target.

  Args:
    examples: Those without options are left out.
    tokenizer: What makes ids of them.
    **shape: source_length, target_length and tasks of
      `instruction_rows.encoded`.

  Returns:
    Its columns, 'option' (number of the target) and 'right' (1 for the answer).

  Raises:
    InputError: No example has options.
  """
  pairs = [(x, i) for x in examples for i in range(len(x.options))]
  if not pairs:
    raise types.InputError(
      f'none of {len(examples)} examples has options to rank: evaluate them as '
      "they are written (config.data.eval_splits=('held_out', 'known'))"
    )
  spread = [x._replace(target=x.options[i]) for x, i in pairs]
  return instruction_rows.encoded(spread, tokenizer, **shape).with_columns(
    option=np.array([i for _, i in pairs], np.int32),
    right=np.array([x.options[i] == x.target for x, i in pairs], np.int32),
  )


def hits(
  scores: np.ndarray, columns: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Which examples' likeliest options are right.

  Args:
    scores: Log-likelihood of each row's target, [N].
    columns: Of `encoded`, [N] each.

  Returns:
    (task, template and row of each example, [E, 3]; booleans [E]). Of equals
    the first option counts.
  """
  keys = np.stack([columns[x] for x in ('task', 'template', 'row')], axis=1)
  examples, which = np.unique(keys, axis=0, return_inverse=True)
  which = which.reshape(-1)
  order = np.lexsort((columns['option'], -scores, which))
  first = order[np.searchsorted(which[order], np.arange(len(examples)))]
  return examples, columns['right'][first] > 0


def shares(
  scores: np.ndarray, columns: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[tuple[str, int], tuple[int, float]]:
  """(task, template) -> (rows, share of them that is right).

  Args:
    scores: Log-likelihood of each row's target, [N].
    columns: Of `encoded`, [N] each.
    names: Of all tasks.
  """
  examples, right = hits(scores, columns)
  found = {}
  for task, template in np.unique(examples[:, :2], axis=0):
    here = (examples[:, 0] == task) & (examples[:, 1] == template)
    share = float(right[here].mean())
    found[names[task], int(template)] = int(here.sum()), share
  return found


def measure(
  scores: np.ndarray, columns: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, float]:
  """Shares of right choices: means over tasks, and of each task.

  Args:
    scores: Log-likelihood of each row's target, [N].
    columns: Of `encoded`, [N] each.
    names: Of all tasks.

  Returns:
    'accuracy', the mean over templates, and 'best_on_dev': each half of a
    task's rows is judged by the template that is best on the other half. The
    same of each task, as 'TASK/accuracy'.
  """
  examples, right = hits(scores, columns)
  of_tasks = {}
  for task in np.unique(examples[:, 0]):
    mine = examples[:, 0] == task
    found = _of_task(examples[mine, 1], examples[mine, 2], right[mine])
    of_tasks[names[task]] = dict(
      zip(('accuracy', 'best_on_dev'), found, strict=True)
    )
  means = {
    x: float(np.mean([y[x] for y in of_tasks.values()]))
    for x in ('accuracy', 'best_on_dev')
  }
  each = {f'{k}/{x}': y[x] for k, y in of_tasks.items() for x in y}
  return {**means, **each}


def _of_task(template, row, right):
  """(mean over templates, by those that are best on the other half)."""
  templates = np.unique(template)

  def by_template(rows):
    return np.array([right[rows & (template == x)].mean() for x in templates])

  everything = np.ones(len(row), bool)
  mean = float(by_template(everything).mean())
  first = row < np.median(row)
  whole = [np.isin(templates, template[half]).all() for half in (first, ~first)]
  if not all(whole):  # Too few rows to choose by.
    return mean, mean
  one, other = by_template(first), by_template(~first)
  chosen = one[other.argmax()] * first.mean()
  return mean, float(chosen + other[one.argmax()] * (1 - first.mean()))
