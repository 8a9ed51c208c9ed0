"""FLAN's recipe trains on what is not held out, from files and weights, too."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import flan as recipe
from configs import gradient_vaccine
from configs.parts import flan_study
from configs.parts import instruction_tasks
from configs.studies import flan as study
from repjax import loop
from repjax import optim
from repjax import run
from repjax import types
from repjax.data.batches import mixtures
from repjax.data.text import tokens
from repjax.experiments import private
from repjax.models import t5
from repjax.protocols import rank_classification
from repjax.weights import t5_weights


def config(**fields):
  made = recipe.get_config('smoke')
  made.data.update(fields)
  return made


def test_held_out_tasks_are_in_no_batch():
  made = config(held_out='3')
  data = instruction_tasks.read(made)
  held = {x.task for x in data.held_out}
  assert len(held) == 6
  assert not held & set(data.train)
  batches = instruction_tasks.batches(made, data)
  numbers = {data.names.index(x) for x in held}
  for step in range(5):
    assert not numbers & {*batches.batch(step)['task'].tolist()}
  assert {x.task for x in data.known} == set(data.train)


def test_batches_resume():
  made = config()
  data = instruction_tasks.read(made)
  first = instruction_tasks.batches(made, data).batch(3)
  again = instruction_tasks.batches(made, data).batch(3)
  np.testing.assert_array_equal(first['source'], again['source'])


def lines(tmp_path, counts=(30, 30, 30)):
  path = tmp_path / 'tasks.jsonl'
  rows = [
    dict(inputs=f'{name} {i}', targets='ab'[i % 2], task=name)
    for name, count in zip(('one', 'two', 'three'), counts, strict=True)
    for i in range(count)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_a_file_of_ones_own_trains_without_what_is_held_out(tmp_path):
  made = config(kind='jsonl', file=lines(tmp_path), held_out='two')
  made.data.update(vocab_size=300, source_length=12)
  data = instruction_tasks.read(made)
  assert set(data.train) == {'one', 'three'}
  assert [len(x) for x in data.train.values()] == [24, 24]
  assert len(data.known) == 12
  assert {x.task for x in data.held_out} == {'two'}
  assert 'held_out/accuracy' in run.measures(recipe.build(made))


def test_a_run_ranks_options_as_the_ranker_does():
  made = config(eval_splits=('held_out_ranked',))
  experiment = recipe.build(made)
  assert {'held_out_ranked/accuracy', 'held_out_ranked/best_on_dev'} <= {
    *run.measures(experiment)
  }
  state = jax.jit(experiment.method.init)(
    jax.random.key(0), experiment.train.batch(0)
  )
  split = 'held_out_ranked'
  seen = loop.Evaluator(experiment.method)(state, experiment.evals(split))
  found = experiment.measure(*seen)
  data = instruction_tasks.read(made)
  ranker = rank_classification.Ranker(
    instruction_tasks.network(made, data),
    data.tokenizer,
    source_length=made.data.source_length,
    target_length=made.data.target_length,
  )
  tasks = instruction_tasks.suite(made, fresh=True).held_out('0')
  asked = [y for x in tasks for i in range(10) for y in x.told_by(i)]
  scores = ranker.scores(
    {'params': state.params},
    [x.source for x in asked],
    [x.options for x in asked],
  )
  np.testing.assert_allclose(
    seen[0]['log_likelihood'], np.concatenate(scores), atol=2e-5
  )
  chosen = np.array([x.argmax() for x in scores])
  assert found['accuracy'] == pytest.approx(
    rank_classification.accuracy(asked, chosen), abs=0.004
  )
  names = {x.name for x in tasks}
  assert {x.partition('/')[0] for x in found if '/' in x} == names
  ((header, lines),) = experiment.tables(split, *seen).values()
  assert header == ['task', 'template', 'rows', 'right']
  assert len(lines) == 60
  assert {tuple(x[:2]) for x in lines} == {
    (x, i) for x in names for i in range(10)
  }
  mean = np.mean([x[3] for x in lines])
  assert found['accuracy'] == pytest.approx(mean)


def test_options_of_a_file_are_ranked(tmp_path):
  path = tmp_path / 'tasks.jsonl'
  rows = [
    dict(inputs=f'{x} {i}', targets='ab'[i % 2], task=x, options=['a', 'b'])
    for x in ('one', 'two')
    for i in range(20)
  ]
  rows += [dict(inputs='c', targets='d', task='two')]
  path.write_text('\n'.join(map(json.dumps, rows)))
  made = config(kind='jsonl', file=str(path), held_out='two')
  made.data.update(vocab_size=300, source_length=12)
  data = instruction_tasks.read(made)
  for split, names in (('held_out_ranked', {'two'}), ('known_ranked', {'one'})):
    found = instruction_tasks.split_of(made, data, split).columns()
    assert {data.names[x] for x in found['task']} == names
    assert len(found['option']) == 2 * (20 if names == {'two'} else 4)
    assert found['right'].mean() == 0.5


def test_packed_tasks_keep_their_shares(tmp_path):
  # Of 80, 24 and 8 rows to train on, with a cap of 24.
  made = config(kind='jsonl', file=lines(tmp_path, (100, 30, 10)), held_out='')
  made.data.update(vocab_size=300, source_length=40, target_length=30)
  made.data.update(mixing_cap=24)
  data = instruction_tasks.read(made)
  expected = np.array([24, 24, 8]) / 56
  single = instruction_tasks.batches(made, data)
  np.testing.assert_allclose(single.rates, expected)
  made.data.packed = True
  packed = instruction_tasks.batches(made, data)
  assert len(packed.source) < len(single.source) / 2
  examples = packed.source.columns()['segments'].max(1)
  means = [x.mean() for x in np.split(examples, np.cumsum(packed.sizes)[:-1])]
  # Places come as often as gives their examples the same shares.
  np.testing.assert_allclose(
    packed.rates * means / (packed.rates * means).sum(), expected, rtol=1e-5
  )


def clipped(*args, **settings):
  del args, settings
  return optax.chain(
    optim.dp_sgd(0.1, 1.0, expected_batch_size=16, key=jax.random.key(0)),
    optax.sgd(0.1),
  )


@pytest.mark.parametrize('link', ['sam', 'private'])
def test_links_and_adapters_are_put_in_by_override(link):
  made = config()
  made.adapter.update(kind='lora', rank=2)
  if link == 'sam':
    made.sam.rho = 0.05
  else:
    made.mean = 'rows'
    made.tx.clip = 0.0  # What is private clips rows by itself.
  optimizer = clipped if link == 'private' else optax.adamw
  experiment = recipe.build(made, optimizer)
  batch = experiment.train.batch(0)
  state = jax.jit(experiment.method.init)(jax.random.key(0), batch)
  after, sums = jax.jit(experiment.method.update)(
    state, batch, jax.random.key(1)
  )
  assert np.isfinite(sums['loss'][0])
  moved = jax.tree.map(
    lambda x, y: bool(np.abs(x - y).max() > 0),
    *jax.device_get((after.params, state.params)),
  )
  names = {
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path(moved)
    if x
  }
  assert names
  assert all('lora' in x for x in names)


def test_a_private_run_is_planned_as_the_page_says():
  made = config()
  made.update(mean='rows')
  made.tx.clip = 0.0
  data = instruction_tasks.read(made)
  parts = [instruction_tasks.rows(made, data, x) for x in data.train.values()]
  rows = mixtures.union(parts)
  plan = private.plan(
    len(rows),
    **dict(batch_size=16, epochs=2, epsilon=8.0, delta=0.0, clip_norm=1.0),
    **dict(seed=0, nonce=b''),
  )
  made.min_steps = plan.steps

  def optimizer(rate, **settings):
    return optax.chain(plan.link(), optax.adamw(rate, **settings))

  built = recipe.build(made, optimizer)
  assert built.steps == plan.steps
  begun, mixed = (
    plan.guarded(x).guard.begin(plan.guarded(x), None, {})
    for x in (built._replace(train=plan.batches(rows)), built)
  )
  state = jax.jit(begun.method.init)(jax.random.key(0), begun.train.batch(0))
  state = begun.guard.keyed(state)
  begun.guard.check(begun, state, '')
  stated = begun.guard.statement(plan.steps)['privacy']
  assert 7.9 < stated.epsilon <= 8.0
  # Shares of a mixture are no Poisson samples.
  with pytest.raises(types.InputError, match='Poisson'):
    mixed.guard.check(mixed, state, '')


def test_weights_with_learned_places_are_not_published(tmp_path):
  made = config()
  model = instruction_tasks.network(made, instruction_tasks.read(made))
  with pytest.raises(types.InputError, match='num_positions=0'):
    t5_weights.save(tmp_path / 'model.safetensors', _params(model))


def published(folder):
  """A tiny T5 as Hugging Face has it, with its tokenizer."""
  tokenizers = pytest.importorskip('tokenizers')
  learned = tokens.Subwords.train(['one two three 1 2'], vocab_size=300)
  made = tokenizers.Tokenizer.from_str(learned.serialized)
  made.add_special_tokens(['</s>'])
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', made.token_to_id('</s>'))]
  )
  folder.mkdir()
  made.save(str(folder / 'tokenizer.json'))
  fields = dict(
    **dict(model_type='t5', vocab_size=320, d_model=8, d_kv=4, d_ff=8),
    **dict(num_heads=2, num_layers=1, feed_forward_proj='gated-gelu'),
    tie_word_embeddings=False,
  )
  (folder / 'config.json').write_text(json.dumps(fields))
  params = _params(t5_weights.model(folder))
  t5_weights.save(folder / 'model.safetensors', params)
  return params, made.token_to_id('</s>')


def test_published_weights_are_where_it_starts(tmp_path):
  expected, end = published(tmp_path / 't5')
  made = config(kind='jsonl', file=lines(tmp_path), held_out='two')
  made.data.update(source_length=12, target_length=8)
  made.weights = str(tmp_path / 't5')
  experiment = recipe.build(made)
  batch = experiment.train.batch(0)
  # Texts end as they did when the weights were trained.
  last = batch['source_mask'].sum(1).astype(int) - 1
  rows = np.arange(len(last))
  assert (batch['source'][rows, last] == end).all()
  last = batch['weights'].sum(1).astype(int)
  assert (batch['tokens'][rows, last] == end).all()
  state = jax.jit(experiment.method.init)(jax.random.key(1), batch)
  state = experiment.warm_start(state)
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  assert (made.model.hidden_dim, made.model.num_layers) == (8, 1)
  assert made.model.dropout_rate == 0.1  # That of its config.json.
  assert not made.model.remat
  # How blocks are computed is no part of what is stored.
  made.model.remat = True
  rows, keys = experiment.train.batch(0), jax.random.split(jax.random.key(1))
  update = recipe.build(made).method.update
  assert 'remat' in str(jax.make_jaxpr(update)(state, rows, keys[0]))
  assert made.model.remat


def _params(model):
  row = jnp.zeros((1, 3), jnp.int32)
  init = jax.jit(functools.partial(model.init, train=False))
  return init(jax.random.key(0), row, source=row)['params']


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='jsonl'), 'config.data.file'),
    (dict(held_out='9'), "no cluster '9'"),
    (dict(kind='csv'), 'data.kind'),
    (dict(told='song'), 'told'),
    (dict(num_eval_rows=3), 'num_eval_rows'),
    (dict(eval_splits=('test',)), 'data.eval_splits'),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  with pytest.raises(types.InputError, match=message):
    recipe.build(config(**fields))


def test_held_out_tasks_of_a_file_must_be_there_and_not_all(tmp_path):
  for held in ('four', 'one,two,three'):
    with pytest.raises(types.InputError, match='some of the tasks'):
      recipe.build(config(kind='jsonl', file=lines(tmp_path), held_out=held))
  made = study.get_config('smoke')
  made.data.kind = 'jsonl'
  with pytest.raises(types.InputError, match='digit_maps'):
    study.run(made)


def test_an_arm_trains_on_its_tasks_alone_in_a_seeds_own_order():
  made = study.get_config('smoke')
  told = flan_study.told(made, 'instruction')
  suite = told.suite
  names = [x.name for x in suite.training('2')[:6]]
  order = flan_study.order_of(made, told, names, 1)
  assert order.shape == (made.min_steps, made.batch_size)
  numbers = told.columns['task'][order]
  assert {told.data.names[i] for i in np.unique(numbers)} == set(names)
  assert (flan_study.order_of(made, told, names, 2) != order).any()


def test_real_text_is_ranked_before_and_after(real_data):
  made = study.get_config('text')
  made.data.update(
    **dict(dir=real_data, num_rows=40, num_eval_rows=20, vocab_size=600),
    **dict(source_length=160, target_length=120),
  )
  made.model.update(
    **dict(hidden_dim=8, head_dim=4, mlp_dim=8, num_heads=2),
    **dict(num_layers=1, num_decoder_layers=1),
  )
  made.update(batch_size=2, min_steps=1)
  made.study.num_ranked = 1
  found = study.run(made, (0,)).scalars
  shares = {
    f'{told}, {when}, {what}'
    for told in ('instruction', 'name')
    for when in ('untuned', 'tuned')
    for what in ('held out', 'trained on')
  }
  claims = {'text_known', 'text_known_by_name'}
  claims |= {'reading_gain', 'reading_over_names'}
  assert set(found) == shares | claims
  assert all(0 <= found[x][0] <= 1 for x in shares)


def test_the_published_slip_is_reached_by_the_config(real_data):
  made = recipe.get_config('gpu')
  made.data.update(dir=real_data, num_rows=20, num_eval_rows=10)
  read = {}
  for told in ('instruction', 'instruction_with_stray'):
    made.data.told = told
    read[told] = instruction_tasks.read(made).train
  right, wrong = read.values()
  assert right.keys() == wrong.keys()
  for name, examples in right.items():
    differ = [
      x.source != y.source for x, y in zip(examples, wrong[name], strict=True)
    ]
    # Two of ten templates, two rows each.
    assert sum(differ) == (4 if name == 'statement' else 0)


def test_the_paper_preset_has_its_shapes(tmp_path):
  made = recipe.get_config('paper')
  made.data.update(file=lines(tmp_path), held_out='two', vocab_size=300)
  experiment = recipe.build(made)
  batch = experiment.train.batch(0)
  assert batch['source'].shape == (128, 1024)
  assert batch['segments'].max() > 10
  method = experiment.method
  rows = {name: x[:1] for name, x in batch.items()}
  state = jax.eval_shape(method.init, jax.random.key(0), rows)
  after, _ = jax.eval_shape(method.update, state, batch, jax.random.key(1))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  kernel = state.params['encoder']['block_0']['mlp']['gate']['kernel']
  assert kernel.shape == (t5.SIZES['base']['hidden_dim'], 2048)


def test_comparisons_with_names_ask_what_was_learned_by_name():
  for name in ('text_over_names', 'reading_over_names'):
    assert 'text_known_by_name' in study.CLAIMS[name]['needs']


def test_passes_are_over_packed_rows(tmp_path):
  made = config(kind='jsonl', file=lines(tmp_path), held_out='two')
  made.data.update(vocab_size=300, source_length=40, target_length=30)
  made.data.update(packed=True)
  made.model.num_positions = 0
  made.update(dict(epochs=4.0, min_steps=0, batch_size=4))
  built = recipe.build(made)
  assert len(built.train.source) < 24
  assert built.steps == round(4 * len(built.train.source) / 4)


@pytest.mark.parametrize('split', ['inputs:a.jsonl', 'labelled:a.jsonl'])
def test_files_to_predict_are_refused_in_words(split):
  with pytest.raises(types.InputError, match='take no files'):
    recipe.build(config()).evals(split)


@pytest.mark.parametrize('made', [recipe, gradient_vaccine])
def test_a_batch_that_cannot_be_divided_is_refused(made):
  changed = made.get_config('smoke')
  changed.step.microbatches = 3
  with pytest.raises(types.InputError, match='batch_size=16 cannot be divided'):
    made.build(changed)
