"""FASTA: what is read, and what is refused."""

import gzip

import numpy as np
import pytest

from repjax.data.text import fasta
from repjax.data.text import running_text
from repjax.types import InputError

FILE = """\
>sp|P1|FIRST a comment
MKV
la*
>second

>third with a wrong sign
MK1V
; a comment
>fourth
XBZUOJ
"""


def write(tmp_path, content, name='proteins.fasta'):
  path = tmp_path / name
  path.write_text(content)
  return str(path)


def test_sequences_are_joined_capitalised_and_checked(tmp_path):
  assert fasta.read(write(tmp_path, FILE)) == ['MKVLA', 'XBZUOJ']


def test_a_gzipped_file_is_the_same(tmp_path):
  path = tmp_path / 'proteins.fasta.gz'
  path.write_bytes(gzip.compress(FILE.encode()))
  assert fasta.read(str(path)) == ['MKVLA', 'XBZUOJ']


@pytest.mark.parametrize('opened', [open, gzip.open])
def test_byte_order_marks_are_no_letters(opened, tmp_path):
  """Of one file, or of several that were put together."""
  path = tmp_path / ('a.fasta.gz' if opened is gzip.open else 'a.fasta')
  one = '>first\nMKV\n>second\nACD'.encode('utf-8-sig')
  with opened(path, 'wb') as file:
    file.write(one + b'\r\n' + one)
  assert fasta.read(str(path)) == ['MKV', 'ACD'] * 2


def test_only_the_last_sign_may_be_a_stop(tmp_path):
  path = tmp_path / 'a.fasta'
  path.write_text('>end\nAC\nDE*\n>inside\nAC*\nDE\n')
  assert [*fasta._parse(path)] == ['ACDE', 'AC*DE']


def test_residues_come_back():
  residues = fasta.Residues()
  ids = residues.encode(fasta.LETTERS)
  assert ids.tolist() == list(range(3, residues.vocab_size))
  assert residues.decode([1, *ids, 2, 0]) == fasta.LETTERS
  stream = running_text.stream(['MK', 'V'], residues)
  assert len(stream) == 5
  with pytest.raises(InputError, match="'1' is not the letter"):
    residues.encode('MK1')


def test_splits_are_disjoint_and_complete(tmp_path):
  rng = np.random.default_rng(0)
  rows = [''.join(rng.choice(list('ACDEFG'), 12)) for _ in range(400)]
  path = write(tmp_path, ''.join(f'>{i}\n{x}\n' for i, x in enumerate(rows)))
  parts = {
    split: fasta.read(path, split=split)
    for split in ('train', 'validation', 'test')
  }
  assert sorted(x for part in parts.values() for x in part) == sorted(rows)
  assert not set(parts['train']) & {*parts['validation'], *parts['test']}
  assert 5 <= len(parts['validation']) <= 40
  assert 5 <= len(parts['test']) <= 40


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'holds no sequence'),
    ('; a comment\n\n', 'holds no sequence'),
    ('MKV\n', r"begins with \">\" must stand before line 1, 'MKV'"),
    ('; a comment\n\nMKV\n>a\nACD\n', "before line 3, 'MKV'"),
    ('>a\n>b\n123\n', r'2 sequence\(s\), but none of letters'),
  ],
)
def test_files_without_proteins_are_refused(tmp_path, content, message):
  with pytest.raises(InputError, match=message):
    fasta.read(write(tmp_path, content))


def test_what_cannot_be_read_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'missing\.fasta cannot be read'):
    fasta.read(str(tmp_path / 'missing.fasta'))
  with pytest.raises(InputError, match='cannot be read'):
    fasta.read(write(tmp_path, FILE, 'plain.gz'))
  path = write(tmp_path, '>a\nMKV\n')
  with pytest.raises(InputError, match='none is in the split'):
    for split in ('train', 'validation', 'test'):
      fasta.read(path, split=split)
  with pytest.raises(InputError, match="got 'dev'"):
    fasta.read(path, split='dev')
