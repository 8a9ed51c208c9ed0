"""One id a word."""
"""Words are the same token wherever they stand."""

import pytest

from repjax import types
from repjax.data.text import tokens
from repjax.data.text import words


def test_words_come_back():
  known = words.Words.of(['Red squares.', 'the red, RED ball'])
  assert known.words == ('ball', 'red', 'squares', 'the')
  ids = known.encode('the red ball!')
  assert (
    known.decode([tokens.START, *ids, tokens.END, ids[0]]) == 'the red ball'
  )
  assert min(ids) > tokens.END
  assert known.vocab_size == max(known.encode('the')) + 1


def test_rare_words_are_left_out():
  known = words.Words.of(['a a b', 'b c'], at_least=2)
  assert known.words == ('a', 'b')
  assert known.known('c b d a') == 'b a'


def test_an_unknown_word_is_named():
  with pytest.raises(types.InputError, match="'blue' in the caption"):
    words.Words.of(['red']).encode('red blue')
  with pytest.raises(types.InputError, match='no word'):
    words.Words.of([' ', '?!'])
from repjax.data.text import words


def test_texts_come_back_and_words_are_one_token():
  made = words.Words.of(['b a', 'a c a'])
  assert made.vocabulary == ('a', 'b', 'c')
  assert made.vocab_size == 6
  assert made.encode('c  a b').tolist() == [5, 3, 4]
  assert made.encode(b'a a').tolist() == [3, 3]
  # What begins, ends and fills a text leaves nothing.
  assert made.decode([1, 5, 3, 2, 0]) == 'c a'


def test_an_unknown_word_is_named():
  with pytest.raises(types.InputError, match="'d' in 'a d' is none of the 2"):
    words.Words(('a', 'b')).encode('a d')
