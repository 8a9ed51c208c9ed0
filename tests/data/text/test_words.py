"""One id a word."""

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
  with pytest.raises(types.InputError, match="'blue' in 'red blue'"):
    words.Words.of(['red']).encode('red blue')
  with pytest.raises(types.InputError, match='no word'):
    words.Words.of([' ', '?!'])


def test_words_are_taken_as_they_are_where_asked():
  made = words.Words.of(['b A.', 'A. c A.'], bare=False)
  assert made.words == ('A.', 'b', 'c')
  assert made.vocab_size == 6
  assert made.encode('c  A. b').tolist() == [5, 3, 4]
  assert made.encode(b'A. A.').tolist() == [3, 3]
  assert made.decode([1, 5, 3, 2, 0]) == 'c A.'
  with pytest.raises(types.InputError, match="'a' in 'a b' is none of the 3"):
    made.encode('a b')
