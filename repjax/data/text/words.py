"""Host side: a tokenizer whose tokens are the words of a closed vocabulary."""

from collections.abc import Iterable
import dataclasses
import functools

import numpy as np

from repjax import types
from repjax.data.text import tokens


@dataclasses.dataclass(frozen=True)
class Words:
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
