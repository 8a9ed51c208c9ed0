"""Host side: a synthetic language pair, translation in miniature.

A sentence of the source language reads

    S  -> NP V NP | NP V
    NP -> Det Adj* N | Det Adj* N that V NP     (one relative clause at most)

with a number (one, many) on each determiner and no other inflection. Its
translation differs in the ways that make translation more than a dictionary:

- order: the verb goes last, also in relative clauses; adjectives follow their
  noun, in reverse;
- agreement: every noun of the target has a gender (a, o, e), which the source
  does not show; determiners and adjectives take the ending of their noun's
  gender and number;
- agreement at a distance: the verb takes the number of its subject, which any
  number of words may separate from it.

    source: the+ n3 that v1 a n0 v2
    target: nn3 det.a+ rel nn0 indet.a vv1+ vv2+

Words are drawn evenly and independently, so the rules are all there is to
learn. Sentences are put into splits by a checksum: no test sentence is ever a
training sentence, whatever the seeds.
"""

import dataclasses
import random
import zlib

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

_GENDERS = 'aoe'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
  """The language pair; the defaults have 105 words on both sides together.

  Attributes:
    num_nouns: Number of nouns; noun i has gender i modulo 3.
    num_verbs: Number of verbs.
    num_adjectives: Number of adjectives.
    max_adjectives: Most adjectives of one noun, each number equally likely.
    clause_rate: Probability that a subject or object has a relative clause.
  """

  num_nouns: int = 12
  num_verbs: int = 6
  num_adjectives: int = 6
  max_adjectives: int = 2
  clause_rate: float = 0.3

  def __post_init__(self):
    if (
      min(self.num_nouns, self.num_verbs, self.num_adjectives) < 1
      or self.max_adjectives < 0
      or not 0 <= self.clause_rate <= 1
    ):
      raise types.InputError(
        'Need at least one noun, verb and adjective, max_adjectives >= 0 and '
        f'0 <= clause_rate <= 1; got {self}'
      )

  @property
  def words(self) -> tuple[str, ...]:
    """All words of both languages, by id; the first three are special."""
    endings = [g + n for g in _GENDERS for n in ('', '+')]
    return (
      *('<pad>', '<start>', '<end>'),
      *('the', 'the+', 'a', 'a+', 'that'),
      *(f'n{i}' for i in range(self.num_nouns)),
      *(f'v{i}' for i in range(self.num_verbs)),
      *(f'j{i}' for i in range(self.num_adjectives)),
      *(f'{d}.{e}' for d in ('det', 'indet') for e in endings),
      'rel',
      *(f'nn{i}' for i in range(self.num_nouns)),
      *(f'vv{i}{n}' for i in range(self.num_verbs) for n in ('', '+')),
      *(f'jj{i}.{e}' for i in range(self.num_adjectives) for e in endings),
    )

  @property
  def vocab_size(self) -> int:
    return len(self.words)

  def encode(self, sentence: str) -> np.ndarray:
    """Ids of words with spaces between, int32 [n]."""
    ids = {word: i for i, word in enumerate(self.words)}
    try:
      return np.array([ids[word] for word in sentence.split()], np.int32)
    except KeyError as error:
      raise types.InputError(f'{error} is no word of {self}') from error

  def decode(self, ids) -> str:
    """The sentence of ids, without the special ones."""
    words = self.words
    return ' '.join(words[int(i)] for i in ids if int(i) > tokenizing.END)

  def draw(self, generator: random.Random) -> str:
    """A random sentence of the source language."""
    words = [*self._noun_phrase(generator, clause=True), self._verb(generator)]
    if generator.random() < 0.5:
      words += self._noun_phrase(generator, clause=True)
    return ' '.join(words)

  def translate(self, sentence: str) -> str:
    """The one right translation of a sentence.

    Raises:
      InputError: It is no sentence of the source language.
    """
    words = sentence.split()
    try:
      subject, number, rest = self._translate_phrase(words)
      verb, *rest = rest
      target = [*subject]
      if rest:
        phrase, _, rest = self._translate_phrase(rest)
        target += phrase
      if rest or not is_kind(verb, 'v'):
        raise ValueError
      return ' '.join([*target, f'v{verb}{number}'])
    except (ValueError, IndexError) as error:
      raise types.InputError(f'no sentence: {sentence!r}') from error

  def load(
    self,
    num_rows: int,
    *,
    seed: int,
    split: str = 'train',
    held_out: int = 10,
  ) -> sources.Source:
    """Draws different sentence pairs of one split.

    Args:
      num_rows: Number of pairs, >= 1.
      seed: Seed of the rows.
      split: 'train', or 'test': 1 of `held_out` sentences by its checksum.
      held_out: One of so many sentences is for testing, >= 2; equal for both
        splits.

    Returns:
      A source of 'source' int32 [S] and 'source_mask' float32 [S], ended by
      `END`; 'tokens' int32 [T], begun by `START` and ended by `END`, and their
      'weights' float32 [T], 1 where a token is to be predicted.

    Raises:
      InputError: A setting is out of range, or the language has not as many
        sentences.
    """
    if split not in ('train', 'test') or held_out < 2 or num_rows < 1:
      raise types.InputError(
        "Need num_rows >= 1, split 'train' or 'test' and held_out >= 2; got "
        f'{num_rows=}, {split=}, {held_out=}'
      )
    generator = random.Random(f'grammar {seed} {split}')
    sentences: dict[str, None] = {}  # In order.
    tries = 0
    while len(sentences) < num_rows:
      sentence = self.draw(generator)
      is_test = zlib.crc32(sentence.encode()) % held_out == 0
      tries += 1
      if is_test == (split == 'test') and sentence not in sentences:
        sentences[sentence] = None
        tries = 0
      elif tries > 1000 * held_out:
        raise types.InputError(
          f'{self} has hardly more than {len(sentences)} sentences in {split}: '
          'lower num_rows, or raise the number of words'
        )
    start, end = [tokenizing.START], [tokenizing.END]
    columns = running_text.pairs(
      [[*self.encode(x), *end] for x in sentences],
      [[*start, *self.encode(self.translate(x)), *end] for x in sentences],
      length=self.max_words + 1,
      target_length=self.max_words + 2,
    )
    return sources.from_arrays('grammar', columns, split=split)

  @property
  def max_words(self) -> int:
    """Words of the longest sentence, equal in both languages."""
    plain = 2 + self.max_adjectives
    phrase = plain + (2 + plain if self.clause_rate else 0)
    return 2 * phrase + 1

  def _noun_phrase(self, generator, *, clause):
    adjectives = [
      f'j{generator.randrange(self.num_adjectives)}'
      for _ in range(generator.randint(0, self.max_adjectives))
    ]
    words = [
      generator.choice(('the', 'the+', 'a', 'a+')),
      *adjectives,
      f'n{generator.randrange(self.num_nouns)}',
    ]
    if clause and generator.random() < self.clause_rate:
      words += ['that', self._verb(generator)]
      words += self._noun_phrase(generator, clause=False)
    return words

  def _verb(self, generator):
    return f'v{generator.randrange(self.num_verbs)}'

  def _translate_phrase(self, words):
    """(target words, number of the noun, source words after the phrase)."""
    determiner, *rest = words
    if determiner not in ('the', 'the+', 'a', 'a+'):
      raise ValueError
    number = '+' if determiner.endswith('+') else ''
    adjectives = []
    while is_kind(rest[0], 'j'):
      adjectives.append(rest.pop(0))
    noun = rest.pop(0)
    if not is_kind(noun, 'n'):
      raise ValueError
    ending = _GENDERS[int(noun[1:]) % 3] + number
    article = 'det' if determiner.startswith('the') else 'indet'
    target = [
      f'n{noun}',
      *(f'j{adjective}.{ending}' for adjective in reversed(adjectives)),
      f'{article}.{ending}',
    ]
    if rest and rest[0] == 'that':
      verb = rest[1]
      if not is_kind(verb, 'v'):
        raise ValueError
      inner, _, rest = self._translate_phrase(rest[2:])
      target += ['rel', *inner, f'v{verb}{number}']
    return target, number, rest


def is_kind(word, kind):
  """Whether a source word is a noun (n), verb (v) or adjective (j)."""
  return word[0] == kind and word[1:].isdigit()
