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
  with pytest.raises(types.InputError, match="'blue' in the caption"):
    words.Words.of(['red']).encode('red blue')
  with pytest.raises(types.InputError, match='no word'):
    words.Words.of([' ', '?!'])
