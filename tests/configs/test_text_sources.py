"""Each source of weights, tokens and data: rows are right, or it is refused."""

import json
import re

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from configs import dp_finetuning
from configs import mam_adapter
from configs.parts import text_tasks
from configs.studies import mam_adapter as study
from repjax.data.reading import source
from repjax.data.sets import intents
from repjax.data.sets import topic_tasks
from repjax.data.text import published_tokens
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.types import InputError

SIZES = dict(hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=1)
# What config.json of each family says of a network of 8 x 12 with one layer.
_ENCODER = dict(
  hidden_size=8,
  intermediate_size=12,
  num_attention_heads=2,
  num_hidden_layers=1,
)
STORED = dict(
  bert=_ENCODER,
  roberta=dict(_ENCODER, max_position_embeddings=514, type_vocab_size=1),
  gpt2=dict(n_embd=8, n_inner=12, n_head=2, n_layer=1),
  bart=dict(
    d_model=8,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
  ),
)
TEXTS = ['the name is it', 'a food near the river', 'it is', 'the the a'] * 4
TARGETS = ['it', 'river food', 'is it', 'name'] * 4


def published(folder, family, *, shift=0, vocab_size=None):
  """A folder with the config.json and tokenizer.json of a model.

  The tokenizer is of bytes; `shift` gives it other ids.
  """
  folder.mkdir()
  signs = sorted(pre_tokenizers.ByteLevel.alphabet())
  signs = signs[shift:] + signs[:shift]
  words = ['<s>', '<pad>', '</s>', '<unk>', *signs, '<|endoftext|>']
  made = tokenizers.Tokenizer(
    models.BPE({word: i for i, word in enumerate(words)}, [])
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  if family != 'gpt2':
    made.post_processor = processors.RobertaProcessing(
      ('</s>', 2), ('<s>', 0), add_prefix_space=False, trim_offsets=False
    )
  made.save(str(folder / 'tokenizer.json'))
  fields = dict(STORED[family], vocab_size=vocab_size or len(words))
  (folder / 'config.json').write_text(
    json.dumps({'model_type': family, **fields})
  )
  return folder


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Name -> what weights and data.tokenizer can be."""
  room = tmp_path_factory.mktemp('sources')
  found = {family: published(room / family, family) for family in STORED}
  found['other'] = published(room / 'other', 'bert', shift=9)
  found['bare'] = published(room / 'bare', 'bert')
  (found['bare'] / 'tokenizer.json').unlink()
  for name in ('bert', 'other'):
    found[f'tokens of {name}'] = found[name] / 'tokenizer.json'
  learned = found['learned'] = room / 'subwords.json'
  tokens.Subwords.train(TEXTS + TARGETS, vocab_size=270).save(str(learned))
  return {'': '', **{name: str(path) for name, path in found.items()}}


@pytest.fixture(autouse=True)
def tfds(monkeypatch):
  """Small sets of the names that recipes read from TFDS."""
  texts, targets = (np.array(x, object) for x in (TEXTS, TARGETS))
  sets = {
    'glue/sst2': dict(sentence=texts, label=np.arange(16) % 2),
    'xsum': dict(document=texts, summary=targets),
    'e2e_nlg': dict(meaning_representation=texts, human_reference=targets),
  }
  load = source.load

  def of(name, split, **settings):
    if name not in sets:
      return load(name, split, **settings)
    return source.from_arrays(
      name, sets[name], num_classes=2 if 'label' in sets[name] else None
    )

  monkeypatch.setattr(source, 'load', of)


# (recipe, its preset, data.name) -> what is read and written.
TASKS = {
  'MAM sst2': (mam_adapter, 'paper_classification', 'glue/sst2'),
  'MAM topics': (mam_adapter, 'small', 'python_topics'),
  'MAM pairs': (mam_adapter, 'paper', 'xsum'),
  'MAM relatives': (mam_adapter, 'small_generation', 'relatives'),
  'MAM completions': (mam_adapter, 'paper', 'e2e_nlg'),
  'DP sst2': (dp_finetuning, 'paper', 'glue/sst2'),
  'DP completions': (dp_finetuning, 'paper_generation', 'e2e_nlg'),
  'DP images': (dp_finetuning, 'small', 'digits'),
}


def configured(task, weights, tokenizer):
  recipe, preset, name = TASKS[task]
  config = recipe.get_config(preset)
  fields = dict(
    batch_size=4,
    eval_batch_size=4,
    weights=weights,
    data=dict(name=name, tokenizer=tokenizer),
    step=dict(compute_dtype='float32'),
  )
  if task == 'MAM completions':
    fields['data'] |= dict(
      kind='completions',
      column='meaning_representation',
      target='human_reference',
    )
  if 'images' not in task:
    fields['data'] |= dict(length=40, target_length=20)
    fields['data'] |= dict(vocab_size=280)
    fields['model'] = SIZES
  if recipe is mam_adapter:
    fields['adapter'] = dict(rank=2, length=2, hidden_dim=0)
    fields['pretraining'] = dict(steps=2)
    if not weights and 'completions' in task:
      fields['adapter']['kind'] = 'full'
  else:
    fields['dp'] = dict(accountant='rdp', sampling_rate=0.0)
    fields['epochs'] = 1.0
    fields['step'] |= dict(microbatches=1)
  for group in [k for k, x in fields.items() if isinstance(x, dict)]:
    known = config[group]
    fields[group] = {k: x for k, x in fields[group].items() if k in known}
  config.update(fields)
  return recipe, config


# What the families of weights are read for.
READS = {
  'MAM sst2': ('bert', 'roberta'),
  'MAM topics': ('bert', 'roberta'),
  'MAM pairs': ('bart',),
  'MAM relatives': (),
  'MAM completions': ('gpt2',),
  'DP sst2': ('bert', 'roberta'),
  'DP completions': ('gpt2',),
  'DP images': (),
}


def refusal(task, weights, tokenizer):
  """What the message says, or None: the table."""
  if task == 'DP images':
    return 'reads no text' if weights or tokenizer else None
  if task == 'MAM relatives':
    return 'has its own words' if weights or tokenizer else None
  if not weights:
    return 'only tokenizers that' if tokenizer.startswith('tokens') else None
  family = weights if weights in STORED else 'bert'
  if family not in READS[task]:
    return f'is {family}.*needs {" or ".join(READS[task])}'
  if tokenizer == 'learned':
    return 'around a text'
  if weights == 'bare':
    return None if tokenizer else r'bare/tokenizer\.json cannot be read'
  # All but the other have the same words here.
  other = (weights == 'other', tokenizer == 'tokens of other')
  if tokenizer and any(other) and not all(other):
    return 'has other words or ids than'
  return None


@pytest.mark.parametrize(
  'tokenizer', ['', 'learned', 'tokens of bert', 'tokens of other']
)
@pytest.mark.parametrize('weights', ['', *STORED, 'other', 'bare'])
@pytest.mark.parametrize('task', TASKS)
def test_rows_are_those_of_the_weights_or_refused(
  task, weights, tokenizer, files
):
  recipe, config = configured(task, files[weights], files[tokenizer])
  says = refusal(task, weights, tokenizer)
  if says:
    with pytest.raises(InputError, match=says) as error:
      recipe.build(config)
    assert '\n' not in str(error.value)
    return
  made = recipe.build(config)
  if weights:
    # What config.json will say is what is trained.
    assert {k: config.model[k] for k in SIZES} == SIZES
  if task in ('DP images', 'MAM relatives'):
    return
  row = {k: x[0] for k, x in made.train.batch(0).items()}
  if weights:
    read = published_tokens.Published.load(files[tokenizer or weights])
    before, after = read.frame
  elif tokenizer:
    read, before, after = tokens.Subwords.load(files[tokenizer]), 1, 2
  elif recipe is dp_finetuning:
    read, before, after = tokens.Bytes(), 1, 2
  else:
    return  # Learned on the spot; `tests/data` has it.
  texts = TEXTS
  if 'topics' in task:
    pieces = topic_tasks.topic_pieces(**config.topics)
    texts = pieces.train
  elif 'completions' in task:
    texts = [f'{x} | {y}' for x, y in zip(TEXTS, TARGETS, strict=True)]
  if 'pairs' in task:
    real = row['source'][row['source_mask'] > 0].tolist()
  elif 'completions' in task:
    targets = row['weights'] > 0
    real = row['tokens'][: targets.nonzero()[0][-1] + 1].tolist()
  else:
    real = row['tokens'][row['token_mask'] > 0].tolist()
  room = 40 - bool(weights) - 1
  whole = {tuple(read.encode(x)[:room].tolist()) for x in texts}
  inside = [x for x in real if x not in (before, after)]
  assert real[0] == before or 'pairs' in task
  assert tuple(inside) in whole, read.decode(inside)


@pytest.mark.parametrize('task', ['MAM topics', 'MAM pairs', 'DP completions'])
def test_more_ids_than_embeddings_are_refused_before_training(task, tmp_path):
  family = READS[task][0]
  folder = published(tmp_path / 'model', family, vocab_size=260)
  recipe, config = configured(task, str(folder), '')
  name = re.escape(str(folder))
  says = rf'{name}/tokenizer\.json has 261 ids.*{name} embeds 260'
  with pytest.raises(InputError, match=says):
    recipe.build(config)
  # The reverse is fine: tables are padded to round sizes.
  folder = published(tmp_path / 'padded', family, vocab_size=320)
  recipe, config = configured(task, str(folder), '')
  recipe.build(config)
  # A gap in the ids: fewer words than ids.
  path = folder / 'tokenizer.json'
  stored = json.loads(path.read_text())
  vocab = stored['model']['vocab']
  vocab['<|endoftext|>'] = 320
  path.write_text(json.dumps(stored))
  with pytest.raises(InputError, match='has 321 ids'):
    recipe.build(config)


def test_config_json_tells_what_was_trained(tmp_path):
  folder = published(tmp_path / 'model', 'bert')
  config = mam_adapter.get_config('paper_classification')
  config.update(dict(batch_size=4, eval_batch_size=4, weights=str(folder)))
  config.data.length = 24
  config.adapter.update(rank=2, length=2)
  fields = set(config.model)
  mam_adapter.build(config)
  assert config.model.hidden_dim == 8 and config.model.num_layers == 1
  # RoBERTa's, as the preset has them, are not BERT's.
  assert config.model.position_offset == 0
  assert config.model.num_token_types == 2
  assert set(config.model) == fields


@pytest.mark.parametrize('preset', ['paper', 'paper_classification', 'small'])
def test_what_a_preset_needs_is_said_before_data_are_read(preset):
  config = mam_adapter.get_config(preset)
  config.data.name = 'not_there'
  config.pretraining.steps = 0
  with pytest.raises(InputError, match=r'--config\.weights=FOLDER'):
    mam_adapter.build(config)


def test_the_study_takes_weights_or_refuses_them_first(files):
  config = study.get_config('smoke')
  config.weights = files['bert']
  with pytest.raises(InputError, match='relatives has its own words'):
    study.run(config, (0,))
  for preset in ('paper', 'paper_classification'):
    with pytest.raises(InputError, match=f'no preset {preset!r}, only small'):
      study.get_config(preset)


def test_rows_of_topics_without_pretraining_are_those_with_it():
  config = mam_adapter.get_config('smoke')
  before = text_tasks.read(config)
  config.adapter.kind = 'full'
  config.pretraining.steps = 0
  after = text_tasks.read(config)
  assert before.public is not None and after.public is None
  np.testing.assert_array_equal(
    before.train.column('tokens'), after.train.column('tokens')
  )


def test_intents_are_few_and_pretraining_reads_other_sets(monkeypatch):
  config = study.get_config('clinc')
  config.data.update(vocab_size=300, length=6, public=('clinc_oos:text', 'b:y'))
  config.intents.update(num_classes=2, rows_per_class=1)

  def load(name, split, *, data_dir):
    if name == 'b':
      return source.from_arrays('b', {'y': np.array([b'river'] * 40, object)})
    of = np.arange(300, dtype=np.int32) % 150
    texts = np.array([f'{split} {x}'.encode() for x in of], object)
    return source.from_arrays(name, {'text': texts, 'intent': of}, split=split)

  for module in (source, intents.sources, running_text.sources):
    monkeypatch.setattr(module, 'load', load)
  task = text_tasks.read(config)
  assert task.num_classes == 2
  assert sorted(task.train.column('label')) == [0, 1]  # One row each,
  test = task.sources('test').columns()
  np.testing.assert_array_equal(np.bincount(test['label']), [2, 2])  # or all.
  # Subwords and windows are of the public sets' training texts, in their order.
  learned = tokens.Subwords.train(
    [*(f'train {i % 150}' for i in range(300)), *['river'] * 40],
    vocab_size=300,
  )
  assert task.tokenizer.vocab_size == learned.vocab_size + 1
  # A window begins with the last token of the one before.
  public = learned.decode(task.public['tokens'][:, :-1].ravel())
  assert public.startswith('train 0train 1train 2train 3')
  assert public.endswith('riverriver') and 'test' not in public
  config.data.public = ('text',)
  with pytest.raises(InputError, match=r'config\.data\.public'):
    text_tasks.read(config)


@pytest.mark.parametrize('name', ['python_topics', 'relatives'])
def test_sets_that_are_made_here_take_no_files(name):
  preset = 'smoke' if name == 'python_topics' else 'smoke_generation'
  task = text_tasks.read(mam_adapter.get_config(preset))
  assert len(task.sources('test'))
  for split in ('inputs:new.txt', 'labelled:new.csv'):
    with pytest.raises(InputError, match=f'{name} is made on the spot'):
      task.sources(split)


def test_sets_that_are_made_have_no_other_splits():
  config = mam_adapter.get_config('smoke')
  task = text_tasks.read(config)
  assert len(task.sources('test')) != len(task.sources('train'))
  with pytest.raises(InputError, match=r'config\.data\.eval_splits'):
    task.sources('validation')
