"""Words of a tokenizer's own are text like any other where a text has them."""

import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from repjax.data.text import published_tokens
from repjax.data.text import tokens

SPECIAL = ['<s>', '<pad>', '</s>', '<unk>']
BERT_SPECIAL = ['[CLS]', '[PAD]', '[SEP]', '[UNK]']
LETTERS = list('abcdefghijklmnopqrstuvwxyz<>[]/|')


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
@pytest.mark.parametrize(
  'text',
  ['a <end> b', '<start>', '<pad><end>', 'x<end', '</s> [SEP]', ' <end>'],
)
def test_learned_subwords_give_every_text_back(kind, text):
  learned = tokens.Subwords.train(
    ['a <end> b', '<start> of <pad> words'] * 9, vocab_size=280, kind=kind
  )
  ids = learned.encode(text)
  assert learned.decode(ids) == text
  assert min(ids) > tokens.END


def _unigram():
  """As those of SentencePiece: special pieces are the likeliest ones."""
  pieces = [(x, 0.0) for x in SPECIAL]
  pieces += [(x, -3.0 - i / 9) for i, x in enumerate(['▁', *LETTERS])]
  made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  made.decoder = decoders.Metaspace()
  return made, SPECIAL


def _byte_bpe():
  """As RoBERTa's, GPT-2's and BART's."""
  vocab = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
  made = tokenizers.Tokenizer(
    models.BPE({x: i for i, x in enumerate(vocab)}, [])
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  return made, SPECIAL


def _whole_words_of_bpe():
  """Words that the vocabulary has are taken whole, as by Llama 3."""
  vocab = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
  made = tokenizers.Tokenizer(
    models.BPE({x: i for i, x in enumerate(vocab)}, [], ignore_merges=True)
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = decoders.ByteLevel()
  return made, SPECIAL


def _word_pieces():
  """As BERT's, which knows no capitals."""
  vocab = [*BERT_SPECIAL, *LETTERS, *(f'##{x}' for x in LETTERS)]
  made = tokenizers.Tokenizer(
    models.WordPiece({x: i for i, x in enumerate(vocab)}, unk_token='[UNK]')
  )
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.decoder = decoders.WordPiece()
  return made, BERT_SPECIAL


@pytest.mark.parametrize('listed', [True, False])
@pytest.mark.parametrize(
  'make', [_unigram, _byte_bpe, _whole_words_of_bpe, _word_pieces]
)
def test_published_tokenizers_give_texts_back(make, listed, tmp_path):
  made, special = make()
  begin, _, end, _ = special
  if listed:  # Else only the frame says that they are special.
    made.add_special_tokens(special)
  made.post_processor = processors.RobertaProcessing(
    (end, 2), (begin, 0), add_prefix_space=False, trim_offsets=False
  )
  made.save(str(tmp_path / 'tokenizer.json'))
  read = published_tokens.Published.load(tmp_path)
  assert read.frame == (0, 2)
  for text in (f'a {end} b', f'{begin}', f'ab{end}', f'{end}{begin} c'):
    ids = read.encode(text)
    assert not {0, 2} & set(ids.tolist()), text
    expected = text.lower() if special is BERT_SPECIAL else text
    assert read.decode(ids) == expected
  assert (
    read.encode('ab').tolist()
    == made.encode('ab', add_special_tokens=False).ids
  )


def test_words_that_were_added_keep_their_ids(tmp_path):
  made, special = _byte_bpe()
  made.add_special_tokens([*special, '<mask>'])
  made.add_tokens(['<user>'])
  made.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  made.save(str(tmp_path / 'tokenizer.json'))
  read = published_tokens.Published.load(tmp_path)
  user = made.token_to_id('<user>')
  ids = read.encode('a<user>b<mask>').tolist()
  assert ids[1] == user and user - 1 == made.token_to_id('<mask>')
  assert user - 1 not in ids
  assert read.decode(ids) == 'a<user>b<mask>'
