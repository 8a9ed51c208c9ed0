"""Fine-tuning from configs: equal budgets, published weights, composition."""

import json
import sys
import types as python_types

import chex
from flax import traverse_util
import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from configs import dp_finetuning
from configs import mam_adapter
from configs.parts import text_finetuning
from configs.parts import text_tasks
from configs.studies import mam_adapter as study
from repjax import types
from repjax.data.batches import users
from repjax.data.reading import source
from repjax.data.text import labelled_text
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import step as steps
from repjax.models import text_heads
from repjax.models import transformer
from repjax.types import InputError
from repjax.weights import text_weights

# Settings of config.json: a network of 8 x 12 with one layer.
BERT_LIKE = dict(
  vocab_size=9,
  hidden_size=8,
  intermediate_size=12,
  num_attention_heads=2,
  num_hidden_layers=1,
)
STORED = {
  'roberta': dict(
    BERT_LIKE,
    max_position_embeddings=42,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
  ),
  'gpt2': dict(
    vocab_size=9, n_embd=8, n_inner=12, n_head=2, n_layer=1, n_positions=60
  ),
  'bart': dict(
    vocab_size=9,
    d_model=8,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_position_embeddings=40,
  ),
}
TINY = dict(vocab_size=9, hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=1)
NETWORKS = {
  'roberta': text_heads.MaskedLM(
    **{**transformer.ROBERTA, **TINY, 'num_positions': 40}
  ),
  'gpt2': transformer.DecoderLM(
    **{**transformer.GPT2, **TINY, 'num_positions': 60}
  ),
  'bart': transformer.EncoderDecoder(
    **{**transformer.BART, **TINY, 'num_positions': 40}
  ),
}


def published(folder, family):
  """A folder as people download it; returns its parameters."""
  inputs = {'source': np.ones((1, 2), int)} if family == 'bart' else {}
  shapes = jax.eval_shape(
    lambda: NETWORKS[family].init(
      jax.random.key(0), np.ones((1, 2), int), train=False, **inputs
    )
  )['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes
  )
  text_weights.save(folder / 'model.safetensors', params, family=family)
  (folder / 'config.json').write_text(
    json.dumps({'model_type': family, **STORED[family]})
  )
  words = ['<s>', '<pad>', '</s>', '<unk>', 'the', 'a', 'is', '<|endoftext|>']
  made = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<unk>')
  )
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  if family != 'gpt2':
    made.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0))
  made.save(str(folder / 'tokenizer.json'))
  return params


def topics(config, folder):
  """Reads the embedded texts as a set of pairs."""
  config.update(
    dict(
      batch_size=8,
      eval_batch_size=8,
      data=dict(
        name='python_topics',
        eval_splits=('validation',),
        column='topic',
        target='text',
        length=24,
      ),
      weights=str(folder),
      step=dict(compute_dtype='float32'),
    )
  )
  return config


def warm(experiment):
  """(batch, state that training starts from)."""
  batch = experiment.train.batch(0)
  rows = {name: x[:1] for name, x in batch.items()}
  state = jax.jit(experiment.method.init)(jax.random.key(0), rows)
  return batch, experiment.warm_start(state)


def task_of(config):
  """What a study learns; where its set is not here, as many rows of nothing."""
  if config.data.name not in ('clinc_oos', 'glue/sst2'):
    return text_tasks.read(config)
  classes = {'clinc_oos': 20, 'glue/sst2': 2}[config.data.name]
  vocab_size = 30_522 if config.weights else config.data.vocab_size + 1
  config.weights = ''  # The geometry is that of the weights.
  rows = source.from_arrays(
    'nothing',
    {
      'tokens': np.zeros((1, config.data.length), np.int32),
      'token_mask': np.ones((1, config.data.length)),
      'label': np.zeros(1, np.int32),
    },
  )
  size = text_tasks.Task(rows, lambda _: rows, None, classes)
  return size._replace(
    tokenizer=python_types.SimpleNamespace(vocab_size=vocab_size)
  )


