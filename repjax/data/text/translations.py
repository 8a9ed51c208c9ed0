"""Host side: TFDS sets of sentences in many languages -> one source a language.

Two layouts are read: a column for each language (`opus`, `wmt19_translate/...`)
and a list of languages beside a list of sentences, as long as there are
translations of the row (`ted_multi_translate`).
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from repjax import types
from repjax.data.reading import records
from repjax.data.reading import source as sources
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

_LANGUAGE, _SENTENCE = 'translations/language', 'translations/translation'


def from_pivot(
  rows: sources.Source,
  *,
  pivot: str,
  languages: Sequence[str],
  tokenizer: tokenizing.Tokenizer,
  length: int,
) -> list[sources.Source]:
  """Pairs of a sentence of one language and its translation, a language each.

  The language to translate into is told by the first token of the source, id
  `tokenizer.vocab_size` + its number. Sentences become tokens when they are
  read. A sentence with more than `length` tokens, the special ones included, is
  cut and then has no end.

  Args:
    rows: One sentence a row, in several languages.
    pivot: Language that is translated, such as 'en'.
    languages: Languages that it is translated into.
    tokenizer: Makes ids of all languages.
    length: Tokens of a row.

  Returns:
    For each of `languages` a source of 'source', 'source_mask', 'tokens' and
    'weights', as `grammar.Grammar.load` gives them, of the rows that have both.

  Raises:
    InputError: If a language has no row beside the pivot, or rows of `length`
      have no room for a target.
  """
  if length < 2:
    raise types.InputError(
      f'{rows.name}: no target has room in rows of {length} tokens: raise '
      'config.data.length.'
    )
  known = _Sentences(rows, _has_lists(rows))
  has = known.present((pivot, *languages))
  parts = []
  for number, language in enumerate(languages):
    chosen = np.flatnonzero(has[pivot] & has[language])
    if not chosen.size:
      raise types.InputError(
        f'{rows.name} {rows.split} has no row with both {pivot!r} and '
        f'{language!r}: name languages of the set in config.data.languages.'
      )
    reader = _Pairs(
      known, pivot, language, tokenizer, length, tokenizer.vocab_size + number
    )
    parts.append(
      dataclasses.replace(rows, reader=reader, encoded={}).select(chosen)
    )
  return parts


def sentences(
  rows: sources.Source, *, languages: Sequence[str], num_rows: int
) -> list[bytes]:
  """Sentences of these languages, to learn subwords from.

  Args:
    rows: One sentence a row, in several languages.
    languages: Names of those that are read.
    num_rows: Evenly spaced rows that are read.
  """
  known = _Sentences(rows, _has_lists(rows))
  places = np.linspace(0, len(rows) - 1, min(num_rows, len(rows)))
  found = known.read(places.astype(np.int64), languages)
  return [
    sentence for column in found for sentence in column if sentence is not None
  ]


@dataclasses.dataclass(frozen=True)
class _Sentences:
  """Sentences by language, of either layout."""

  rows: sources.Source
  has_lists: bool

  def read(self, indices, languages):
    """For each language the sentences of rows, None where there are none."""
    columns = self.rows.read(indices)
    if not self.has_lists:
      return [_column(self.rows, columns, x) for x in languages]
    found = [
      dict(zip(names, texts, strict=True))
      for names, texts in zip(
        columns[_LANGUAGE], columns[_SENTENCE], strict=True
      )
    ]
    return [
      records.as_objects([row.get(x.encode()) for row in found])
      for x in languages
    ]

  def present(self, languages):
    """Language -> which rows have it, bool [num_rows]."""
    if not self.has_lists:
      return {x: np.ones(len(self.rows), bool) for x in languages}
    names = [set(row) for row in self.rows.column(_LANGUAGE)]
    return {
      x: np.fromiter((x.encode() in row for row in names), bool, len(names))
      for x in languages
    }


@dataclasses.dataclass(frozen=True)
class _Pairs:
  sentences: _Sentences
  pivot: str
  language: str
  tokenizer: tokenizing.Tokenizer
  length: int
  tag: int

  def __call__(self, indices):
    before, after = self.sentences.read(indices, (self.pivot, self.language))
    encode = self.tokenizer.encode
    start, end = [tokenizing.START], [tokenizing.END]
    return running_text.pairs(
      [[self.tag, *encode(x), *end] for x in before],
      [[*start, *encode(x), *end] for x in after],
      length=self.length,
      target_length=self.length,
      truncate=True,
    )


def _has_lists(rows):
  return {_LANGUAGE, _SENTENCE} <= set(rows.read([0]))


def _column(rows, columns, language):
  if language not in columns:
    raise types.InputError(
      f'{rows.name} has no sentences in {language!r}; it has '
      f'{", ".join(sorted(columns))}.'
    )
  return columns[language]
