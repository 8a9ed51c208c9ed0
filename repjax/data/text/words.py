"""Host side: one id a word, for captions of a small vocabulary."""
"""Host side: a tokenizer whose tokens are the words of a closed vocabulary."""

from collections.abc import Iterable
import dataclasses
import functools

import numpy as np

from repjax import types
from repjax.data.text import tokens as tokenizing

_FIRST = tokenizing.END + 1
from repjax.data.text import tokens


@dataclasses.dataclass(frozen=True)
class Words:
  """A `tokens.Tokenizer` of known words, lower case, split at spaces.

  >>> words = Words.of(['red squares', 'blue squares'])
  >>> words.encode('red squares').tolist(), words.decode([1, 4, 5, 2])
  ([4, 5], 'red squares')

  Attributes:
    words: Those after PAD, START and END.
  """

  words: tuple[str, ...]

  @classmethod
  def of(cls, texts: Iterable[str], *, at_least: int = 1) -> 'Words':
    """The words of some texts, in the order of the alphabet.

    Args:
      texts: Training texts only, or validation is not held out.
      at_least: How often a word must be there.

    Raises:
      InputError: There is no word.
    """
    counts: dict[str, int] = {}
    for text in texts:
      for word in split(text):
        counts[word] = counts.get(word, 0) + 1
    words = tuple(sorted(x for x, n in counts.items() if n >= at_least))
    if not words:
      raise types.InputError('there is no word in these captions')
    return cls(words)

  @property
  def vocab_size(self) -> int:
    return _FIRST + len(self.words)
  """One id a word, after the three special ones; words stand between spaces.

  For texts that are generated, whose words are all known: a word is one token
  wherever it stands, which subwords do not promise.

  >>> Words(('the', 'first')).encode('first the').tolist()
  [4, 3]

  Attributes:
    vocabulary: All words, each once.
  """

  vocabulary: tuple[str, ...]

  @classmethod
  def of(cls, texts: Iterable[str]) -> 'Words':
    """The words of some texts, sorted."""
    return cls(tuple(sorted({y for x in texts for y in x.split()})))

  @property
  def vocab_size(self) -> int:
    return tokens.END + 1 + len(self.vocabulary)

  def encode(self, text: str | bytes) -> np.ndarray:
    """Ids of a text, int32 [n].

    Raises:
      InputError: A word is not known; the message names it.
    """
    unknown = [x for x in split(text) if x not in self._ids]
    if unknown:
      raise types.InputError(
        f'{unknown[0]!r} in the caption {text!r} is none of the '
        f'{len(self.words)} known words: make the vocabulary with it, or leave '
        'it out (`known`).'
      )
    return np.asarray([self._ids[x] for x in split(text)], np.int32)

  def known(self, text: str) -> str:
    """A text without the words that are not known."""
    return ' '.join(x for x in split(text) if x in self._ids)

  def decode(self, ids: Iterable[int]) -> str:
    """Words of ids up to the first END."""
    said = []
    for i in ids:
      if i == tokenizing.END:
        break
      if i >= _FIRST:
        said.append(self.words[int(i) - _FIRST])
    return ' '.join(said)

  @functools.cached_property
  def _ids(self):
    return {word: _FIRST + i for i, word in enumerate(self.words)}


def split(text: str | bytes) -> list[str]:
  """Words of a text: lower case, without the punctuation around them."""
  words = (
    x.strip('.,;:!?"\'()') for x in tokenizing.as_text(text).lower().split()
  )
  return [x for x in words if x]
      InputError: A word is not in the vocabulary; names it.
    """
    words = tokens.as_text(text).split()
    try:
      return np.array([self._number[x] for x in words], np.int32)
    except KeyError as error:
      raise types.InputError(
        f'{error} in {text!r} is none of the {len(self.vocabulary)} words: '
        'learn them from all texts, or use tokens.Subwords'
      ) from error

  def decode(self, ids: Iterable[int]) -> str:
    """Words of ids, with a space between them."""
    first = tokens.END + 1
    return ' '.join(self.vocabulary[i - first] for i in ids if i >= first)

  @functools.cached_property
  def _number(self):
    return {x: i for i, x in enumerate(self.vocabulary, tokens.END + 1)}