@pytest.mark.parametrize(
  ('preset', 'share'),
  [
    ('small', (5.5, 7)),
    # He et al. give MAM 6.7 % of BART's parameters,
    ('small_generation', (5.5, 7)),
    ('clinc', (3, 4)),
    # and 0.5 % of RoBERTa's.
    ('minilm', (0.6, 0.7)),
    ('minilm_clinc', (0.6, 0.75)),
  ],
)
def test_arms_have_equal_budgets(preset, share):
  config = study.get_config(preset)
  task = task_of(config)
  base = text_finetuning.model(config, task)
  percents = {}
  row = {name: x[:1] for name, x in task.train.read([0]).items()}
  row['mask'] = np.ones(1)
  for arm, settings in config.arms.items():
    model = finetuning.adapt(base, **settings)
    method = text_finetuning.method(
      config, task, model, text_finetuning.links(config, 10, 1.0)
    )
    state = jax.eval_shape(method.init, jax.random.key(0), row)
    percents[arm] = adapters.trained_percent(model, steps.variables(state))
  assert percents.pop('full') == percents.pop('scratch') == 100
  if 'head' in percents:
    assert percents.pop('head') < min(percents.values())
    assert percents.pop('layers', 99) > max(percents.values())
  assert all(share[0] < x < share[1] for x in percents.values()), percents
  # None of those that MAM is compared with has fewer but for one percent.
  assert percents['MAM'] <= 1.015 * min(percents.values()), percents
  assert max(percents.values()) < 1.06 * min(percents.values()), percents


def test_presets_of_the_study_lie_over_those_of_the_recipe():
  small, sst2 = (study.get_config(x) for x in ('small', 'sst2'))
  assert sst2.data.name == 'glue/sst2'
  assert sst2.data.eval_splits == ('validation',)
  assert sst2.study.parts == ('classification',)
  for group in ('arms', 'model', 'tx', 'pretraining'):
    assert sst2[group] == small[group]
  # What the study makes of `small` for its second part is `small_generation`.
  assert (
    study.generation_of(small).to_dict()
    == study.get_config('small_generation').to_dict()
  )


def test_a_private_run_adapts_published_weights(tmp_path):
  params = published(tmp_path, 'gpt2')
  config = topics(dp_finetuning.get_config('paper_generation'), tmp_path)
  config.epochs = 1.0
  config.step.microbatches = 1
  config.dp.accountant = 'rdp'
  config.adapter.update(kind='lora', rank=2)
  made = dp_finetuning.build(config)
  made = made.guard.begin(made, None, {})
  batch, state = warm(made)
  chex.assert_trees_all_equal(state.model_state[types.FROZEN], params)
  assert batch['tokens'][0, 0] == 7  # <|endoftext|>
  made.guard.check(made, state, '')
  after, _ = jax.jit(made.method.update)(state, batch, jax.random.key(1))
  chex.assert_trees_all_equal(after.model_state, state.model_state)
  moved = traverse_util.flatten_dict(
    jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, state.params)
  )
  # Noise reaches every trained leaf, and only LoRA's are trained.
  assert all(x > 0 for x in moved.values())
  assert {path[-3] for path in moved} == {'lora'}
  assert made.guard.statement(made.steps)['privacy'].epsilon == pytest.approx(
    3.0, rel=0.01
  )


def test_texts_of_users_are_protected_together(tmp_path):
  published(tmp_path, 'gpt2')
  config = topics(dp_finetuning.get_config('paper_generation'), tmp_path)
  config.step.microbatches = 1
  config.dp.update(accountant='rdp', delta=0.01, user_column='topic')
  config.dp.rows_per_user = 2
  made = dp_finetuning.build(config)
  topic = source.load('python_topics', 'train').column('topic')
  assert made.train.num_users == len(set(topic.tolist()))
  assert made.train.rows_per_user == 2
  made = made.guard.begin(made, None, {})
  assert made.guard.statement(made.steps)['privacy'].unit == users.UNIT
  config.dp.user_column = 'author'
  with pytest.raises(InputError, match='author'):
    dp_finetuning.build(config)


