"""Host side: protein sequences of a FASTA file that the user names.

Large sets of proteins (UniRef50, TrEMBL) come as FASTA: a line that begins with
'>' names a sequence, the lines after it are the sequence, one letter a residue.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import gzip
import pathlib
import string
from typing import Literal
import zlib

from absl import logging
import numpy as np

from repjax import types
from repjax.data.text import tokens as tokenizing

# The 20 standard amino acids, then the other letters of IUPAC's code: B (D or
# N), J (I or L), O (pyrrolysine), U (selenocysteine), X (any), Z (E or Q).
LETTERS = 'ACDEFGHIKLMNPQRSTVWY' + 'BJOUXZ'
_NUM_SPECIAL = 3

Split = Literal['all', 'train', 'validation', 'test']


@dataclasses.dataclass(frozen=True)
class Residues:
  """Tokenizer of proteins: one id a letter, after the three special ones.

  >>> Residues().encode('ACD').tolist(), Residues().vocab_size
  ([3, 4, 5], 29)
  """

  @property
  def vocab_size(self) -> int:
    return len(LETTERS) + _NUM_SPECIAL

  def encode(self, text: str | bytes) -> np.ndarray:
    """Ids of a sequence, int32 [n]; letters of `LETTERS` only."""
    codes = np.frombuffer(tokenizing.as_bytes(text), np.uint8)
    ids = _IDS[codes]
    if (ids < 0).any():
      wrong = chr(codes[np.argmax(ids < 0)])
      raise types.InputError(
        f'{wrong!r} is not the letter of an amino acid; the letters are '
        f'{LETTERS}'
      )
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    letters = (int(i) - _NUM_SPECIAL for i in ids)
    return ''.join(LETTERS[i] for i in letters if 0 <= i < len(LETTERS))


_IDS = np.full(256, -1, np.int32)
_IDS[[ord(x) for x in LETTERS]] = np.arange(len(LETTERS)) + _NUM_SPECIAL


def read(path: str, *, split: Split = 'all') -> list[str]:
  """Sequences of a FASTA file, which may be gzipped (.gz).

  Letters are read in either case, and an end sign '*' is left out. A sequence
  with any other sign is skipped, and their number is logged.

  Args:
    path: The file.
    split: By a checksum of the sequence, 1 of 20 is validation and 1 of 20 is
      test. Equal sequences share their split; similar ones may not, so that a
      held-out family needs files of its own, each read with 'all'.

  Returns:
    Sequences of letters of `LETTERS`, in the file's order.

  Raises:
    InputError: The file is missing, empty, no FASTA, begins without a header,
      or holds no valid sequence of this split.
  """
  if split not in ('all', 'train', 'validation', 'test'):
    raise types.InputError(
      f"split is 'all', 'train', 'validation' or 'test'; got {split!r}"
    )
  file = pathlib.Path(path).expanduser()
  try:
    sequences = list(_parse(file))
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise types.InputError(
      f'the FASTA file {path} cannot be read: {error}'
    ) from error
  if not sequences:
    raise types.InputError(
      f'{path} holds no sequence: a FASTA file has lines that begin with ">", '
      'each followed by a sequence'
    )
  allowed = set(LETTERS)
  valid = [x for x in sequences if x and allowed.issuperset(x)]
  if not valid:
    raise types.InputError(
      f'{path} holds {len(sequences)} sequence(s), but none of letters for '
      f'amino acids ({LETTERS}) alone'
    )
  if len(valid) < len(sequences):
    logging.warning(
      '%s: skipped %d of %d sequences, which are empty or hold other signs',
      path,
      len(sequences) - len(valid),
      len(sequences),
    )
  chosen = [x for x in valid if split in ('all', _split_of(x))]
  if not chosen:
    raise types.InputError(
      f'{path} holds {len(valid)} valid sequence(s), of which none is in the '
      f"split {split!r}; use 'all', or a larger file"
    )
  return chosen


def _parse(file: pathlib.Path) -> Iterator[str]:
  opener = gzip.open if file.suffix == '.gz' else open
  # Of the sequence; None before the first header.
  parts: list[str] | None = None
  with opener(file, 'rt', encoding='utf-8') as lines:
    for number, line in enumerate(lines, 1):
      # A byte order mark also stands where files were put together.
      line = line.strip('\ufeff' + string.whitespace)
      if line.startswith('>'):
        if parts is not None:
          yield ''.join(parts).rstrip('*')
        parts = []
      elif not line or line.startswith(';'):  # A comment.
        continue
      elif parts is None:
        raise types.InputError(
          f'{file} does not begin with a header: a line that begins with ">" '
          f'must stand before line {number}, {line[:20]!r}'
        )
      else:
        parts.append(line.upper())
  if parts is not None:
    yield ''.join(parts).rstrip('*')


def _split_of(sequence):
  place = zlib.crc32(sequence.encode()) % 20
  return {0: 'validation', 1: 'test'}.get(place, 'train')
