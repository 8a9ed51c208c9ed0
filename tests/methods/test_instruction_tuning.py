"""Packing changes neither loss nor gradient; ranks are brute force."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import types
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import packing
from repjax.data.text import tokens
from repjax.layers.attention import multi_head
from repjax.methods import instruction_tuning
from repjax.methods import model_inputs
from repjax.models import t5
from repjax.models import t5_block
from repjax.models import transformer
from repjax.protocols import rank_classification

MODEL = t5.T5(
  260,
  config=t5_block.LayerConfig(hidden_dim=8, head_dim=4, mlp_dim=8, num_heads=2),
  num_layers=1,
)


def examples(count):
  rng = np.random.default_rng(0)
  return [
    instructions.Example(
      'xyz'[i % 3] * int(rng.integers(1, 6)),
      'ab'[i % 2] * int(rng.integers(1, 4)),
      (),
      't',
      0,
      i,
    )
    for i in range(count)
  ]


def rows(count=6):
  return instruction_rows.encoded(
    examples(count),
    tokens.Bytes(),
    source_length=6,
    target_length=6,
    tasks=['t'],
  ).columns()


def batch(columns, size):
  """Padded to a number of rows."""
  blank = size - len(columns['tokens'])
  names = set(columns) - {'task', 'template', 'row'}
  made = {k: np.pad(columns[k], ((0, blank), (0, 0))) for k in names}
  return {**made, 'mask': np.repeat([1.0, 0.0], [size - blank, blank])}


def begun(method, batch):
  return jax.jit(method.init)(jax.random.key(0), batch)


def gradient(method, state, batch, devices=1):
  """(loss, gradient) of a step of rate 1, by the change of parameters."""
  places = jax.local_devices()[:devices]
  after, sums = parallel.train_step(method.update, places)(
    parallel.replicate(state, places),
    parallel.shard(batch, places),
    jax.random.key(1),
  )
  moved = jax.tree.map(
    lambda x, y: np.asarray(x) - np.asarray(y),
    state.params,
    jax.device_get(after.params),
  )
  total, weight = sums['loss']
  return float(total / weight), moved


def assert_same(found, expected):
  """To 1e-5 of the largest entry of all leaves."""
  largest = max(abs(x).max() for x in jax.tree.leaves(expected))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * largest),
    found,
    expected,
  )


@pytest.mark.devices(4)
def test_packed_rows_have_the_loss_and_the_gradient_of_single_ones():
  method = instruction_tuning.make(MODEL, optax.sgd(1.0))
  single = batch(rows(), 8)
  together = packing.packed(rows(), source_length=12, target_length=10)
  assert len(together) < 6
  packed = batch(together.columns(), 4)
  state = begun(method, single)
  loss, expected = gradient(method, state, single)
  for made, devices in ((packed, 1), (single, 4), (packed, 4)):
    found, moved = gradient(method, state, made, devices)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same(moved, expected)


LM = transformer.DecoderLM(
  260,
  hidden_dim=8,
  mlp_dim=8,
  num_heads=2,
  num_layers=2,
  num_positions=13,
  kernel_init=nn.initializers.normal(1.0),
)


@pytest.mark.parametrize('position', ['learned', 'rotary'])
def test_packed_texts_of_a_language_model_train_it_as_single_ones(position):
  method = instruction_tuning.make(
    LM.clone(position=position, num_layers=1),
    optax.sgd(1.0),
    inputs=model_inputs.packed_text,
  )
  single = instruction_rows.encoded_texts(
    examples(6), tokens.Bytes(), length=14, tasks=['t']
  ).columns()
  # Longer than there are positions: each text counts its own.
  together = packing.packed_texts(single, length=24)
  assert len(together) < 6
  state = begun(method, batch(single, 8))
  loss, expected = gradient(method, state, batch(single, 8))
  found, moved = gradient(method, state, batch(together.columns(), 4))
  assert loss > 0.1
  np.testing.assert_allclose(found, loss, rtol=1e-5)
  assert_same(moved, expected)


def test_a_packed_text_sees_nothing_of_the_others():
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0]])
  read = np.arange(10)[None] + 3
  variables = jax.jit(functools.partial(LM.init, train=False))(
    jax.random.key(0), read
  )
  apply = functools.partial(LM.apply, train=False)
  run = functools.partial(jax.jit(apply), variables)
  before = run(read, segments=segments)
  after = run(np.where(segments == 2, 77, read), segments=segments)
  same = (before == after).all(-1)[0]
  np.testing.assert_array_equal(same, segments[0] != 2)
  alone = run(read[:, 3:7])
  np.testing.assert_allclose(before[:, 3:7], alone, rtol=1e-5, atol=1e-6)
  with pytest.raises(types.InputError, match='segments must be'):
    jax.eval_shape(apply, variables, read, segments=segments[:, :4])


def test_segments_are_of_one_sequence_that_is_there_as_a_whole():
  layer = multi_head.MultiHeadAttention(2)
  tokens = jnp.ones((1, 3, 4))
  for other in (dict(context=tokens), dict(max_length=5), dict(state=())):
    with pytest.raises(types.InputError, match='one sequence'):
      layer.init(
        jax.random.key(0),
        tokens,
        train=False,
        segments=jnp.ones((1, 3), jnp.int32),
        **other,
      )


def test_a_text_of_a_language_model_is_source_end_target_end():
  row = instructions.Example('xyz', 'ab', (), 't', 3, 5)
  made = instruction_rows.encoded_texts(
    [row], tokens.Bytes(), length=8, tasks=['s', 't']
  ).columns()
  source, target = (tokens.Bytes().encode(x).tolist() for x in ('xyz', 'ab'))
  text = [*source, tokens.END, *target, tokens.END]
  assert made['tokens'].tolist() == [[*text, 0]]
  assert made['token_mask'].tolist() == [[1] * 7 + [0]]
  assert made['weights'].tolist() == [[0] * 4 + [1] * 3 + [0]]
  assert (made['task'], made['template'], made['row']) == (1, 3, 5)
  # A source makes room; a target does not.
  made = instruction_rows.encoded_texts(
    [row], tokens.Bytes(), length=5, tasks=['t']
  ).columns()
  assert made['tokens'].tolist() == [[source[0], *text[3:]]]
  for wrong, length, said in (
    (row, 4, 'leave no room for a source in 4'),
    (row._replace(source=''), 8, 'empty source'),
  ):
    with pytest.raises(types.InputError, match=said):
      instruction_rows.encoded_texts(
        [wrong], tokens.Bytes(), length=length, tasks=['t']
      )


def test_the_loss_is_a_mean_over_tokens_that_are_to_be_written():
  method = instruction_tuning.make(MODEL, optax.sgd(0.0))
  made = batch(rows(), 8)
  state = jax.jit(method.init)(jax.random.key(0), made)
  _, sums = jax.jit(method.update)(state, made, jax.random.key(0))
  logits = jax.jit(functools.partial(MODEL.apply, train=False))(
    {'params': state.params},
    made['tokens'],
    source=made['source'],
    source_mask=made['source_mask'],
  )
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  total, count, hits = 0.0, 0, 0
  for i in range(6):
    for j in range(1, 6):
      if made['weights'][i, j]:
        total -= float(log_probs[i, j - 1, made['tokens'][i, j]])
        count += 1
        hits += log_probs[i, j - 1].argmax() == made['tokens'][i, j]
  np.testing.assert_allclose(
    sums['loss'][0] / sums['loss'][1], total / count, rtol=1e-5
  )
  found = jax.jit(method.predict)(state, made)
  np.testing.assert_allclose(
    -found['log_likelihood'][:6].sum(), total, rtol=1e-5
  )
  assert found['tokens'][:6].sum() == count
  assert found['hits'][:6].sum() == hits
  accuracy = sums['accuracy'][0] / sums['accuracy'][1]
  np.testing.assert_allclose(accuracy, hits / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mean', ['tokens', 'rows'])
def test_only_what_tokens_weigh_beside_each_other_counts(mean):
  made = batch(rows(), 8)
  light = {**made, 'weights': np.float32(0.01) * made['weights']}
  method = instruction_tuning.make(MODEL, optax.sgd(1.0), mean=mean)
  state = begun(method, made)
  (loss, expected), (found, moved) = (
    gradient(method, state, x) for x in (made, light)
  )
  np.testing.assert_allclose(found, loss, rtol=1e-5)
  assert_same(moved, expected)


@pytest.mark.parametrize('mean', ['tokens', 'rows'])
def test_smoothed_targets_and_means_over_rows(mean):
  made = batch(rows(), 6)
  method = instruction_tuning.make(
    MODEL, optax.sgd(1.0), label_smoothing=0.1, mean=mean
  )
  state = begun(method, made)

  def loss(params):
    logits = MODEL.apply(
      {'params': params},
      made['tokens'],
      source=made['source'],
      source_mask=made['source_mask'],
      train=True,
    )
    log_probs = jax.nn.log_softmax(logits)[:, :-1]
    target = 0.9 * jax.nn.one_hot(made['tokens'][:, 1:], 260) + 0.1 / 260
    each = -(target * log_probs).sum(-1) * made['weights'][:, 1:]
    count = made['weights'][:, 1:].sum(1)
    if mean == 'tokens':
      return each.sum() / count.sum()
    return (each.sum(1) / count).mean()

  _, moved = gradient(method, state, made)
  assert_same(moved, jax.jit(jax.grad(loss))(state.params))


def test_private_links_need_rows_by_themselves():
  made = batch(rows(), 8)
  private = optim.dp_sgd(1.0, 1.0, expected_batch_size=6, key=jax.random.key(3))
  for parts in (1, 8):  # The latter's are single rows, too.
    method = instruction_tuning.make(MODEL, private, microbatches=parts)
    state = jax.eval_shape(method.init, jax.random.key(0), made)
    with pytest.raises(types.InputError, match="unless mean='rows'"):
      jax.eval_shape(method.update, state, made, jax.random.key(0))
  method = instruction_tuning.make(MODEL, private, mean='rows')
  state, sums = jax.jit(method.update)(
    jax.jit(method.init)(jax.random.key(0), made), made, jax.random.key(0)
  )
  assert np.isfinite(sums['loss'][0])
  found = jax.jit(method.predict)(state, made)
  assert np.isfinite(found['log_likelihood'][:6]).all()


PROMPTS = ['aa', 'bcd', 'e', 'ff', 'g']
OPTIONS = [('x', 'yy'), ('zz', 'x', 'yy'), ('y',), ('x', 'yy'), ('zz', 'x')]


@functools.cache
def drawn(num_positions):
  """(model, its variables, its compiled log-probabilities)."""
  model = MODEL.clone(num_positions=num_positions)
  blank = np.zeros((1, 3), np.int32)
  init = jax.jit(functools.partial(model.init, train=False))
  params = init(jax.random.key(2), blank, source=blank)

  @jax.jit
  def log_probs(params, ids, source):
    logits = model.apply(params, ids, source=source, train=False)
    return jax.nn.log_softmax(logits)

  return model, jax.tree.map(lambda x: 3 * x, params), log_probs


@pytest.mark.parametrize(
  ('normalization', 'room', 'num_positions'),
  # Three options side by side, or two and a blank one.
  [('none', 256, 0), ('tokens', 256, 0), ('none', 8, 0), ('none', 256, 5)],
)
def test_ranks_are_those_of_one_option_at_a_time(
  normalization, room, num_positions, monkeypatch
):
  monkeypatch.setattr(rank_classification, '_TOKENS', room)
  model, params, read = drawn(num_positions)
  ranker = rank_classification.Ranker(
    model,
    tokens.Bytes(),
    source_length=5,
    target_length=5,
    batch_size=2,
    normalization=normalization,
  )
  found = ranker.scores(params, PROMPTS, OPTIONS)
  for prompt, options, values in zip(PROMPTS, OPTIONS, found, strict=True):
    assert len(values) == len(options)
    for option, value in zip(options, values, strict=True):
      source = tokens.Bytes().encode(prompt)[None]
      ids = instruction_rows.target_ids(option, tokens.Bytes())[None]
      log_probs = read(params, ids[:, :-1], source)
      each = [float(log_probs[0, j, x]) for j, x in enumerate(ids[0, 1:])]
      expected = np.mean(each) if normalization == 'tokens' else sum(each)
      np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
  chosen = ranker.choices(params, PROMPTS, OPTIONS)
  turned = ranker.choices(params, PROMPTS, [x[::-1] for x in OPTIONS])
  for options, first, second in zip(OPTIONS, chosen, turned, strict=True):
    assert options[first] == options[::-1][second]
  examples = [
    instructions.Example(p, o[i], o, 't', 0, 0)
    for p, o, i in zip(PROMPTS, OPTIONS, chosen, strict=True)
  ]
  assert rank_classification.accuracy(examples, chosen) == 1.0
  with pytest.raises(types.InputError, match='needs options'):
    ranker.scores(params, ['a'], [()])
  with pytest.raises(types.InputError, match='1 of 2 examples'):
    rank_classification.accuracy(
      [examples[0], examples[0]._replace(options=())], chosen[:2]
    )
  broken = jax.tree.map(lambda x: x * np.nan, params)
  with pytest.raises(types.NonFiniteError, match='prompt 0 are not finite'):
    ranker.choices(broken, PROMPTS, OPTIONS)
