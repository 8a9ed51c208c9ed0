"""Host side: a model that knows a family of languages learns one more.

The new language has the words of one member of a synthetic family and the rules
of another (`repjax.data.sets.languages`), so that all of its words are known
and their order is not.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import grammar
from repjax.data.sets import languages
from repjax.data.text import labelled_text


class Task(NamedTuple):
  """Translation into known languages, and into the new one.

  Attributes:
    family: The known languages and all words; has `decode`.
    public: Rows of the known languages, as `language_modeling.make` takes them
      for 'translation'.
    train: Rows of the new language, of sentences that are drawn anew; some, the
      short ones above all, are public as well.
    test: Rows of the new language, of sentences that no training has seen.
  """

  family: languages.Family
  public: Mapping[str, np.ndarray]
  train: sources.Source
  test: sources.Source


def read(
  *,
  tree: str,
  words: str,
  rules: str,
  max_adjectives: int,
  num_public_rows: int,
  num_rows: int,
  num_test_rows: int,
) -> Task:
  """Draws the sentences.

  Args:
    tree: Family tree of the known languages in Newick's notation; a branch's
      length, in [0, 1], is the share of words and rules that it changes.
    words: Language whose words the new one has. A new sentence is announced by
      the name of this language: only the rows tell that its rules have changed.
    rules: Language whose rules the new one has.
    max_adjectives: Most adjectives of one noun, each number equally likely.
    num_public_rows: Rows of all known languages together.
    num_rows: Training rows of the new language.
    num_test_rows: Test rows of the new language.

  Raises:
    InputError: There is no such language, or not as many sentences.
  """
  family = languages.Family(
    tree=tree, grammar=grammar.Grammar(max_adjectives=max_adjectives)
  )
  known = family.languages
  for name in (words, rules):
    if name not in known:
      raise types.InputError(
        f'There is no language {name!r}; there are {", ".join(known)}.'
      )
  public = [
    family.load(name, num_public_rows // len(known), seed=seed).columns()
    for seed, name in enumerate(known)
  ]
  new = languages.Language('new', known[words].words, known[rules].rules)

  def load(split, number):
    # By another seed than the sentences of any known language.
    rows = family.load(words, number, seed=len(known), split=split)
    texts = [family.decode(ids) for ids in rows.column('source')]
    return labelled_text.pairs(
      texts,
      [new.translate(x.split(' ', 1)[1]) for x in texts],
      tokenizer=family,
      length=family.length,
      target_length=family.length,
      name='relatives',
      split=split,
    )

  return Task(
    family,
    {name: np.concatenate([x[name] for x in public]) for name in public[0]},
    load('train', num_rows),
    load('test', num_test_rows),
  )
