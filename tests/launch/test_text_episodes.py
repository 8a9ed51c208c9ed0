"""Episodes of texts are judged by what published weights say of them."""

import json

import jax
import launching
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from repjax.data.batches import episodes
from repjax.data.reading import source
from repjax.metrics import averages
from repjax.models import text_heads
from repjax.models import transformer
from repjax.weights import text_weights

WAYS, SHOTS, QUERIES, COUNT, SEED = 3, 2, 4, 10, 3
CLASSES, ROWS = 4, 8
WORDS = ['[PAD]', '[CLS]', '[SEP]', '[UNK]', *'abcdefgh']
SIZES = dict(hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=1)
SIZES |= dict(vocab_size=len(WORDS), num_positions=20)
RNG = np.random.default_rng(0)


def lines():
  """Texts of one or four words, of which each class likes two, in a table."""
  yield 'sentence,label'
  for label in np.repeat(np.arange(CLASSES), ROWS):
    liked = 4 + 2 * label + RNG.integers(0, 2, 4)
    other = RNG.integers(4, len(WORDS), 4)
    ids = np.where(RNG.random(4) < 0.9, liked, other)[: RNG.choice([1, 4])]
    yield f'{" ".join(WORDS[x] for x in ids)},kind {label}'


def bert(folder):
  """A folder as people download it; returns its parameters."""
  network = text_heads.MaskedLM(**{**transformer.BERT, **SIZES})
  shapes = jax.eval_shape(
    lambda: network.init(jax.random.key(0), np.ones((1, 2), int), train=False)
  )['params']
  params = jax.tree.map(
    lambda x: RNG.normal(0, 0.5, x.shape).astype(x.dtype), shapes
  )
  text_weights.save(folder / 'model.safetensors', params, family='bert')
  config = dict(model_type='bert', vocab_size=len(WORDS), hidden_size=8)
  config |= dict(intermediate_size=12, num_attention_heads=2)
  config |= dict(num_hidden_layers=1, max_position_embeddings=20)
  (folder / 'config.json').write_text(json.dumps(config))
  made = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token='[UNK]')
  )
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.post_processor = processors.BertProcessing(('[SEP]', 2), ('[CLS]', 1))
  made.save(str(folder / 'tokenizer.json'))
  return params


def features_of(params, texts):
  """Of the first token, of texts one by one and without any padding."""
  network = transformer.Encoder(**{**transformer.BERT, **SIZES})
  own = {name: params[name] for name in ('token_embedding', 'encoder')}
  apply = jax.jit(lambda x: network.apply({'params': own}, x, train=False))
  ids = [[1, *(WORDS.index(x) for x in text.split()), 2] for text in texts]
  return np.stack([apply(np.array([x]))[0, 0] for x in ids])


def nearest_centroid(features, labels):
  """Accuracy in each episode, in NumPy."""
  drawn = episodes.sampler(
    labels, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=SEED
  ).draw(0, COUNT)
  found = []
  for support, query in zip(drawn.support, drawn.query, strict=True):
    centroids = features[np.asarray(support)].mean(1)
    asked = features[np.asarray(query)]
    distances = np.square(asked[:, :, None] - centroids).sum(-1)
    right = distances.argmin(-1) == np.arange(WAYS)[:, None]
    found.append(right.mean())
  return found


def test_episodes_of_texts_are_those_of_the_features_of_the_weights(tmp_path):
  (tmp_path / 'bert').mkdir()
  (tmp_path / 'texts').mkdir()
  params = bert(tmp_path / 'bert')
  table = '\n'.join(lines()) + '\n'
  for split in ('train', 'test'):
    (tmp_path / 'texts' / f'{split}.csv').write_text(table)
  code, output = launching.call(
    'evaluate',
    '--config=configs/mam_adapter.py:paper_classification',
    f'--config.weights={tmp_path / "bert"}',
    '--config.adapter.kind=full',
    *('--config.data.name=csv', f'--data_dir={tmp_path / "texts"}'),
    *('--config.data.column=sentence', '--config.data.length=9'),
    *('--config.batch_size=8', '--config.eval_batch_size=8'),
    *("--config.data.eval_splits=('test',)", '--config.run.best='),
    *('--layer=pooling', f'--episodes={WAYS}x{SHOTS}', f'--queries={QUERIES}'),
    *(f'--num_episodes={COUNT}', f'--episode_seed={SEED}'),
  )
  assert code == 0, output
  found = json.loads(output.splitlines()[-1])
  rows = source.load('csv', 'test', data_dir=str(tmp_path / 'texts'))
  texts = [x.decode() for x in rows.column('sentence')]
  wanted = averages.interval(
    nearest_centroid(features_of(params, texts), rows.column('label'))
  )
  assert found['accuracy']['nearest centroid'] == pytest.approx(wanted)
  assert 1 / WAYS < wanted[0] < 1  # Neither chance nor too easy to differ.
