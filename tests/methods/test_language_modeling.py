"""Language models: losses by loops, exact sums, learning, devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import parallel
from repjax.data.sets import grammar
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import language_modeling
from repjax.metrics import classification
from repjax.models import transformer
from repjax.types import InputError

SETTINGS = dict(
  hidden_dim=8, mlp_dim=16, num_heads=2, num_layers=1, num_positions=8
)
KEY = jax.random.key(0)


class Bigram(nn.Module):
  """Stands for any model: small enough to compile at once."""

  @nn.compact
  def __call__(
    self, tokens, *, train, mask=None, source=None, source_mask=None
  ):
    del train, mask
    logits = nn.Embed(7, 7, name='table')(tokens)
    if source is not None:
      seen = nn.Embed(7, 7, name='source')(source) * source_mask[..., None]
      logits += seen.sum(1, keepdims=True)
    return logits


MODEL = Bigram()


def causal_batch():
  rng = np.random.default_rng(0)
  weights = rng.integers(0, 2, (4, 6)).astype(np.float32)
  weights[0] = 0  # A row without a target.
  return {
    'tokens': rng.integers(0, 7, (4, 6)).astype(np.int32),
    'weights': weights,
    'mask': np.array([1, 1, 0, 1], np.float32),
  }


def by_loops(logits, targets, weights):
  """Row losses and sums over tokens of real rows."""
  log_probs = classification.log_softmax(logits)
  nll = np.zeros(targets.shape)
  for place in np.ndindex(*targets.shape):
    nll[place] = -log_probs[(*place, targets[place])]
  hits = log_probs.argmax(-1) == targets
  rows = [
    (n * w).sum() / w.sum() if w.any() else 0.0
    for n, w in zip(nll, weights, strict=True)
  ]
  return np.array(rows), nll * weights, hits * weights


@functools.cache
def updated(objective='causal', **settings):
  """(state before, state after one plain SGD step, sums) on one batch."""
  batch = causal_batch()
  if objective == 'translation':
    batch['source'] = batch['tokens'][:, ::-1].copy()
    batch['source_mask'] = np.float32(np.arange(6) < 4) * np.ones((4, 1))
  if objective == 'masked':
    batch['inputs'] = np.where(batch['weights'] > 0, 6, batch['tokens'])
  method = language_modeling.make(
    MODEL, optax.sgd(1.0), objective=objective, **settings
  )
  state = jax.jit(method.init)(KEY, batch)
  after, sums = jax.jit(method.update)(state, batch, KEY)
  predicted = jax.jit(method.predict)(state, batch)
  return batch, *jax.device_get((state, after, sums, predicted))


def forward(objective, batch, state):
  if objective == 'masked':
    args, kwargs = batch['inputs'], {}
  else:
    args, kwargs = batch['tokens'][:, :-1], {}
  if objective == 'translation':
    kwargs = {k: batch[k] for k in ('source', 'source_mask')}
  apply = jax.jit(functools.partial(MODEL.apply, train=False))
  return np.asarray(apply({'params': state.params}, args, **kwargs))


@pytest.mark.parametrize('objective', ['causal', 'translation', 'masked'])
def test_losses_and_sums_are_those_of_loops(objective):
  batch, state, _, sums, predicted = updated(objective)
  logits = forward(objective, batch, state)
  first = 0 if objective == 'masked' else 1
  weights = batch['weights'][:, first:]
  rows, nll, hits = by_loops(logits, batch['tokens'][:, first:], weights)
  real = batch['mask'] > 0
  assert sums['loss'][0] == pytest.approx(rows[real].sum(), rel=1e-5)
  assert sums['loss'][1] == 3
  for name, values in (('nats', nll), ('accuracy', hits)):
    assert sums[name][0] == pytest.approx(values[real].sum(), rel=1e-5)
    assert sums[name][1] == weights[real].sum()
  assert set(sums) == {'loss', 'nats', 'accuracy'}
  np.testing.assert_allclose(predicted['nll'], nll.sum(1), rtol=1e-5)
  np.testing.assert_array_equal(predicted['tokens'], weights.sum(1))
  np.testing.assert_array_equal(predicted['hits'], hits.sum(1))
  shape = ((0, 0), (first, 0))
  np.testing.assert_allclose(
    predicted['position_nll'], np.pad(nll, shape), rtol=1e-5, atol=1e-7
  )
  np.testing.assert_array_equal(
    predicted['position_tokens'], np.pad(weights, shape)
  )


def test_the_gradient_is_that_of_the_mean_over_rows():
  batch, state, after, _, _ = updated()

  @jax.jit
  @jax.grad
  def gradient(params):
    logits = MODEL.apply(
      {'params': params}, batch['tokens'][:, :-1], train=True
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['tokens'][:, 1:]
    )
    weights = jnp.asarray(batch['weights'][:, 1:])
    rows = (nll * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    return (rows * batch['mask']).sum() / 3

  jax.tree.map(
    lambda old, new, grad: np.testing.assert_allclose(
      old - new, grad, atol=1e-6
    ),
    state.params,
    after.params,
    gradient(state.params),
  )


def test_smoothing_spreads_the_target_and_leaves_nats_alone():
  batch, state, _, sums, _ = updated(label_smoothing=0.2)
  *_, plain, _ = updated()
  logits = forward('causal', batch, state)
  target = np.eye(7)[batch['tokens'][:, 1:]] * 0.8 + 0.2 / 7
  cross = -(target * classification.log_softmax(logits)).sum(-1)
  weights = batch['weights'][:, 1:]
  rows = (cross * weights).sum(1) / np.maximum(weights.sum(1), 1)
  real = batch['mask'] > 0
  assert sums['loss'][0] == pytest.approx(rows[real].sum(), rel=1e-5)
  np.testing.assert_allclose(sums['nats'], plain['nats'], rtol=1e-6)


@pytest.mark.devices(4)
def test_one_device_equals_four_with_garbage_in_padding():
  method = language_modeling.make(MODEL, optax.sgd(0.5))
  batch = causal_batch()
  batch = {name: np.concatenate([x, x[::-1]]) for name, x in batch.items()}
  dirty = {**batch, 'tokens': batch['tokens'].copy()}
  dirty['tokens'][batch['mask'] == 0] = 10**6
  results = []
  for devices, given in ((1, batch), (4, dirty)):
    devices = jax.local_devices()[:devices]
    state = loop.init(method, batch, 0, devices)
    state, sums = parallel.train_step(method.update, devices)(
      state, parallel.shard(given, devices), KEY
    )
    results.append(jax.device_get((state, sums)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    *results,
  )


class Counting(nn.Module):
  """A bigram model with a collection that is no parameter."""

  @nn.compact
  def __call__(self, tokens, *, train):
    seen = self.variable('projection', 'seen', jnp.zeros, (), jnp.int32)
    if train:
      seen.value += 1
    return nn.Embed(7, 7, name='table')(tokens)


def test_other_collections_are_carried_and_parameters_averaged():
  method = language_modeling.make(
    Counting(), optax.sgd(1.0), ema_decay=0.75, microbatches=2
  )
  batch = {**causal_batch(), 'mask': np.ones(4, np.float32)}
  state = jax.jit(method.init)(KEY, batch)
  update = jax.jit(method.update)
  first, _ = update(state, batch, KEY)
  assert int(first.model_state['projection']['seen']) == 2  # Microbatches.
  old, new, average = (
    x['table']['embedding']
    for x in (state.params, first.params, first.extra.params)
  )
  # The first decay is 1 / 10.
  np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, rtol=1e-6)


def test_hidden_tokens_are_chosen_as_published():
  rng = np.random.default_rng(0)
  token_mask = np.arange(100) < rng.integers(1, 100, (400, 1))
  batch = {
    'tokens': jnp.asarray(rng.integers(0, 50, (400, 100))),
    'mask': jnp.ones(400),
    'token_mask': jnp.asarray(token_mask, jnp.float32),
  }
  made = jax.jit(
    functools.partial(
      language_modeling.mask_tokens, vocab_size=50, mask_id=3, num_special=4
    )
  )(batch, KEY)
  old, new = np.asarray(batch['tokens']), np.asarray(made['inputs'])
  chosen = np.asarray(made['weights']) > 0
  may = token_mask & (old >= 4)
  assert not chosen[~may].any()
  assert chosen[may].mean() == pytest.approx(0.15, abs=0.01)
  np.testing.assert_array_equal(old[~chosen], new[~chosen])
  assert (new[chosen] == 3).mean() == pytest.approx(0.8, abs=0.03)
  same = (new[chosen] == old[chosen]).mean()  # 1 of 46 is drawn by chance.
  assert same == pytest.approx(0.1 + 0.1 / 46, abs=0.02)
  assert set(new[chosen]) <= {3, *range(4, 50)}


@functools.partial(jax.jit, static_argnums=(0, 2))
def learn(model, batch, objective):
  """Trains on all rows at once; returns nats a token of each step."""
  method = language_modeling.make(model, optax.adam(1e-2), objective=objective)
  batch = {**batch, 'mask': jnp.ones(len(batch['tokens']))}

  def one(state, _):
    state, sums = method.update(
      state, batch, jax.random.fold_in(KEY, state.step)
    )
    return state, sums['nats'][0] / sums['nats'][1]

  return jax.lax.scan(one, method.init(KEY, batch), None, length=150)[1]


def test_a_tiny_model_learns_a_repeated_text_by_heart():
  ids = running_text.stream(['to be or not to be ' * 8], tokenizing.Bytes())
  model = transformer.DecoderLM(
    259, **{**SETTINGS, 'hidden_dim': 16, 'num_positions': 24}
  )
  windows = running_text.train_windows(ids, length=24, stride=8)
  columns = windows.read(np.arange(len(windows)))
  nats = learn(model, columns, 'causal')
  assert nats[0] == pytest.approx(np.log(259), rel=0.1)
  # What comes after 'to be ' depends on more than a window shows of it.
  assert nats[-1] < 0.35


def test_a_translator_uses_its_source():
  pair = grammar.Grammar(
    num_nouns=3, num_verbs=2, num_adjectives=1, clause_rate=0.0
  )
  rows = pair.load(32, seed=0)
  model = transformer.EncoderDecoder(
    pair.vocab_size, **{**SETTINGS, 'hidden_dim': 16, 'num_positions': 12}
  )
  columns = rows.read(np.arange(32))
  nats = learn(model, columns, 'translation')
  blind = {**columns, 'source': np.full_like(columns['source'], 2)}
  without = learn(model, blind, 'translation')
  assert nats[-1] < 0.6 * without[-1]


def test_an_experiment_measures_bits_of_every_byte():
  given = {'train': ['abcabcabc' * 9], 'test': ['abc' * 17, 'cab']}
  tokenizer = tokenizing.Bytes()
  model = transformer.DecoderLM(259, **SETTINGS)
  config = config_dict.ConfigDict(
    dict(
      batch_size=8,
      eval_batch_size=3,
      seed=0,
      step=dict(microbatches=1),
      data=dict(eval_splits=('test',), num_workers=0),
    )
  )

  def sources(split):
    return of_tokens.with_bytes(
      running_text.eval_windows(
        running_text.stream(given[split], tokenizer),
        length=8,
        stride=4,
        name=split,
      ),
      running_text.num_bytes(given[split]),
    )

  train = running_text.train_windows(
    running_text.stream(given['train'], tokenizer), length=8
  )
  made = of_tokens.predictor(
    config,
    language_modeling.make(model, optax.adam(1e-2)),
    batches=wiring.shuffled(config, train),
    sources=sources,
    steps=3,
    show=tokenizer.decode,
  )
  assert made.train.batch(0)['tokens'].shape == (8, 9)
  state = loop.init(made.method, made.train.batch(0), 0)
  outputs, columns = loop.Evaluator(made.method)(state, made.evals('test'))
  numbers = made.measure(outputs, columns)
  # 54 bytes and the start of the second text.
  assert outputs['tokens'].sum() == 55
  total = outputs['nll'].sum(dtype=np.float64)
  assert numbers['loss'] == pytest.approx(total / 55)
  assert numbers['perplexity'] == pytest.approx(np.exp(total / 55))
  bits = total / np.log(2) / 54
  assert numbers['bits_per_byte'] == pytest.approx(bits, rel=1e-5)
  figures = made.figures('test', outputs, columns)
  assert set(figures) == {'loss_by_position', 'text'}
  for figure in figures.values():
    figure.canvas.draw()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(objective='prefix'), "got objective='prefix'"),
    (dict(label_smoothing=1.0), 'got label_smoothing=1.0'),
    (dict(ema_decay=1.0), 'got ema_decay=1.0'),
    (dict(compute_dtype='float16'), "got compute_dtype='float16'"),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    language_modeling.make(MODEL, optax.sgd(1.0), **settings)


@pytest.mark.parametrize('column', ['inputs', 'weights'])
def test_masked_batches_say_what_is_hidden(column):
  batch = {**causal_batch(), 'inputs': causal_batch()['tokens']}
  method = language_modeling.make(MODEL, optax.sgd(1.0), objective='masked')
  state = jax.eval_shape(method.init, KEY, batch)
  del batch[column]
  for call in (
    lambda: jax.eval_shape(method.update, state, batch, KEY),
    lambda: jax.eval_shape(method.predict, state, batch),
  ):
    with pytest.raises(InputError, match=f'no {column}: .* mask_tokens'):
      call()


def test_a_rate_out_of_range_is_refused():
  with pytest.raises(InputError, match='got rate=1'):
    language_modeling.mask_tokens(
      causal_batch(), KEY, vocab_size=7, mask_id=6, num_special=3, rate=1.0
    )
