"""Host side: text to token ids and back: bytes, learned subwords.

All tokenizers begin with the same three ids: `PAD`, `START`, `END`.
"""

from collections.abc import Collection
from collections.abc import Iterable
import dataclasses
import functools
import json
import pathlib
from typing import Any
from typing import Literal
from typing import Protocol

import numpy as np

from repjax import files
from repjax import types

PAD, START, END = 0, 1, 2
_SPECIAL = ('<pad>', '<start>', '<end>')
_NO_SIGN = '\uffff'  # Unicode keeps this number free for good.


class Tokenizer(Protocol):
  """What turns text into ids and back.

  Attributes:
    vocab_size: Ids are in [0, vocab_size).
  """

  @property
  def vocab_size(self) -> int: ...

  def encode(self, text: str | bytes) -> np.ndarray:
    """Ids of a text, int32 [n], without start and end."""

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; `PAD`, `START` and `END` leave nothing."""


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One id a byte of UTF-8, after the three special ones: 259 ids.

  >>> Bytes().encode('hi').tolist(), Bytes().decode([1, 107, 108, 2])
  ([107, 108], 'hi')
  """

  @property
  def vocab_size(self) -> int:
    return 256 + len(_SPECIAL)

  def encode(self, text: str | bytes) -> np.ndarray:
    return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32) + len(
      _SPECIAL
    )

  def decode(self, ids: Iterable[int]) -> str:
    values = np.asarray(list(ids), np.int64) - len(_SPECIAL)
    kept = values[(values >= 0) & (values < 256)]
    # A text may be cut within a character.
    return kept.astype(np.uint8).tobytes().decode('utf-8', 'replace')


@dataclasses.dataclass(frozen=True)
class Subwords:
  """Subwords learned from text, by the library `tokenizers`.

  They are learned over bytes, so every text comes back as it was: there is no
  unknown character.

  Attributes:
    serialized: The tokenizer as JSON: what `tokenizers` calls tokenizer.json.
  """

  serialized: str = dataclasses.field(repr=False)

  @classmethod
  def train(
    cls,
    texts: Iterable[str | bytes],
    *,
    vocab_size: int,
    kind: Literal['bpe', 'unigram'] = 'bpe',
  ) -> 'Subwords':
    """Learns a vocabulary.

    With 'bpe' the same texts give the same one. The library's 'unigram' runs
    in threads and differs a little from run to run: `save` it.

    Args:
      texts: Training texts only, or validation is not held out.
      vocab_size: At most this many ids, > 259: all bytes are among them.
      kind: 'bpe' merges frequent pairs (Sennrich et al., 2016,
        https://arxiv.org/abs/1508.07909), 'unigram' keeps the likeliest pieces
        (Kudo, 2018, https://arxiv.org/abs/1804.10959); SentencePiece offers
        both.

    Raises:
      InputError: `vocab_size` is too small, `kind` unknown, or texts are empty.
    """
    import tokenizers
    from tokenizers import decoders
    from tokenizers import models
    from tokenizers import pre_tokenizers
    from tokenizers import trainers

    smallest = Bytes().vocab_size
    if vocab_size <= smallest:
      raise types.InputError(
        f'vocab_size={vocab_size} must be more than {smallest}, the bytes and '
        'special ids; use tokens.Bytes() for bytes alone'
      )
    settings: dict[str, Any] = dict(
      vocab_size=vocab_size,
      special_tokens=list(_SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    model: models.Model
    trainer: trainers.Trainer
    if kind == 'bpe':
      model, trainer = models.BPE(), trainers.BpeTrainer(**settings)
    elif kind == 'unigram':
      model, trainer = models.Unigram(), trainers.UnigramTrainer(**settings)
    else:
      raise types.InputError(f"kind is 'bpe' or 'unigram'; got {kind=}")
    texts = [as_text(text) for text in texts]
    if not any(texts):
      raise types.InputError('there is no text to learn subwords from')
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    return cls(tokenizer.to_str())

  @classmethod
  def load(cls, path: str) -> 'Subwords':
    """Reads what `save` has written.

    Raises:
      InputError: The file is missing, is no tokenizer, or one whose first ids
        are not `PAD`, `START` and `END`.
    """
    import tokenizers

    try:
      serialized = pathlib.Path(path).expanduser().read_text('utf-8-sig')
      tokenizer = tokenizers.Tokenizer.from_str(serialized)
    except Exception as error:  # `tokenizers` raises bare exceptions.
      raise types.InputError(
        f'{path} cannot be read as a tokenizer.json: {error}'
      ) from error
    found = tuple(tokenizer.id_to_token(i) for i in range(len(_SPECIAL)))
    if found != _SPECIAL:
      raise types.InputError(
        f'{path} begins with {found}, not with {_SPECIAL}: only tokenizers '
        'that tokens.Subwords has written can be read'
      )
    return cls(serialized)

  def save(self, path: str) -> None:
    files.replace(path, self.serialized)

  @property
  def vocab_size(self) -> int:
    return self._tokenizer.get_vocab_size()

  def encode(self, text: str | bytes) -> np.ndarray:
    ids = self._reader.encode(as_text(text), add_special_tokens=False).ids
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids])

  @functools.cached_property
  def _tokenizer(self):
    import tokenizers

    return tokenizers.Tokenizer.from_str(self.serialized)

  @functools.cached_property
  def _reader(self):
    return without_words(self.serialized, _SPECIAL)

  def __getstate__(self):
    # Workers make the library's object anew.
    return {'serialized': self.serialized}


def without_words(serialized: str, words: Collection[str]) -> Any:
  """The `tokenizers.Tokenizer` of a tokenizer.json, without some words.

  In a text such words, as `</s>`, are letters like any others: what the text
  says ends neither it nor anything else. The ids of all words stay. (That a
  tokenizer does not look for special words, `encode_special_tokens`, is not
  enough: some models know them as words of their own.)

  Args:
    serialized: The content of tokenizer.json.
    words: Those that no text shall give.
  """
  import tokenizers

  def hidden(word):
    # No text has it, and models over bytes cannot even meet these signs.
    return f'{_NO_SIGN * 8}{word}' if word in words else word

  stored = json.loads(serialized)
  model, vocab = stored['model'], stored['model']['vocab']
  if isinstance(vocab, dict):
    model['vocab'] = {hidden(word): i for word, i in vocab.items()}
  else:  # Of a unigram model, pairs of a word and its score.
    model['vocab'] = [[hidden(word), *rest] for word, *rest in vocab]
  if model.get('unk_token') is not None:
    model['unk_token'] = hidden(model['unk_token'])
  for added in stored['added_tokens']:
    added['content'] = hidden(added['content'])
  stored['post_processor'] = None  # It names them.
  return tokenizers.Tokenizer.from_str(json.dumps(stored))


def as_text(text: str | bytes) -> str:
  """Text as it comes from a data set (bytes of UTF-8) or from a caller.

  Raises:
    InputError: It is something else.
  """
  if not isinstance(text, (str, bytes)):
    raise types.InputError(
      f'a column of text holds {_described(text)}, not texts: name another '
      'column (--config.data.column)'
    )
  return text.decode('utf-8', 'replace') if isinstance(text, bytes) else text


def _described(value: Any) -> str:
  shape = np.shape(value)
  return f'arrays of shape {shape}' if shape else f'numbers such as {value}'


def as_bytes(text: str | bytes) -> bytes:
  """The UTF-8 of a text; refuses what is none, as `as_text` does."""
  return text if isinstance(text, bytes) else as_text(text).encode('utf-8')
