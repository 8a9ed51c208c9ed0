"""Host side: tokenizers of published models, from their tokenizer.json."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.text import tokens as tokenizing

# What GPT-2 has between texts; its tokenizer puts nothing around one.
_END_OF_TEXT = '<|endoftext|>'


class PairFrame(NamedTuple):
  """What stands around two texts of a row.

  Attributes:
    before: Ids before the first text.
    between: Ids between both, of the first one's segment.
    after: Ids behind the second text.
    second_type: Segment of the second text: 1 in BERT; 0 where there are none.
  """

  before: Sequence[int]
  between: Sequence[int]
  after: Sequence[int]
  second_type: int


@dataclasses.dataclass(frozen=True)
class Published:
  """A tokenizer with ids of its own, read by the library `tokenizers`.

  Its ids are those that published weights were trained with, so that what
  begins and ends a text are not `tokens.START` and `tokens.END` but `frame`.

  Attributes:
    serialized: The content of tokenizer.json.
  """

  serialized: str = dataclasses.field(repr=False)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Published':
    """Reads a tokenizer.json, or the one beside a model's weights.

    Args:
      path: The file, a folder that holds it, or another file in that folder.

    Raises:
      InputError: There is none, or it cannot be read.
    """
    place = file(path)
    try:
      made = cls(place.read_text('utf-8-sig'))
      made.frame, made._reader  # noqa: B018 - What is no tokenizer fails here.
    except types.InputError:
      raise
    except Exception as error:  # `tokenizers` raises bare exceptions.
      raise types.InputError(
        f'{place} cannot be read as the tokenizer.json of a model: {error}'
      ) from error
    return made

  @property
  def vocab_size(self) -> int:
    # Ids may have gaps, so that there are more of them than words.
    return max(self.vocabulary.values(), default=-1) + 1

  @property
  def vocabulary(self) -> dict[str, int]:
    """Id of each word."""
    return self._tokenizer.get_vocab()

  @functools.cached_property
  def frame(self) -> tuple[int, int]:
    """Ids (before, after) a single text, such as those of <s> and </s>.

    Both are what ends a text where nothing begins one (GPT-2, T5).
    """
    ids = self._tokenizer.encode('', add_special_tokens=True).ids
    end = self._tokenizer.token_to_id(_END_OF_TEXT)
    # What a text only begins with is no end of it.
    if len(ids) == 1 and (
      ids[0] == end or self._tokenizer.encode('a').ids[-1] == ids[0]
    ):
      return ids[0], ids[0]
    if len(ids) == 2:
      return ids[0], ids[1]
    if ids or end is None:
      raise types.InputError(
        f'the tokenizer puts {len(ids)} tokens around a text, which do not say '
        'what begins and what ends one: those of BERT, RoBERTa, BART, T5 and '
        'GPT-2 can be used'
      )
    return end, end

  @functools.cached_property
  def pair_frame(self) -> PairFrame:
    """What stands around a pair of texts, as the tokenizer's own file says.

    Raises:
      InputError: It puts no signs around pairs.
    """
    pair = self._tokenizer.encode('', '', add_special_tokens=True)
    if len(pair.ids) < 3:
      raise types.InputError(
        f'the tokenizer puts {len(pair.ids)} tokens around a pair of texts: '
        'those of BERT and RoBERTa tell two texts apart'
      )
    return PairFrame(
      pair.ids[:1], pair.ids[1:-1], pair.ids[-1:], pair.type_ids[-1]
    )

  def encode(self, text: str | bytes) -> np.ndarray:
    """Ids of a text, int32 [n], without what stands around it.

    What is special to the tokenizer is not special in a text: of `</s>` it
    makes what it makes of any other signs.
    """
    ids = self._reader.encode(tokenizing.as_text(text)).ids
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids])

  @functools.cached_property
  def _tokenizer(self):
    import tokenizers

    return _of_any_length(tokenizers.Tokenizer.from_str(self.serialized))

  @functools.cached_property
  def _reader(self):
    special = {self._tokenizer.id_to_token(i) for i in self.frame}
    special |= {
      token.content
      for token in self._tokenizer.get_added_tokens_decoder().values()
      if token.special
    }
    return _of_any_length(tokenizing.without_words(self.serialized, special))

  def __getstate__(self):
    # Workers make the library's object anew.
    return {'serialized': self.serialized}


def file(path: str | os.PathLike) -> pathlib.Path:
  """The tokenizer.json in a folder or beside a file; a .json is itself one."""
  place = pathlib.Path(path).expanduser()
  if place.suffix == '.json':
    return place
  return (place if place.is_dir() else place.parent) / 'tokenizer.json'


def _of_any_length(tokenizer):
  """Files may ask for a length; rows are cut and padded elsewhere."""
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer
