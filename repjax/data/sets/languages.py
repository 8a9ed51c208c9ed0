"""Host side: a family of synthetic languages, as related as one asks for.

Sentences of one source language (`grammar`) are translated into languages that
descend from a common ancestor. Every branch of the family tree replaces a share
of the ancestor's words by new ones and a share of its rules by others, so how
much two languages have in common is known for every pair: see
`Family.relatedness`.

The rules say where the verb, the adjective, the determiner and the relative
clause go, and whether the noun, its adjectives and its verb show the number,
which the source marks on determiners only.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import random
import re

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import grammar as grammars
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

RULES: Mapping[str, tuple[str, ...]] = {
  'verb': ('middle', 'last', 'first'),
  'adjective': ('before', 'after'),
  'determiner': ('before', 'after'),
  'clause': ('after', 'before'),
  'noun number': ('bare', 'marked'),
  'adjective number': ('bare', 'marked'),
  'verb number': ('bare', 'marked'),
}


@dataclasses.dataclass(frozen=True)
class Language:
  """What translates the source.

  Attributes:
    name: Name of the tree's leaf.
    words: Word of the source -> its word, without a number.
    rules: Name of a rule in `RULES` -> one of its values.
  """

  name: str
  words: Mapping[str, str]
  rules: Mapping[str, str]

  def translate(self, sentence: str) -> str:
    """The one right translation of a sentence.

    Raises:
      InputError: It is no sentence of the source language.
    """
    try:
      subject, (verb, *rest) = _read_phrase(sentence.split())
      target = None
      if rest:
        target, rest = _read_phrase(rest)
      if rest or not grammars.is_kind(verb, 'v'):
        raise ValueError
      return ' '.join(
        self._clause(
          self._phrase(subject),
          self._verb(verb, subject),
          self._phrase(target) if target else [],
        )
      )
    except (ValueError, IndexError) as error:
      raise types.InputError(f'no sentence: {sentence!r}') from error

  def _clause(self, subject, verb, target):
    if self.rules['verb'] == 'first':
      return [verb, *subject, *target]
    if self.rules['verb'] == 'last':
      return [*subject, *target, verb]
    return [*subject, verb, *target]

  def _verb(self, verb, subject):
    return self._word(verb, subject, 'verb number')

  def _word(self, word, phrase, rule):
    marked = self.rules[rule] == 'marked' and phrase.determiner.endswith('+')
    return self.words[word] + ('+' if marked else '')

  def _phrase(self, phrase):
    words = [self._word(phrase.noun, phrase, 'noun number')]
    adjectives = [
      self._word(x, phrase, 'adjective number') for x in phrase.adjectives
    ]
    if self.rules['adjective'] == 'before':
      words = adjectives + words
    else:  # The one that stands beside the noun stays there.
      words = words + adjectives[::-1]
    determiner = [self.words[phrase.determiner]]
    before = self.rules['determiner'] == 'before'
    words = determiner + words if before else words + determiner
    if phrase.clause is None:
      return words
    verb, target = phrase.clause
    clause = [
      self.words['that'],
      *self._clause([], self._verb(verb, phrase), self._phrase(target)),
    ]
    before = self.rules['clause'] == 'before'
    return clause + words if before else words + clause


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """Languages that descend from one.

  >>> family = Family(tree='((a:0.1,b:0.1):0.3,c:0.4)')
  >>> list(family.languages), family.relatedness().round(2).tolist()
  (['a', 'b', 'c'], [[1.0, 0.75, 0.39], [0.75, 1.0, 0.53], [0.39, 0.53, 1.0]])

  Attributes:
    tree: In Newick's notation. A branch's length, in [0, 1], is the share of
      the words and of the rules that it changes, rounded to whole ones.
    grammar: The source language.
    seed: Decides the ancestor and all changes.
  """

  tree: str
  grammar: grammars.Grammar = dataclasses.field(
    default_factory=grammars.Grammar
  )
  seed: int = 0

  @functools.cached_property
  def languages(self) -> dict[str, Language]:
    """Name -> language, in the order of the tree.

    Raises:
      InputError: The tree cannot be read.
    """
    generator = random.Random(f'languages {self.seed}')
    ancestor = (
      {word: f'{word}.0' for word in self._source_words},
      {rule: generator.choice(values) for rule, values in RULES.items()},
    )
    found, number = {}, 0

    def grow(node, words, rules):
      nonlocal number
      name, length, children = node
      number += 1
      changed = generator.sample(sorted(words), round(length * len(words)))
      words = words | {word: f'{word}.{number}' for word in changed}
      changed = generator.sample(sorted(rules), round(length * len(rules)))
      rules = rules | {
        rule: generator.choice([x for x in RULES[rule] if x != rules[rule]])
        for rule in sorted(changed)
      }
      if not children:
        if name in found:
          raise types.InputError(f'{self.tree} has two languages {name!r}')
        found[name] = Language(name, words, rules)
      for child in children:
        grow(child, words, rules)

    grow(_parse(self.tree), *ancestor)
    return found

  def relatedness(self) -> np.ndarray:
    """Mean of the shares of equal words and of equal rules, [L, L]."""
    languages = list(self.languages.values())

    def shared(a, b):
      return np.mean([_equal(a.words, b.words), _equal(a.rules, b.rules)])

    return np.array([[shared(a, b) for b in languages] for a in languages])

  @functools.cached_property
  def words(self) -> tuple[str, ...]:
    """All words by id: special ones, names of languages, source, targets."""
    used = sorted(
      {
        w
        for language in self.languages.values()
        for w in language.words.items()
      }
    )
    return (
      *('<pad>', '<start>', '<end>'),
      *(f'<{name}>' for name in self.languages),
      *self._source_words,
      *(
        word + number
        for source, word in used
        for number in (('', '+') if source[1:].isdigit() else ('',))
      ),
    )

  @property
  def vocab_size(self) -> int:
    return len(self.words)

  @property
  def length(self) -> int:
    """Ids of the longest row."""
    return self.grammar.max_words + 2

  def encode(self, sentence: str) -> np.ndarray:
    """Ids of words with spaces between, int32 [n]."""
    try:
      return np.array([self._ids[word] for word in sentence.split()], np.int32)
    except KeyError as error:
      raise types.InputError(f'{error} is no word of {self}') from error

  def decode(self, ids: Sequence[int]) -> str:
    """The words of ids, without the special ones."""
    return ' '.join(self.words[int(i)] for i in ids if i > tokenizing.END)

  def load(
    self,
    language: str,
    num_rows: int,
    *,
    seed: int,
    split: str = 'train',
    held_out: int = 10,
  ) -> sources.Source:
    """Draws pairs of different sentences and their translations.

    Sentences depend on (seed, split) alone, so one seed gives all languages the
    same ones. No test sentence is a training sentence of any language.

    Args:
      language: Name of the language to translate into.
      num_rows: Number of pairs, >= 1.
      seed: Decides the sentences.
      split: 'train', or 'test': 1 of `held_out` sentences by its checksum.
      held_out: One of so many sentences is for testing, >= 2.

    Returns:
      A source of 'source', 'source_mask', 'tokens' and 'weights', as
      `grammar.Grammar.load` gives them, but the source begins with the name of
      the language, and all rows have `length` ids.

    Raises:
      InputError: There is no such language, a setting is out of range, or the
        source language has not as many sentences.
    """
    if language not in self.languages:
      raise types.InputError(
        f'There is no language {language!r}; there are '
        f'{", ".join(self.languages)}.'
      )
    rows = self.grammar.load(
      num_rows, seed=seed, split=split, held_out=held_out
    ).column('source')
    start, end = [tokenizing.START], [tokenizing.END]
    translate = self.languages[language].translate
    drawn = [self.grammar.decode(ids) for ids in rows]
    columns = running_text.pairs(
      [[*self.encode(f'<{language}> {x}'), *end] for x in drawn],
      [[*start, *self.encode(translate(x)), *end] for x in drawn],
      length=self.length,
      target_length=self.length,
    )
    return sources.from_arrays(language, columns, split=split)

  @functools.cached_property
  def _ids(self):
    return {word: i for i, word in enumerate(self.words)}

  @property
  def _source_words(self):
    own = self.grammar
    return (
      *('the', 'the+', 'a', 'a+', 'that'),
      *(f'n{i}' for i in range(own.num_nouns)),
      *(f'v{i}' for i in range(own.num_verbs)),
      *(f'j{i}' for i in range(own.num_adjectives)),
    )


@dataclasses.dataclass(frozen=True)
class _Phrase:
  """A determiner, adjectives, a noun and a clause (verb, phrase) or None."""

  determiner: str
  adjectives: list[str]
  noun: str
  clause: tuple[str, '_Phrase'] | None


def _read_phrase(words):
  """(phrase, words after it)."""
  determiner, *rest = words
  if determiner not in ('the', 'the+', 'a', 'a+'):
    raise ValueError
  adjectives = []
  while grammars.is_kind(rest[0], 'j'):
    adjectives.append(rest.pop(0))
  noun, clause = rest.pop(0), None
  if not grammars.is_kind(noun, 'n'):
    raise ValueError
  if rest and rest[0] == 'that':
    verb = rest[1]
    if not grammars.is_kind(verb, 'v'):
      raise ValueError
    target, rest = _read_phrase(rest[2:])
    clause = (verb, target)
  return _Phrase(determiner, adjectives, noun, clause), rest


def _equal(a, b):
  """Share of the keys with equal values."""
  return np.mean([a[key] == b[key] for key in a])


def _parse(tree):
  """(name, length, children) of a tree in Newick's notation."""
  parts = re.findall(r'[(),:]|[^(),:;\s]+', tree)

  def node():
    name, length, children = '', 0.0, []
    if parts[0] == '(':
      while parts.pop(0) in '(,':
        children.append(node())
        if parts[0] not in '),':
          raise ValueError
    if parts and parts[0] not in '(),:':
      name = parts.pop(0)
    if parts and parts[0] == ':':
      length = float(parts[1])
      del parts[:2]
    if not 0 <= length <= 1 or not (name or children):
      raise ValueError
    return name, length, children

  try:
    found = node()
    if parts:
      raise ValueError
    return found
  except (ValueError, IndexError) as error:
    raise types.InputError(
      f'{tree!r} is no tree with lengths in [0, 1], such as '
      '((a:0.1,b:0.1):0.3,c:0.4)'
    ) from error
