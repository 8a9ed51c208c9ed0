"""Host side: seven tasks of real text in six clusters, from prepared sets.

Film reviews (`glue/sst2`, Socher et al., 2013,
https://aclanthology.org/D13-1170), requests to an assistant (`clinc_oos`,
Larson et al., 2019, https://aclanthology.org/D19-1131) and descriptions of
restaurants (`e2e_nlg`, Novikova et al., 2017,
https://aclanthology.org/W17-5525). Some descriptions leave out what their data
say, so not every answer of the last set can be found in its text.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any
from typing import Literal

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import text_templates
from repjax.data.text import instructions

Told = Literal['instruction', 'instruction_with_stray', 'name']
Row = dict[str, Any]

# What data call an attribute, and what people call it.
_ATTRIBUTES = {
  'food': 'kind of food',
  'priceRange': 'price range',
  'area': 'area',
  'eatType': 'kind of place',
  'customer rating': 'customer rating',
}
_NUM_INTENTS = 5


def suite(
  split: str,
  *,
  told: Told,
  num_rows: int,
  seed: int,
  data_dir: str = '',
) -> instructions.Suite:
  """The tasks; requests of one kind and paraphrases of them are held apart.

  Args:
    split: 'train' or 'validation', which all three sets have.
    told: 'instruction' in ten ways each, or 'name' by a word alone.
      'instruction_with_stray' has an 'n' in the place of a new line behind
      statements, as the published templates of entailment have.
    num_rows: Rows of each task, drawn from the set's.
    seed: Of what is drawn.
    data_dir: Folder of prepared sets; see `source.load`.

  Raises:
    InputError: A set has no prepared rows, or fewer than `num_rows`.
  """
  all_ways = dict(
    instruction=text_templates.INSTRUCTIONS,
    instruction_with_stray=text_templates.WITH_STRAY,
    name=text_templates.NAMES,
  )
  types.check_choice('told', told, tuple(all_ways))
  types.check_range('[1, inf)', num_rows=num_rows)
  ways = all_ways[told]
  read = {
    name: _drawn(name, split, num_rows, seed, data_dir)
    for name in ('glue/sst2', 'clinc_oos', 'e2e_nlg')
  }
  tasks: list[instructions.Task] = []
  for name, cluster, of, make in _TASKS:
    rng = np.random.default_rng([seed, len(tasks)])
    rows = make(read[of], rng)
    if rows:
      tasks.append(instructions.Task(name, (cluster,), rows, ways[name]))
  return instructions.Suite(
    tasks, alike=(('intent', 'paraphrase'), ('entailment', 'reading'))
  )


def facts_of(data: str) -> dict[str, str]:
  """The facts of a description of `e2e_nlg`.

  >>> facts_of('name[The Mill], customer rating[5 out of 5]')
  {'name': 'The Mill', 'customer rating': '5 out of 5'}
  """
  return dict(re.findall(r'(\w[\w ]*)\[([^\]]*)\]', data))


def _drawn(name, split, num_rows, seed, data_dir):
  read = sources.load(name, split, data_dir=data_dir)
  if num_rows > len(read):
    raise types.InputError(
      f'{name} {split} has {len(read)} rows, fewer than {num_rows}: lower '
      'config.data.num_rows (or num_eval_rows)'
    )
  rows = np.random.default_rng([seed, len(read)]).permutation(len(read))
  columns = read.read(rows[:num_rows])
  return {
    k: [y.decode() if isinstance(y, bytes) else int(y) for y in x]
    for k, x in columns.items()
  }


def _sentiment(columns, rng) -> list[Row]:
  del rng  # Nothing is drawn.
  options = ('negative', 'positive')
  return [
    dict(text=text.strip(), answer=options[label], options=options)
    for text, label in zip(columns['sentence'], columns['label'], strict=True)
  ]


def _intent(columns, rng) -> list[Row]:
  names = sorted(set(columns['intent_name']))
  return [
    dict(text=text, answer=_said(name), options=_among(name, names, rng))
    for text, name in zip(columns['text'], columns['intent_name'], strict=True)
  ]


def _among(name, names, rng):
  """A few names with the right one among them."""
  others = [x for x in names if x != name]
  count = min(_NUM_INTENTS - 1, len(others))
  drawn = [others[i] for i in rng.permutation(len(others))[:count]]
  drawn.insert(rng.integers(count + 1), name)
  return tuple(_said(x) for x in drawn)


def _domain(columns, rng) -> list[Row]:
  del rng  # Nothing is drawn.
  options = tuple(_said(x) for x in sorted(set(columns['domain_name'])))
  return [
    dict(text=text, answer=_said(name), options=options)
    for text, name in zip(columns['text'], columns['domain_name'], strict=True)
  ]


def _same_wish(columns, rng) -> list[Row]:
  """Half of the pairs are of one intent, where there is another row of it.

  Which half is drawn: rows get templates in turn, so that of every other row a
  template would tell the answer.
  """
  texts, intents = columns['text'], np.array(columns['intent'])
  wanted = rng.permutation(len(texts)) % 2 == 0
  rows = []
  for i, text in enumerate(texts):
    same = intents == intents[i]
    alike = wanted[i] and same.sum() > 1
    found = np.flatnonzero(same if alike else ~same)
    found = found[found != i]
    if len(found):
      rows.append(
        dict(
          text=text,
          other=texts[rng.choice(found)],
          answer='yes' if alike else 'no',
          options=('yes', 'no'),
        )
      )
  return rows


def _described(columns) -> list[tuple[str, dict[str, str]]]:
  return [
    (text, facts_of(data))
    for text, data in zip(
      columns['human_reference'], columns['meaning_representation'], strict=True
    )
  ]


def _values(described) -> Mapping[str, Sequence[str]]:
  return {
    x: sorted({facts[x] for _, facts in described if x in facts})
    for x in _ATTRIBUTES
  }


def _asked(described, rng):
  """(text, attribute, its value, all values) of rows that have one."""
  values = _values(described)
  for text, facts in described:
    known = [x for x in _ATTRIBUTES if x in facts and len(values[x]) > 1]
    if known:
      name = known[rng.integers(len(known))]
      yield text, name, facts[name], values[name]


def _statement(columns, rng) -> list[Row]:
  rows = []
  for text, name, value, values in _asked(_described(columns), rng):
    true = bool(rng.integers(2))
    others = [x for x in values if x != value]
    said = value if true else others[rng.integers(len(others))]
    rows.append(
      dict(
        text=text,
        statement=f'the {_ATTRIBUTES[name]} is {said}',
        answer='yes' if true else 'no',
        options=('yes', 'no'),
      )
    )
  return rows


def _reading(columns, rng) -> list[Row]:
  return [
    dict(
      text=text,
      attribute=_ATTRIBUTES[name],
      answer=value,
      options=tuple(values),
    )
    for text, name, value, values in _asked(_described(columns), rng)
  ]


def _description(columns, rng) -> list[Row]:
  del rng  # Nothing is drawn.
  return [
    dict(text=text, facts=', '.join(f'{x}: {y}' for x, y in facts.items()))
    for text, facts in _described(columns)
  ]


def _said(name):
  return name.replace('_', ' ')


# Name, cluster, set, and what makes rows of it.
_TASKS: tuple[tuple[str, str, str, Callable[..., list[Row]]], ...] = (
  ('sentiment', 'sentiment', 'glue/sst2', _sentiment),
  ('intent', 'intent', 'clinc_oos', _intent),
  ('domain', 'intent', 'clinc_oos', _domain),
  ('same wish', 'paraphrase', 'clinc_oos', _same_wish),
  ('statement', 'entailment', 'e2e_nlg', _statement),
  ('reading', 'reading', 'e2e_nlg', _reading),
  ('description', 'data to text', 'e2e_nlg', _description),
)
