"""Solved examples stand before what is asked, as many as there is room for."""

import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from repjax import types
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import published_tokens
from repjax.data.text import solved_examples
from repjax.data.text import tokens

TOKENIZER = tokens.Bytes()


def rows(name, first, count, template=0):
  return [
    instructions.Example(f'{name}{i}?', f'{i}!', (), name, template, i)
    for i in range(first, first + count)
  ]


POOL = rows('a', 0, 5) + rows('a', 0, 5, template=1) + rows('b', 0, 5)
ASKED = rows('a', 10, 3) + rows('b', 10, 1)


def test_they_are_of_the_same_task_and_template_and_different():
  found = solved_examples.before(ASKED, POOL, TOKENIZER, seed=1, count=3)
  for old, new in zip(ASKED, found, strict=True):
    *solved, last = new.source.split('\n\n')
    assert (last, new[1:]) == (old.source, old[1:])
    allowed = {f'{old.task}{i}?\n{i}!' for i in range(5)}
    assert len(set(solved)) == 3
    assert set(solved) <= allowed


def test_draws_depend_on_the_seed_and_the_place():
  first, again, other = (
    solved_examples.before(ASKED[:1] * 4, POOL, TOKENIZER, seed=x, count=4)
    for x in (1, 1, 2)
  )
  assert first == again
  assert first != other
  assert len({x.source for x in first}) > 1


@pytest.mark.parametrize('length', [1, 10, 11, 20, 100])
def test_as_many_as_fit(length):
  (found,) = solved_examples.before(
    ASKED[:1], POOL, TOKENIZER, seed=0, count=5, length=length
  )
  # A solved one takes 'a0?', a line, '0!' and the separator: 8 bytes.
  room = max(0, length - len(ASKED[0].source)) // 8
  assert found.source.count('!') == min(5, room)
  assert found.source.endswith(ASKED[0].source)


def test_none_changes_nothing():
  assert solved_examples.before(ASKED, [], TOKENIZER, seed=0, count=0) == ASKED


@pytest.mark.parametrize(
  ('asked', 'count', 'message'),
  [
    (ASKED, 6, 'the pool has 5: ask for fewer'),
    (rows('c', 0, 1), 1, 'the pool has 0'),
    (POOL[:1], 1, 'take it from other rows'),
    (ASKED, -1, 'count must be'),
  ],
)
def test_what_cannot_be_shown_is_refused(asked, count, message):
  with pytest.raises(types.InputError, match=message):
    solved_examples.before(asked, POOL, TOKENIZER, seed=0, count=count)


def test_the_end_of_a_published_tokenizer_has_room(tmp_path):
  words = ['<s>', '</s>', '<unk>', *'abcdefgh?!']
  made = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<unk>')
  )
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(['<s>', '</s>'])
  made.post_processor = processors.RobertaProcessing(('</s>', 1), ('<s>', 0))
  made.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = published_tokens.Published.load(tmp_path)
  pool = [instructions.Example('a b', 'c', (), 't', 0, 0)]
  asked = [instructions.Example('d ?', 'e', (), 't', 0, 1)]
  for length in (5, 6):
    (found,) = solved_examples.before(
      asked, pool, tokenizer, seed=0, count=1, length=length
    )
    # Three of what is solved, two of what is asked, and the end.
    assert (found.source != asked[0].source) == (length == 6)
    ids = instruction_rows.source_ids(found.source, tokenizer, length=length)
    assert tokenizer.decode(ids[:-1]).endswith('d ?')


def test_tokens_are_counted_as_they_are_read():
  # Two ends of lines are one token where a text ends, and two between texts.
  tokenizer = tokens.Subwords.train(['a\n\n'] * 9, vocab_size=300)
  assert len(tokenizer.encode('a\n\n')) == 2
  assert len(tokenizer.encode('a\n\na')) == 4
  asked, shown = ASKED[:1], []
  for length in range(4, 60):
    (found,) = solved_examples.before(
      asked, POOL, tokenizer, seed=0, count=5, length=length
    )
    ids = instruction_rows.source_ids(found.source, tokenizer, length=length)
    assert tokenizer.decode(ids).endswith(asked[0].source)
    shown.append(found.source.count('!'))
  assert shown[0] == 0 and shown[-1] == 5
