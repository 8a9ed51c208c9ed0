"""Host side: one id a word, for texts whose words are all known."""

from collections.abc import Iterable
import dataclasses
import functools

import numpy as np

from repjax import types
from repjax.data.text import tokens as tokenizing

_FIRST = tokenizing.END + 1


@dataclasses.dataclass(frozen=True)
class Words:
  """A `tokens.Tokenizer` of known words, which stand between spaces.

  For captions, and for texts that are generated: a word is one token wherever
  it stands, which subwords do not promise.

  >>> words = Words.of(['red squares', 'blue squares'])
  >>> words.encode('red squares').tolist(), words.decode([1, 4, 5, 2])
  ([4, 5], 'red squares')

  Attributes:
    words: Those after PAD, START and END.
    bare: Whether words are lower case, without the punctuation around them;
      False takes what stands between spaces as it is.
  """

  words: tuple[str, ...]
  bare: bool = True

  @classmethod
  def of(
    cls, texts: Iterable[str], *, at_least: int = 1, bare: bool = True
  ) -> 'Words':
    """The words of some texts, in the order of the alphabet.

    Args:
      texts: Training texts only, or validation is not held out.
      at_least: How often a word must be there.
      bare: Whether they lose capitals and the punctuation around them.

    Raises:
      InputError: There is no word.
    """
    counts: dict[str, int] = {}
    for text in texts:
      for word in split(text, bare=bare):
        counts[word] = counts.get(word, 0) + 1
    words = tuple(sorted(x for x, n in counts.items() if n >= at_least))
    if not words:
      raise types.InputError('there is no word in these texts')
    return cls(words, bare)

  @property
  def vocab_size(self) -> int:
    return _FIRST + len(self.words)

  def encode(self, text: str | bytes) -> np.ndarray:
    """Ids of a text, int32 [n].

    Raises:
      InputError: A word is not known; the message names it.
    """
    said = split(text, bare=self.bare)
    unknown = [x for x in said if x not in self._ids]
    if unknown:
      raise types.InputError(
        f'{unknown[0]!r} in {text!r} is none of the '
        f'{len(self.words)} known words: make the vocabulary with it, or leave '
        'it out (`known`).'
      )
    return np.asarray([self._ids[x] for x in said], np.int32)

  def known(self, text: str) -> str:
    """A text without the words that are not known."""
    said = split(text, bare=self.bare)
    return ' '.join(x for x in said if x in self._ids)

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


def split(text: str | bytes, *, bare: bool = True) -> list[str]:
  """Words of a text; bare ones are lower case, without punctuation around."""
  words = tokenizing.as_text(text).split()
  if bare:
    words = [x.lower().strip('.,;:!?"\'()') for x in words]
  return [x for x in words if x]
