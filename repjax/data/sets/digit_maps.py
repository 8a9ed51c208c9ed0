"""Host side: tasks that are what their instructions say, and nothing else.

A task takes one of five digits and changes it: 'the mirror of the third digit'.
Whoever knows what each word means can do a task that nobody has shown him. The
sets need no download; 30 tasks are in five clusters, in each of which every
change is once and every place at least once.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal

import numpy as np

from repjax import types
from repjax.data.text import instructions
from repjax.data.text import templates

CHANGES: Mapping[str, Callable[[int], int]] = {
  'value': lambda x: x,
  'mirror': lambda x: 9 - x,
  'next': lambda x: (x + 1) % 10,
  'previous': lambda x: (x - 1) % 10,
  'triple': lambda x: 3 * x % 10,
  'opposite': lambda x: (x + 5) % 10,
}
PLACES = ('first', 'second', 'third', 'fourth', 'fifth')

Told = Literal['instruction', 'name', 'nothing']

# How a task is told; '{name}' says which one it is, and not what it is. Digits
# come first, each at a place of its own: what is asked is what words mean, not
# where a text holds its digits.
_TOLD = {
  'instruction': (
    '{digits} : {change} {place}',
    '{digits} : {place} {change}',
    '{digits} : the {change} of the {place}',
    '{digits} : of the {place} the {change}',
    '{digits} : give the {place} as its {change}',
    '{digits} : give {change} of {place}',
    '{digits} , {place} digit , {change}',
    '{digits} , {change} , {place} digit',
    '{digits} : what is the {place} , {change}',
    '{digits} : what {change} has the {place}',
  ),
  'name': ('{digits} : {name}', '{digits} : do {name}', '{digits} , {name}'),
  'nothing': ('{digits}', '{digits} :', '{digits} : what'),
}


def suite(*, told: Told, num_rows: int, seed: int) -> instructions.Suite:
  """All 30 tasks, in clusters '0' to '4'.

  Args:
    told: 'instruction' says what to do, 'name' which task it is, by a word of
      its own, 'nothing' shows the digits alone.
    num_rows: Rows of each task.
    seed: Of the digits, which are the same however tasks are told.
  """
  types.check_choice('told', told, tuple(_TOLD))
  types.check_range('[1, inf)', num_rows=num_rows)
  options = tuple(map(str, range(10)))
  made = []
  # A cluster at a time, so that the first tasks have all words, too.
  for cluster in range(len(PLACES)):
    for i, (change, function) in enumerate(CHANGES.items()):
      j = (cluster - i) % len(PLACES)
      number = i * len(PLACES) + j
      digits = np.random.default_rng([seed, number]).integers(
        0, 10, (num_rows, len(PLACES))
      )
      rows = [
        {
          'digits': ' '.join(map(str, row)),
          'change': change,
          'place': PLACES[j],
          'name': f'task{number}',
          'answer': str(function(int(row[j]))),
          'options': options,
        }
        for row in digits
      ]
      made.append(
        instructions.Task(
          f'{change}, {PLACES[j]}',
          (str(cluster),),
          rows,
          [templates.Template(x, '{answer}') for x in _TOLD[told]],
        )
      )
  return instructions.Suite(made)
