"""Rows of text with classes, and prompts with completions."""

import re

import pytest

from repjax import types
from repjax.data.text import labelled_text
from repjax.data.text import tokens

BYTES = tokens.Bytes()


def test_texts_begin_with_start_and_are_padded_or_cut():
  rows = labelled_text.rows(
    ['ab', b'abcdef'], [1, 0], tokenizer=BYTES, length=4, num_classes=2
  )
  read = rows.read([0, 1])
  assert read['tokens'][0].tolist() == [
    tokens.START,
    *BYTES.encode('ab'),
    tokens.PAD,
  ]
  assert read['token_mask'].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
  assert BYTES.decode(read['tokens'][1]) == 'abc'
  assert read['label'].tolist() == [1, 0]


def test_of_a_completion_what_follows_the_prompt_counts():
  rows = labelled_text.completions(
    ['in', b'a long prompt'],
    ['out', 'x'],
    tokenizer=BYTES,
    length=9,
    separator='>',
  )
  read = rows.read([0, 1])
  assert read['tokens'].shape == (2, 10)
  counted = read['tokens'][0][read['weights'][0] > 0]
  assert counted.tolist() == [*BYTES.encode('out'), tokens.END]
  assert BYTES.decode(read['tokens'][0]) == 'in>out'
  # Where both have no room the prompt loses its beginning.
  assert BYTES.decode(read['tokens'][1]) == 'prompt>x'
  counted = read['tokens'][1][read['weights'][1] > 0]
  assert counted.tolist() == [*BYTES.encode('x'), tokens.END]


@pytest.mark.parametrize(
  ('length', 'says'),
  [
    (
      16,
      '100.0 % of the rows .* 16 tokens .*needs 88.*; and 50.0 % of the tar',
    ),
    (24, '100.0 % of the rows .* 24 tokens .*needs 88.*; and 0.0 % of the tar'),
    (64, '50.0 % of the rows .* 64 tokens .*needs 88.*; and 0.0 % of the tar'),
    (128, ''),
  ],
)
def test_every_row_has_a_target_and_the_share_of_cut_ones_is_said(
  length, says, caplog
):
  """As `e2e_nlg` has them: prompts that may be longer than a row."""
  prompts = ['name[The Mill], food[Indian], area[city]' * n for n in (1, 2)]
  targets = ['The Mill is near it.', 'Yes.']
  with caplog.at_level('WARNING'):
    read = labelled_text.completions(
      prompts, targets, tokenizer=BYTES, length=length
    ).read([0, 1])
  for i, target in enumerate(targets):
    row, counted = read['tokens'][i], read['weights'][i] > 0
    assert row[0] == tokens.START and not counted[0]
    whole = [*BYTES.encode(target), tokens.END]
    if len(whole) > length:
      # Of what has no room at all both are read.
      assert row[counted].tolist() == whole[: length // 2]
    else:
      assert row[counted].tolist() == whole
    before = BYTES.decode(row[1 : counted.argmax()])
    prompt = prompts[i] + ' | '
    assert prompt.endswith(before)
    kept = min(len(prompt), length - min(counted.sum(), length))
    assert len(before) == kept
  assert bool(says) == bool(caplog.text)
  assert re.search(says, caplog.text)


def test_rows_without_room_for_what_is_learned_are_refused():
  with pytest.raises(types.InputError, match='no target has room in 0'):
    labelled_text.completions(['ab'], ['cdef'], tokenizer=BYTES, length=0)
  for frame, length in ((None, 1), ((1, 2), 2), ((1, 2), 1)):
    with pytest.raises(types.InputError, match='no text has room'):
      labelled_text.rows(
        ['ab'],
        [0],
        tokenizer=BYTES,
        length=length,
        num_classes=1,
        frame=frame,
      )


def test_targets_that_are_cut_are_told(caplog):
  made = dict(tokenizer=BYTES, length=9, target_length=6)
  labelled_text.pairs(['a', 'b'], ['abcd', 'x'], **made)
  assert not caplog.text
  labelled_text.pairs(['a', 'b'], ['abcde', 'x'], **made)
  assert re.search('50.0 % of the targets .* 6 tokens .*needs 7', caplog.text)
  assert 'config.data.target_length' in caplog.text
