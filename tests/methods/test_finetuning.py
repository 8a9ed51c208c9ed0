"""Fine-tuning: what trains, what it starts from, and what is written."""

import functools
import typing

import chex
import jax
import numpy as np
import optax
import pytest

from repjax import start
from repjax import trees
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.methods import supervised
from repjax.models import t5
from repjax.models import t5_block
from repjax.models import text_heads
from repjax.models import transformer
from repjax.types import InputError

TINY = dict(
  vocab_size=11,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=1,
  num_positions=12,
)
SIZES = dict(rank=2, length=3, scale=2.0, hidden_dim=0)
END = 2
RNG = np.random.default_rng(0)
SENTENCES = {
  'tokens': RNG.integers(3, 11, (4, 6)),
  'token_mask': (np.arange(6) < np.array([[6], [4], [2], [6]])) * 1.0,
  'label': np.array([0, 1, 2, 1]),
  'mask': np.ones(4),
}
PAIRS = {
  'source': RNG.integers(3, 11, (4, 5)),
  'source_mask': (np.arange(5) < np.array([[5], [3], [2], [5]])) * 1.0,
  'tokens': np.array([[1, 3, 4, END], [1, 5, END, 0], [1, 3, 3, END]] * 2)[:4],
  'weights': np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1]] * 2)[:4] * 1.0,
  'mask': np.ones(4),
}


def classifier(**fields):
  return text_heads.Classifier(**{**TINY, **fields}, num_classes=3)


def sentences(model, tx):
  return supervised.make(model, tx, inputs=model_inputs.text)


def fresh_state(method, batch):
  return jax.jit(method.init)(jax.random.key(0), batch)


def flat(tree):
  return {'/'.join(path): x for path, x in trees.flatten(tree).items()}


KINDS = {
  'bias': 'bias',
  'lora': 'lora/',
  'adapter': 'mlp/adapter/',
  'prefix': 'attention/prefix/',
  'parallel': 'mlp/scaled_parallel/',
}


@pytest.mark.parametrize('kind', [*KINDS, 'mam', 'full'])
def test_each_kind_trains_its_part_and_the_head(kind):
  model = finetuning.adapt(classifier(), kind=kind, **SIZES)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    np.ones((1, 2), int),
  )
  trained = flat(variables['params'])
  head = {'head/kernel', 'head/bias', 'pooling/kernel', 'pooling/bias'}
  assert head <= set(trained)
  rest = set(trained) - head
  if kind == 'full':
    assert 'base' not in variables
    return
  parts = (
    [KINDS['prefix'], KINDS['parallel']] if kind == 'mam' else [KINDS[kind]]
  )
  for part in parts:
    assert any(part in name for name in rest)
  assert all(any(part in name for part in parts) for name in rest)


def test_a_part_of_the_model_may_train_by_itself():
  shapes = {}
  for kind in ('full', 'layers', 'head'):
    model = finetuning.adapt(classifier(), kind=kind, **SIZES)
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), np.ones((1, 2), int))
    shapes[kind] = set(flat(variables['params']))
  tables = {'token_embedding/embedding', 'encoder/position_embedding/embedding'}
  assert shapes['full'] - shapes['layers'] == tables
  assert shapes['head'] == {
    'head/kernel',
    'head/bias',
    'pooling/kernel',
    'pooling/bias',
  }


@pytest.mark.parametrize('hidden_dim', [0, 8])
@pytest.mark.parametrize('kind', typing.get_args(finetuning.Kind))
def test_a_model_of_other_layers_is_tuned_or_refused(kind, hidden_dim):
  layer = dict(hidden_dim=8, head_dim=4, mlp_dim=8, num_heads=2)
  base = t5.T5(11, config=t5_block.LayerConfig(**layer), num_layers=1)

  def init():
    model = finetuning.adapt(
      base, kind=kind, **SIZES | dict(hidden_dim=hidden_dim)
    )
    token = np.ones((1, 2), int)
    return jax.eval_shape(
      functools.partial(model.init, train=False, source=token),
      jax.random.key(0),
      token,
    )

  refused = dict(prefix='attention_fn', mam='attention_fn', bias='no biases')
  if hidden_dim:
    refused |= dict.fromkeys(('prefix', 'mam'), 'T5 has no field hidden_dim')
  if kind in refused:
    with pytest.raises(InputError, match=refused[kind]):
      init()
    return
  assert flat(init()['params'])


def test_an_unknown_kind_is_refused():
  with pytest.raises(InputError, match='kind must be one of'):
    finetuning.adapt(classifier(), kind='bitfit', **SIZES)


def drawn(method, batch):
  """A state with random leaves, without a compilation."""
  shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
  return jax.tree.map(
    lambda x: RNG.normal(size=x.shape).astype(x.dtype), shapes
  )


