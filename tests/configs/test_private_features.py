"""A private head on what a frozen text model says of texts."""

import functools

import jax
import numpy as np
import pytest

from configs.parts import private_features
from configs.parts import text_models
from configs.studies import dp_finetuning as study
from repjax.data.reading import source
from repjax.models import transformer
from repjax.weights import packaged
from repjax.weights import text_config
from repjax.weights import text_weights


@pytest.fixture(scope='module')
def encoder():
  model = transformer.Encoder(
    **{
      **transformer.ROBERTA,
      **dict(vocab_size=9, hidden_dim=8, mlp_dim=12, num_heads=2),
      **dict(num_layers=1, num_positions=24),
    }
  )
  token = np.ones((1, 2), np.int32)
  init = jax.jit(functools.partial(model.init, train=False))
  return model, init(jax.random.key(0), token)['params']


def _texts(count):
  """Texts of 2 to 20 tokens; the class is told by one of them."""
  rng = np.random.default_rng(count)
  label = np.arange(count, dtype=np.int32) % 2
  ids = rng.integers(5, 9, (count, 20)).astype(np.int32)
  ids[:, 1] = 3 + label
  mask = np.arange(20) < rng.integers(2, 21, (count, 1))
  return {
    'tokens': np.where(mask, ids, 1).astype(np.int32),
    'token_mask': mask.astype(np.float32),
    'label': label,
  }


def test_a_text_has_its_features_whatever_is_read_beside_it(
  encoder, monkeypatch
):
  monkeypatch.setattr(private_features, '_ROWS', 5)
  model, params = encoder
  texts = _texts(13)
  found = private_features.features(model, params, texts)
  np.testing.assert_array_equal(found['label'], texts['label'])
  apply = jax.jit(functools.partial(model.apply, train=False))
  for row in (0, 5, 12):
    size = int(texts['token_mask'][row].sum())
    alone = texts['tokens'][row : row + 1, :size]
    outputs = np.asarray(apply({'params': params}, alone)[0])
    mean = np.mean(outputs, 0)
    np.testing.assert_allclose(
      found['image'][row], mean / np.sqrt(np.mean(mean**2)), atol=1e-5
    )


@pytest.mark.slow
def test_heads_are_private_and_compared_at_rates_of_held_out_rows(
  encoder, monkeypatch, tmp_path
):
  model, params = encoder
  config = study.get_config('minilm_head')
  config.weights = str(tmp_path)
  config.update(dict(batch_size=24, epochs=20.0))
  config.dp.update(epsilon=500.0, accountant='rdp')
  config.study.features.update(num_held_out=30, small_batch=12)
  config.study.features.rates = (1e-6, 1e-1)
  read = dict(train=source.from_arrays('a', _texts(150), num_classes=2))
  read['validation'] = source.from_arrays('b', _texts(60), num_classes=2)

  class Words:
    vocab_size = 9

  for module, name, to in (
    (text_models, 'tokenizer', lambda config: Words()),
    (text_models, 'sentences', lambda config, tokenizer: read.get),
    (text_models, 'model', lambda *_: model),
    (packaged, 'folder', lambda path: path),
    (text_config, 'read', lambda path: text_config.Config('roberta', {})),
    # As good as published: it looks at nothing but words.
    (text_weights, 'load', lambda path, fresh, **_: params),
  ):
    monkeypatch.setattr(module, name, to)
  found, figures = private_features.measure(config, (0, 1))
  large = found['features, epsilon 500, batches of 24, rate 0.1: test accuracy']
  assert found['features, epsilon 500, batches of 24: rate'] == [0.1]
  assert large.shape == (2,) and large.min() > 0.8
  plain = found['features, no noise, batches of 24, rate 0.1: test accuracy']
  np.testing.assert_allclose(found['features_cost'], plain - large)
  assert list(figures) == ['features']
