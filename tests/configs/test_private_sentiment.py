"""A published text model, trained privately and without noise."""

import functools
import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from configs.parts import private_sentiment
from configs.parts import private_study
from configs.studies import dp_finetuning as study
from repjax.data.reading import source
from repjax.models import text_heads
from repjax.models import transformer
from repjax.weights import text_weights

WORDS = ('<s>', '<pad>', '</s>', '<unk>', 'good', 'bad', 'film', 'plot')


@pytest.fixture
def weights(tmp_path):
  """A folder of a tiny model, as people download it."""
  network = text_heads.MaskedLM(
    **{
      **transformer.ROBERTA,
      **dict(vocab_size=8, hidden_dim=8, mlp_dim=12, num_heads=2),
      **dict(num_layers=1, num_positions=8),
    }
  )
  init = jax.jit(functools.partial(network.init, train=False))
  params = init(jax.random.key(0), np.ones((1, 2), int))
  text_weights.save(
    tmp_path / 'model.safetensors', params['params'], family='roberta'
  )
  (tmp_path / 'config.json').write_text(
    json.dumps(
      dict(
        model_type='roberta',
        vocab_size=8,
        hidden_size=8,
        intermediate_size=12,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=10,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
      )
    )
  )
  made = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token='<unk>')
  )
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  made.save(str(tmp_path / 'tokenizer.json'))
  return str(tmp_path)


def rows(count):
  """Texts of good films and of bad ones."""
  label = np.arange(count, dtype=np.int32) % 2
  ids = np.full((count, 4), 6, np.int32)
  ids[:, 0], ids[:, -1] = 0, 2
  ids[:, 1] = 4 + label
  return source.from_arrays(
    'films',
    {
      'tokens': ids,
      'token_mask': np.ones((count, 4), np.float32),
      'label': label,
    },
    num_classes=2,
  )


def test_little_noise_costs_little(weights, monkeypatch):
  config = study.get_config('minilm')
  config.update(
    dict(
      batch_size=20,
      epochs=20.0,
      data=dict(length=4),
      weights=weights,
      dp=dict(epsilon=500.0, accountant='rdp'),
    )
  )
  group = config.study.sentiment
  group.update(num_held_out=12, plain_batch_size=16)
  del group.private['LoRA']
  for kind in (group.private, group.plain):
    for arm in kind.values():
      arm.rates = (1e-6, 6e-2 if kind is group.private else 3e-2)
  read = dict(train=rows(72), validation=rows(40))
  monkeypatch.setattr(
    private_sentiment.text_models,
    'sentences',
    lambda config, tokenizer: lambda split: read[split],
  )
  found, _ = private_sentiment.measure(config, (0, 1))
  plain, private = (
    found[f'sentiment, {arm}, full: test accuracy']
    for arm in ('no noise', 'epsilon 500')
  )
  assert plain.shape == private.shape == (2,)
  # The rate that learns is chosen where one does, by one seed for both.
  chosen = found['sentiment, no noise, full: held-out accuracy at rate 0.03']
  assert chosen.shape == (1,)
  assert min(*chosen, *plain, *private) > 0.9
  np.testing.assert_allclose(found['sentiment_full_cost'], plain - private)


def test_encoders_learn_first_from_the_public_sets_that_are_named(real_data):
  config = study.get_config('gpu')
  config.data.update(dir=real_data, train_split='train[:300]', vocab_size=300)
  task = private_study._task(config)
  assert len(task.train['label']) == 300
  assert task.vocab_size == 301
  assert task.public['tokens'].shape[1] == 32
  # Its own sentences are short; the others are 300 more.
  assert task.public['tokens'].size > 1.5 * task.train['token_mask'].sum()