def test_a_run_starts_at_the_pretrained_network():
  encoder = drawn(sentences(classifier(), optax.sgd(0.1)), SENTENCES).params
  pretrained = {name: encoder[name] for name in ('token_embedding', 'encoder')}
  model = finetuning.adapt(classifier(), kind='lora', **SIZES)
  method = sentences(model, optax.adam(1e-2))
  fresh = fresh_state(method, SENTENCES)
  state = start.fill(
    fresh, lambda own: {**own, **pretrained}, keep=adapters.added(model)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(state, fresh)
  # LoRA begins at zero, so this is the plain network with the fresh head.
  head = {name: fresh.params[name] for name in ('head', 'pooling')}
  apply = jax.jit(functools.partial(classifier().apply, train=False))
  expected = apply(
    {'params': {**pretrained, **head}},
    SENTENCES['tokens'],
    mask=SENTENCES['token_mask'],
  )
  found = jax.jit(method.predict)(state, SENTENCES)
  np.testing.assert_allclose(found['logits'], expected, rtol=1e-5, atol=1e-6)
  # Queries and values: 2 r (D + D); the pooler and the head.
  own = 2 * 2 * (8 + 8) + 8 * 8 + 8 + 8 * 3 + 3
  total = trees.size({**encoder})
  percent = adapters.trained_percent(model, steps.variables(state))
  assert percent == pytest.approx(100 * own / total)
  # Moments are those of what trains, and nothing else.
  assert trees.size(state.params) == trees.size(state.opt_state[0].mu) == own


def test_all_parameters_start_at_the_pretrained_ones_and_so_does_their_mean():
  method = supervised.make(
    classifier(),
    optax.sgd(0.1),
    inputs=model_inputs.text,
    ema_decay=0.9,
  )
  fresh, other = (drawn(method, SENTENCES) for _ in range(2))
  state = start.fill(fresh, lambda own: {**other.params, 'head': own['head']})
  expected = {**other.params, 'head': fresh.params['head']}
  chex.assert_trees_all_equal(state.params, expected)
  chex.assert_trees_all_equal(state.extra.params, expected)
  assert adapters.trained_percent(classifier(), steps.variables(state)) == 100


def greedy(logits, start, steps):
  """Text of one row, by whole passes over rows of one length."""
  row = list(start)
  for _ in range(steps):
    padded = np.pad(row, (0, 10 - len(row)))[None]
    row.append(int(np.argmax(logits(padded)[0, len(row) - 1])))
    if row[-1] == END:
      break
  return row[len(start) :]


@pytest.mark.parametrize('objective', ['translation', 'causal'])
def test_a_writer_writes_what_whole_passes_would(objective):
  if objective == 'translation':
    base, batch = transformer.EncoderDecoder(**TINY), PAIRS
  else:
    base = transformer.DecoderLM(**TINY)
    # Prompts of two and of three tokens, padded after the target.
    batch = {
      'tokens': np.array([[1, 5, 6, 7, END], [1, 4, 8, END, 0]]),
      'weights': np.array([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]) * 1.0,
      'mask': np.ones(2),
    }
  model = finetuning.adapt(base, kind='mam', **SIZES)
  method = finetuning.writer(
    model,
    optax.adam(1e-2),
    objective=objective,
    max_new_tokens=4,
    end_id=END,
    ema_decay=0.5,
  )
  state = drawn(method, batch)
  found = jax.jit(method.predict)(state, batch)
  # The averaged parameters write.
  variables = {'params': state.extra.params, **state.model_state}

  @jax.jit
  def logits(tokens, **inputs):
    return model.apply(variables, tokens, train=False, **inputs)

  for i in range(len(batch['tokens'])):
    if objective == 'translation':
      length = 1
      inputs = {k: batch[k][i : i + 1] for k in ('source', 'source_mask')}
      np.testing.assert_array_equal(found['prompt'][i], batch['source'][i])
    else:
      length, inputs = int(np.argmax(batch['weights'][i])), {}
      prompt = np.where(np.arange(5) < length, batch['tokens'][i], -1)
      np.testing.assert_array_equal(found['prompt'][i], prompt)
    apply = functools.partial(logits, **inputs)
    prompt = batch['tokens'][i, :length]
    expected = greedy(apply, prompt, 4)
    written = found['written'][i][: len(expected)].tolist()
    assert written == expected
    counted = batch['weights'][i] > 0
    np.testing.assert_array_equal(
      found['target'][i], np.where(counted, batch['tokens'][i], -1)
    )
  if objective == 'translation':  # All tokens, where nothing says which.
    bare = {name: x for name, x in batch.items() if name != 'weights'}
    found = jax.eval_shape(method.predict, state, bare)
    assert found['target'].shape == batch['tokens'].shape


def test_an_objective_that_writes_nothing_is_refused():
  with pytest.raises(InputError, match='objective'):
    finetuning.writer(
      classifier(),
      optax.adam(1e-2),
      objective='masked',
      max_new_tokens=1,
      end_id=END,
    )
