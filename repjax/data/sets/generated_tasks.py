"""Host side: generated tasks told in words, in three clusters; no download.

Lists of operations (`listops`), copies of words, and translations into
languages that are made up (`languages`). Beside these, `digit_maps` are tasks
whose instructions compose.
"""

from collections.abc import Callable
import random
from typing import Literal

import numpy as np

from repjax import types
from repjax.data.sets import languages
from repjax.data.sets import listops
from repjax.data.text import instructions
from repjax.data.text import templates

Told = Literal['instruction', 'name']
Row = dict[str, object]

# Two daughters of one language, and one that is far from both.
_FAMILY = languages.Family(tree='((Ano:0.2,Bera:0.2):0.3,Cilu:0.7)')
_LETTERS = tuple('abcdefghijklmnopqrstuvwxyz')

_LISTS = (
  '{text}\nWhat is this expression equal to?',
  'Work out {text}',
  'Evaluate: {text}',
  'MIN, MAX, MED and SM are the least, the largest, the middle and the sum '
  'without tens. {text} is',
  'What do you get from {text}',
  'Expression: {text}\nValue:',
  'Compute the value of the following.\n{text}',
  'Give the digit that {text} stands for.',
  'Solve from the inside to the outside: {text}',
  'Which digit is it? {text}',
)
_COPIES = (
  'Write {how}: {text}',
  '{text}\nWrite this {how}.',
  'Text: {text}\nThe same {how}:',
  'Say "{text}" {how}.',
  'Give the following {how}.\n{text}',
  'How does "{text}" read {how}?',
  '{text} - and now {how}:',
  'Repeat {how} what stands here: {text}',
  'Put down {how} these words: {text}',
  'What is {text} {how}?',
)
_TRANSLATIONS = (
  'Translate into {language}: {text}',
  '{text}\nSay this in {language}.',
  'How does one say "{text}" in {language}?',
  'Sentence: {text}\n{language}:',
  'Put the following into {language}.\n{text}',
  'What is {text} in {language}?',
  'Write in {language}: {text}',
  'A speaker of {language} would say for "{text}":',
)
_BACK = (
  'What does "{answer}" mean, which is {language}?',
  'Translate from {language}: {answer}',
)


def suite(*, told: Told, num_rows: int, seed: int) -> instructions.Suite:
  """All tasks, in the clusters 'lists', 'copies' and 'translation'.

  Args:
    told: By an 'instruction' in ten ways each, or by a 'name' alone.
    num_rows: Rows of each task.
    seed: Of the rows; the languages are always the same.
  """
  types.check_choice('told', told, ('instruction', 'name'))
  types.check_range('[1, inf)', num_rows=num_rows)

  def task(name, cluster, rows, ways):
    if told == 'name':
      ways = (templates.Template(f'[{name}] {{text}}', '{answer}'),)
    return instructions.Task(name, (cluster,), rows, ways)

  rng = np.random.default_rng([seed, 0])
  made = [task('list operations', 'lists', _lists(num_rows, seed), _ways())]
  for name, (how, change) in _CHANGES.items():
    rows = [
      {'text': ' '.join(x), 'how': how, 'answer': ' '.join(change(x))}
      for x in (_words(rng) for _ in range(num_rows))
    ]
    made.append(task(name, 'copies', rows, _plain(_COPIES)))
  for name, language in _FAMILY.languages.items():
    draws = random.Random(f'generated tasks {seed} {name}')
    rows = [
      {'text': x, 'language': name, 'answer': language.translate(x)}
      for x in (_FAMILY.grammar.draw(draws) for _ in range(num_rows))
    ]
    back = tuple(templates.Template(x, '{text}', inverted=True) for x in _BACK)
    made.append(
      task(f'into {name}', 'translation', rows, _plain(_TRANSLATIONS) + back)
    )
  return instructions.Suite(made)


_CHANGES: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
  'copy': ('once more', lambda x: x),
  'backwards': ('from the last word to the first', lambda x: x[::-1]),
  'twice': ('two times', lambda x: x + x),
  'ends': ('without what lies between its ends', lambda x: [x[0], x[-1]]),
}


def _plain(ways):
  return tuple(templates.Template(x, '{answer}') for x in ways)


def _ways():
  return tuple(
    templates.Template(x + '\n{options_}', '{answer}') for x in _LISTS
  )


def _lists(num_rows, seed) -> list[Row]:
  read = listops.load(
    num_rows, seed=seed, min_length=4, max_length=24, max_depth=3, max_args=4
  )
  columns = read.columns()
  return [
    {
      'text': listops.decode(ids[mask > 0]),
      'answer': str(label),
      'options': tuple(map(str, range(listops.NUM_CLASSES))),
    }
    for ids, mask, label in zip(
      columns['tokens'], columns['token_mask'], columns['label'], strict=True
    )
  ]


def _words(rng) -> list[str]:
  """Two to six words of three letters."""
  letters = rng.choice(_LETTERS, (rng.integers(2, 7), 3))
  return [''.join(x) for x in letters]
