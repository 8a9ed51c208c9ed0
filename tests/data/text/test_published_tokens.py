"""Tokenizers of published models, and rows made with them."""

import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from repjax import types
from repjax.data.text import labelled_text
from repjax.data.text import published_tokens
from repjax.data.text import tokens

WORDS = ['<s>', '<pad>', '</s>', '<unk>', 'a', 'b', 'c', '<|endoftext|>']
BOS, EOS = 0, 2


def write(folder, *, framed):
  """A tokenizer.json with the ids of RoBERTa and BART, or framed as GPT-2's."""
  made = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token='<unk>')
  )
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(['<s>', '<pad>', '</s>', '<|endoftext|>'])
  if framed:
    made.post_processor = processors.RobertaProcessing(
      ('</s>', EOS), ('<s>', BOS)
    )
  made.enable_truncation(2)  # As files may say.
  made.save(str(folder / 'tokenizer.json'))
  return published_tokens.Published.load(folder)


def test_ids_are_those_of_the_file(tmp_path):
  tokenizer = write(tmp_path, framed=True)
  assert tokenizer.encode(b'a b c a').tolist() == [4, 5, 6, 4]
  assert tokenizer.decode([BOS, 4, 6, EOS]) == 'a c'
  assert (tokenizer.vocab_size, tokenizer.frame) == (8, (BOS, EOS))
  beside = published_tokens.Published.load(tmp_path / 'model.safetensors')
  assert beside == pickle.loads(pickle.dumps(tokenizer)) == tokenizer
  assert write(tmp_path, framed=False).frame == (7, 7)


@pytest.mark.parametrize(
  ('form', 'frame'),
  [('$A </s>', (EOS, EOS)), ('<|endoftext|> $A', (7, 7)), ('<s> $A', None)],
)
def test_one_sign_is_the_end_of_a_text_unless_it_begins_one(
  form, frame, tmp_path
):
  write(tmp_path, framed=False)
  file = str(tmp_path / 'tokenizer.json')
  made = tokenizers.Tokenizer.from_file(file)
  made.post_processor = processors.TemplateProcessing(
    form, special_tokens=[(w, i) for i, w in enumerate(WORDS)]
  )
  made.save(file)
  if frame is None:
    with pytest.raises(types.InputError, match='1 tokens around a text'):
      published_tokens.Published.load(tmp_path)
  else:
    assert published_tokens.Published.load(tmp_path).frame == frame


def test_texts_stand_between_the_ends_that_a_model_knows(tmp_path):
  tokenizer = write(tmp_path, framed=True)
  made = dict(tokenizer=tokenizer, frame=tokenizer.frame)
  rows = labelled_text.rows(
    ['a b c', 'a'], [0, 1], length=4, num_classes=2, **made
  )
  # The end stays where a text is cut.
  assert rows.column('tokens').tolist() == [[0, 4, 5, 2], [0, 4, 2, 0]]
  assert rows.column('token_mask').tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
  rows = labelled_text.completions(['a'], ['c'], length=9, **made)
  read = rows.read([0])
  counted = read['tokens'][read['weights'] > 0].tolist()
  assert read['tokens'][0, 0] == BOS and counted == [6, EOS]
  rows = labelled_text.pairs(
    ['a b'], ['c'], length=5, target_length=6, **made
  ).read([0])
  assert rows['source'].tolist() == [[0, 4, 5, 2, tokens.PAD]]
  assert rows['tokens'].tolist() == [[2, 0, 6, 2, 0, 0]]
  assert rows['weights'].tolist() == [[0, 1, 1, 1, 0, 0]]


def test_pairs_of_own_tokens_end_and_targets_begin():
  made = dict(tokenizer=tokens.Bytes(), length=4, target_length=4)
  rows = labelled_text.pairs(['ab', 'abcdef'], ['xyz', 'x'], **made)
  read = rows.read(np.arange(2))
  a, b, c, x, y = tokens.Bytes().encode('abcxy').tolist()
  end, start, pad = tokens.END, tokens.START, tokens.PAD
  assert read['source'].tolist() == [[a, b, end, pad], [a, b, c, end]]
  assert read['tokens'].tolist() == [[start, x, y, end], [start, x, end, pad]]
  assert read['weights'].tolist() == [[0, 1, 1, 1], [0, 1, 1, 0]]
  assert read['source_mask'].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
  with pytest.raises(types.InputError, match='no text has room'):
    labelled_text.pairs(['a'], ['b'], **{**made, 'target_length': 2})


@pytest.mark.parametrize('content', [None, '{}', '{"model": 3}'])
def test_what_is_no_tokenizer_is_refused(content, tmp_path):
  if content is not None:
    (tmp_path / 'tokenizer.json').write_text(content)
  with pytest.raises(types.InputError, match=r'tokenizer\.json'):
    published_tokens.Published.load(tmp_path)


def test_a_tokenizer_without_ends_is_refused(tmp_path):
  made = tokenizers.Tokenizer(models.WordLevel({'a': 0}, unk_token='a'))
  made.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(types.InputError, match='around a text'):
    published_tokens.Published.load(tmp_path)
