"""Rows of two texts: the signs, segments and cuts of published encoders."""

import json
import re

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from configs import mam_adapter
from repjax import types
from repjax.data.text import labelled_text
from repjax.data.text import paired_text
from repjax.data.text import published_tokens
from repjax.data.text import tokens

BYTES = tokens.Bytes()
# One word, one token.
_WORDS = ['[CLS]', '[SEP]', '[UNK]', *'abcdefgh']
_AROUND = (('[SEP]', 1), ('[CLS]', 0))
KINDS = {
  'bert': processors.BertProcessing(*_AROUND),
  'template': processors.TemplateProcessing(
    single='[CLS] $A [SEP]',
    pair='[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1',
    special_tokens=[('[CLS]', 0), ('[SEP]', 1)],
  ),
  'roberta': processors.RobertaProcessing(*_AROUND, add_prefix_space=False),
}


def library(kind):
  words = {word: i for i, word in enumerate(_WORDS)}
  made = tokenizers.Tokenizer(models.WordLevel(words, '[UNK]'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = KINDS[kind]
  return made


def rows(firsts, seconds, tokenizer, length, num_types=2):
  return paired_text.rows(
    firsts,
    seconds,
    np.zeros(len(firsts), np.int32),
    tokenizer=tokenizer,
    length=length,
    num_classes=2,
    num_types=num_types,
  )


@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_what_the_library_makes_of_pairs(kind):
  made = library(kind)
  firsts, seconds = ['a b c', b'h', ''], ['d e', 'f g h', 'a']
  read = rows(
    firsts, seconds, published_tokens.Published(made.to_str()), 12
  ).columns()
  for i, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
    text = first.decode() if isinstance(first, bytes) else first
    wanted = made.encode(text, second)
    real = read['token_mask'][i] > 0
    assert read['tokens'][i][real].tolist() == wanted.ids
    if kind == 'roberta':
      assert set(wanted.type_ids) == {0} and 'token_types' not in read
    else:
      assert read['token_types'][i][real].tolist() == wanted.type_ids
      assert not read['token_types'][i][~real].any()


@pytest.mark.parametrize('length', range(7, 22))
def test_the_longer_text_loses_its_end_token_by_token(length, caplog):
  texts = ['', 'a', 'abcd', 'abcdefgh', 'abcdefghijklmnop']
  pairs = [(x, y.upper()) for x in texts for y in texts]
  read = rows(*zip(*pairs, strict=True), BYTES, length).columns()
  num_cut = 0
  for i, (first, second) in enumerate(pairs):
    a, b = list(first), list(second)
    while len(a) + len(b) > length - 2:
      (a if len(a) > len(b) else b).pop()
    num_cut += len(a) + len(b) < len(first) + len(second)
    left = [tokens.START, *BYTES.encode(''.join(a)), tokens.END]
    right = BYTES.encode(''.join(b)).tolist()
    real = read['token_mask'][i] > 0
    assert read['tokens'][i][real].tolist() == left + right
    kinds = [0] * len(left) + [1] * len(right)
    assert read['token_types'][i][real].tolist() == kinds
  share = f'{100 * num_cut / len(pairs):.1f} % of the pairs have no room'
  assert share in caplog.text


def test_a_model_without_segments_gets_none():
  assert (
    'token_types' not in rows(['a'], ['b'], BYTES, 9, num_types=1).columns()
  )


def test_names_of_columns():
  assert paired_text.names('a', ()) == ('a',)
  assert paired_text.names('a + b', ()) == ('a', 'b')
  # A column that a set calls so is one.
  assert paired_text.names('a+b', ('a+b', 'a', 'b')) == ('a+b',)
  for column in ('a+', '+b', 'a+b+c', 'a+a'):
    with pytest.raises(types.InputError, match=re.escape(column)):
      paired_text.names(column, ('a', 'b', 'c'))


def test_what_cannot_be_a_pair_is_refused():
  with pytest.raises(types.InputError, match=r'no pair .* raise config\.data'):
    rows(['a'], ['b'], BYTES, 3)
  made = library('bert')
  made.post_processor = processors.ByteLevel()
  with pytest.raises(types.InputError, match='tell two texts apart'):
    rows(['a'], ['b'], published_tokens.Published(made.to_str()), 9)


@pytest.fixture(scope='module')
def glue(tmp_path_factory):
  """A folder with a set of pairs that TFDS prepared, columns as in GLUE."""

  class Glue(tfds.core.GeneratorBasedBuilder):
    """Pairs."""

    name = 'glue'
    VERSION = tfds.core.Version('2.0.0')
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='rte'),)
    code_path = None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
          {
            'idx': np.int32,
            'sentence1': tfds.features.Text(),
            'sentence2': tfds.features.Text(),
            'label': tfds.features.ClassLabel(
              names=['entailment', 'not_entailment']
            ),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # Nothing is downloaded.
      return {
        split: self._generate_examples() for split in ('train', 'validation')
      }

    def _generate_examples(self):
      texts = ['a b', 'c', 'd e'] * 4
      for i, pair in enumerate(zip(texts, texts[::-1], strict=True)):
        row = dict(zip(('sentence1', 'sentence2'), pair, strict=True))
        yield i, {'idx': i, 'label': i % 2, **row}

  folder = tmp_path_factory.mktemp('prepared')
  builder = Glue(data_dir=folder, config='rte')
  builder.download_and_prepare(file_format='array_record')
  return str(folder)


def test_a_set_of_pairs_is_read_by_the_name_of_both_columns(glue):
  settings = dict(tokenizer=BYTES, length=12, num_types=2, data_dir=glue)
  read = labelled_text.load(
    'glue/rte', 'train', column='sentence1+sentence2', **settings
  )
  assert read.class_names == ('entailment', 'not_entailment')
  assert len(read) == 12
  row = read.read([0])
  assert BYTES.decode(row['tokens'][0]) == 'a bd e'
  with pytest.raises(types.InputError, match="no column 'sentence3'"):
    labelled_text.load(
      'glue/rte', 'train', column='sentence1+sentence3', **settings
    )


def test_a_published_encoder_reads_segments(glue, tmp_path):
  """The whole way from the config to what predicts."""
  library('bert').save(str(tmp_path / 'tokenizer.json'))
  fields = dict(hidden_size=8, intermediate_size=12, num_attention_heads=2)
  fields |= dict(num_hidden_layers=1, vocab_size=len(_WORDS))
  (tmp_path / 'config.json').write_text(
    json.dumps({'model_type': 'bert', **fields})
  )
  config = mam_adapter.get_config('paper_classification')
  config.update(dict(batch_size=4, eval_batch_size=4, weights=str(tmp_path)))
  config.data.update(name='glue/rte', dir=glue, length=12)
  config.data.column = 'sentence1+sentence2'
  config.adapter.update(kind='lora', rank=2)
  made = mam_adapter.build(config)
  batch = dict(made.train.batch(0))
  assert set(np.unique(batch['token_types'])) == {0, 1}
  state = jax.jit(made.method.init)(jax.random.key(0), batch)
  # Fresh weights are so small that all tokens are alike.
  state = state.replace(
    model_state=jax.tree.map(lambda x: 30 * x, state.model_state)
  )
  predict = jax.jit(made.method.predict)
  right = predict(state, batch)['logits']
  del batch['token_types']
  wrong = predict(state, batch)['logits']
  assert np.abs(right - wrong).max() > 1e-4