def test_summaries_are_learned_from_published_weights(tmp_path):
  params = published(tmp_path, 'bart')
  config = topics(mam_adapter.get_config('paper'), tmp_path)
  config.data.update(column='text', target='topic', target_length=8)
  config.adapter.update(rank=3, length=2, hidden_dim=5)
  made = mam_adapter.build(config)
  batch, state = warm(made)
  chex.assert_trees_all_equal(state.model_state[types.FROZEN], params)
  assert (batch['source'][:, 0] == 0).all()
  np.testing.assert_array_equal(batch['tokens'][:, :2], [[2, 0]] * 8)
  # Reparametrized prefixes train more than is kept.
  shared = state.params['reparametrization_0']
  assert shared['hidden']['kernel'].shape == (8, 5)
  config.adapter.kind = 'full'
  chex.assert_trees_all_equal(warm(mam_adapter.build(config))[1].params, params)


def test_classes_are_learned_from_published_weights(tmp_path, monkeypatch):
  params = published(tmp_path, 'roberta')
  rows = source.from_arrays(
    'glue/sst2',
    {
      'sentence': np.array([b'the', b'a is', b'is', b'the a'] * 4, object),
      'label': np.arange(16) % 2,
    },
    num_classes=2,
  )
  monkeypatch.setattr(
    labelled_text.sources, 'load', lambda *args, **kwargs: rows
  )
  config = mam_adapter.get_config('paper_classification')
  config.update(
    dict(
      batch_size=8, weights=str(tmp_path), step=dict(compute_dtype='float32')
    )
  )
  config.data.length = 6
  config.adapter.update(rank=3, length=2)
  made = mam_adapter.build(config)
  batch, state = warm(made)
  base = state.model_state[types.FROZEN]
  for name in ('token_embedding', 'encoder'):
    chex.assert_trees_all_equal(base[name], params[name])
  assert {'head', 'pooling', 'encoder', 'reparametrization_0'} == set(
    state.params
  )
  outputs = jax.jit(made.method.predict)(state, batch)
  measured = made.measure({k: np.asarray(x) for k, x in outputs.items()}, batch)
  assert {'accuracy', 'f1', 'loss'} <= set(measured)


@pytest.mark.parametrize(
  ('family', 'fields', 'message'),
  [
    ('gpt2', {}, 'is gpt2.*needs bart'),
    (None, {}, 'config.json'),
    (None, dict(weights=''), 'adapts a pretrained model'),
    (None, dict(data=dict(kind='words')), 'config.data.kind'),
    ('bart', dict(adapter=dict(kind='all')), 'kind must be one of'),
  ],
)
def test_what_cannot_be_is_refused(family, fields, message, tmp_path):
  if family:
    published(tmp_path, family)
  config = topics(mam_adapter.get_config('paper'), tmp_path)
  config.update(fields)
  if not config.weights:
    config.data.vocab_size = 300
    config.model.update(hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1)
  elif family is None:
    published(tmp_path, 'bart')
    (tmp_path / 'config.json').unlink()
  with pytest.raises(InputError, match=message):
    mam_adapter.build(config)


@pytest.mark.parametrize(
  'fields',
  [
    dict(adapter=dict(kind='lora'), sam=dict(rho=0.05)),
    dict(attention=dict(kind='favor', num_features=8)),
  ],
  ids=['SAM and LoRA', 'MAM and Performer'],
)
def test_methods_of_other_papers_compose_by_fields(fields):
  config = mam_adapter.get_config('smoke')
  config.update(fields)
  made = mam_adapter.build(config)
  batch = made.train.batch(0)
  rows = {name: x[:1] for name, x in batch.items()}
  state = jax.jit(made.method.init)(jax.random.key(0), rows)
  after, sums = jax.jit(made.method.update)(state, batch, jax.random.key(1))
  assert np.isfinite(sums['loss'][0])
  chex.assert_trees_all_equal(
    after.model_state[types.FROZEN], state.model_state[types.FROZEN]
  )
  assert ('projection' in state.model_state) == ('attention' in fields)
  block = state.params['encoder']['block_0']
  if 'sam' in fields:
    assert set(block) == {'attention'}
    assert set(block['attention']) == {'query', 'value'}
  else:
    assert set(block) == {'attention', 'mlp'}


@pytest.mark.parametrize('package', ['sacrebleu', 'rouge_score'])
def test_missing_scorers_are_told_before_anything_trains(monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)

  def trained(*args, **kwargs):
    pytest.fail('it has trained')

  monkeypatch.setattr(study.adapter_study, 'measure', trained)
  with pytest.raises(InputError, match=r'\[text\]'):
    study.run(study.get_config('smoke'), (0, 1))
