"""Captions of a set: no order, and one score whichever way they are read."""

import jax
import numpy as np
import pytest

from repjax.models import describer

_VOCAB = 9


@pytest.fixture(scope='module')
def made():
  model = describer.Describer(
    describer.Captioner(_VOCAB, embed_dim=4, hidden_dim=6),
    describer.LanguageModel(_VOCAB, embed_dim=4, hidden_dim=5),
  )
  rng = np.random.default_rng(0)
  features = rng.normal(size=(3, 7, 5)).astype(np.float32)
  tokens = rng.integers(3, _VOCAB, (3, 4))
  read = jax.jit(model.apply, static_argnames=('train', 'method'))
  variables = jax.jit(model.init, static_argnames='train')(
    {'params': jax.random.key(0)}, features, tokens, train=False
  )
  return model, read, variables, features, tokens


def test_the_order_of_exemplars_changes_nothing(made):
  _, read, variables, features, tokens = made
  order = np.random.default_rng(1).permutation(features.shape[1])
  first = read(variables, features, tokens, train=False)
  other = read(variables, features[:, order], tokens, train=False)
  np.testing.assert_allclose(first.likelihood, other.likelihood, atol=1e-6)
  np.testing.assert_allclose(
    np.asarray(first.attention)[..., order], other.attention, atol=1e-6
  )


def test_attention_sums_to_one_and_scores_are_distributions(made):
  _, read, variables, features, tokens = made
  scores = read(variables, features, tokens, train=False)
  np.testing.assert_allclose(scores.attention.sum(-1), 1, rtol=1e-5)
  for x in (scores.likelihood, scores.prior):
    np.testing.assert_allclose(np.exp(x).sum(-1), 1, rtol=1e-5)


def test_reading_is_stepping(made):
  _, read, variables, features, tokens = made
  whole = read(variables, features, tokens, train=False)
  state = read(variables, features, method='start')
  for i in range(tokens.shape[1]):
    scores, state = read(variables, state, tokens[:, i], method='step')
    for a, b in zip(scores, whole, strict=True):
      np.testing.assert_allclose(a, b[:, i], atol=1e-5)


def test_the_language_model_sees_no_exemplars(made):
  _, read, variables, features, tokens = made
  one = read(variables, features, tokens, train=False)
  other = read(variables, features + 1, tokens, train=False)
  np.testing.assert_array_equal(one.prior, other.prior)
  assert not np.allclose(one.likelihood, other.likelihood)


def test_a_step_is_the_published_one(made):
  """Attention, gate and LSTM as the paper writes them, in NumPy."""
  _, read, variables, features, tokens = made
  params = jax.tree.map(np.asarray, variables['params']['caption'])

  def dense(name, x):
    layer = params[name]
    return x @ layer['kernel'] + layer['bias']

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  mean = features.mean(1)
  hidden, cell = np.tanh(dense('hidden', mean)), np.tanh(dense('cell', mean))
  seen = np.tanh(dense('query', hidden)[:, None] + dense('key', features))
  weights = np.exp(dense('score', seen)[..., 0])
  weights /= weights.sum(1, keepdims=True)
  context = np.einsum('bk,bkd->bd', weights, features)
  gate = params['gate']['dense']
  context *= sigmoid(hidden @ gate['kernel'] + gate['bias'])
  x = np.concatenate([params['embed']['embedding'][tokens[:, 0]], context], 1)
  lstm = params['lstm']

  def part(name):
    inner, outer = lstm[f'i{name}'], lstm[f'h{name}']
    return x @ inner['kernel'] + hidden @ outer['kernel'] + outer['bias']

  cell = sigmoid(part('f')) * cell + sigmoid(part('i')) * np.tanh(part('g'))
  hidden = sigmoid(part('o')) * np.tanh(cell)
  logits = dense('head', hidden)
  expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  found = read(variables, features, tokens, train=False)
  np.testing.assert_allclose(found.likelihood[:, 0], expected, atol=1e-5)
  np.testing.assert_allclose(found.attention[:, 0], weights, atol=1e-6)


def test_dropout_is_for_training_alone(made):
  _, read, variables, features, tokens = made
  one, two = (
    read(
      variables,
      features,
      tokens,
      train=True,
      rngs={'dropout': jax.random.key(seed)},
    )
    for seed in (1, 2)
  )
  assert not np.allclose(one.likelihood, two.likelihood)
