"""Runs on texts: gaps are filled, others start from there; Amazon builds."""

import chex
import jax
import numpy as np
import pytest
import wilds_folders

from configs import wilds_text
from repjax import loop
from repjax import run
from repjax import start
from repjax import types
from repjax.benchmarks.wilds import protocol
from repjax.benchmarks.wilds import shops
from repjax.benchmarks.wilds import text_runs
from repjax.benchmarks.wilds import text_sets
from repjax.data.text import tokens
from repjax.methods import step as steps
from repjax.models import text_heads


def config_of(algorithm, **settings):
  config = wilds_text.get_config('smoke')
  config.model.update(hidden_dim=8, mlp_dim=8)
  config.algorithm = algorithm
  config.update(settings)
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = config_of('masked_lm')
  folder = tmp_path_factory.mktemp('gaps')
  found = run.fit(wilds_text.build(config), config, folder)['result']
  # Words are nearly guessed at random: there are 191.
  assert 0.5 * 191 < found['val/perplexity'] < 2 * 191
  return str(folder)


@pytest.mark.parametrize('algorithm', ['erm', 'dann'])
def test_encoders_go_on_and_heads_start_afresh(workdir, algorithm):
  made = wilds_text.build(config_of(algorithm, pretrained=workdir))
  fresh = loop.init(made.method, made.train.batch(0), 0)
  own, old = made.warm_start(fresh).params, fresh.params
  saved = start.from_run(workdir)['params']
  if algorithm == 'dann':
    own, old = own['model'], old['model']
  chex.assert_trees_all_equal(own['head'], old['head'])
  layers = set(own) - {'head'}
  assert set(saved) - layers == set(text_heads.OF_MASKED_LM)
  chex.assert_trees_all_equal(
    {x: own[x] for x in layers}, {x: saved[x] for x in layers}
  )


def test_what_only_the_other_network_has_must_be_named(workdir):
  made = wilds_text.build(config_of('erm'))
  state = loop.init(made.method, made.train.batch(0), 0)
  with pytest.raises(types.InputError, match='head_bias'):
    start.begin_from(workdir)(state)


def test_gaps_are_the_same_at_every_evaluation():
  rows = shops.load(num_reviews=40).subset('train').source()
  first, again = (text_runs.with_gaps(rows, 200).columns() for _ in range(2))
  np.testing.assert_array_equal(first['inputs'], again['inputs'])
  hidden = first['weights'] > 0
  assert 0.05 < hidden.mean() < 0.25
  same = first['inputs'] == first['tokens']
  assert same[~hidden].all() and not same[hidden].all()
  assert (first['inputs'][:, 0] == tokens.START).all()


def test_arms_on_texts_start_from_filled_gaps():
  config = config_of('erm', augment=dict(kind='none'))

  def runs(arm):
    return protocol.run(
      arm,
      config,
      wilds_text.method,
      draws=(0,),
      replicates=1,
      copies=1,
      strong='none',
      unlabelled='test_unlabeled',
    )

  erm = runs(protocol.ERM)
  masked = runs(protocol.Arm('masked_lm', unlabelled=True))
  assert erm.accuracy['test'].shape == (1, 1)
  assert erm.logits.shape == masked.logits.shape == (1, 1, 800, 2)
  assert (erm.logits != masked.logits).any()


def test_texts_become_tokens_and_long_ones_are_cut(tmp_path):
  wilds_folders.amazon(tmp_path)
  whole = text_sets.amazon(str(tmp_path))
  made = text_sets.tokenized(whole, tokens.Bytes(), length=6)
  columns = made.inputs.columns()
  for text, ids, mask in zip(
    whole.inputs.column('text'),
    columns['tokens'],
    columns['token_mask'],
    strict=True,
  ):
    expected = [tokens.START, *(3 + x for x in bytes(text)[:5])]
    assert ids[: len(expected)].tolist() == expected
    assert mask.sum() == len(expected) and not ids[len(expected) :].any()
  assert made.name == 'amazon' and made.metadata is whole.metadata


def test_sets_without_texts_have_no_tokens():
  whole = shops.load(num_reviews=12)
  with pytest.raises(types.InputError, match="no column 'text'"):
    text_sets.tokenized(whole, tokens.Bytes(), length=6)


@pytest.mark.parametrize('algorithm', ['erm', 'masked_lm', 'coral'])
def test_the_papers_run_builds(algorithm, tmp_path):
  wilds_folders.amazon(tmp_path)
  config = wilds_text.get_config('paper')
  config.algorithm, config.data.dir = algorithm, str(tmp_path)
  made = wilds_text.build(config)
  batch = made.train.batch(0)
  rows = {'erm': 24, 'masked_lm': 24, 'coral': 48}[algorithm]
  assert batch['tokens'].shape == batch['token_mask'].shape == (rows, 512)
  state = jax.eval_shape(made.method.init, jax.random.key(0), batch)
  sizes = jax.tree.map(lambda x: x.size, state.params)
  assert sum(jax.tree.leaves(sizes)) > 40e6
  _, sums = jax.eval_shape(made.method.update, state, batch, jax.random.key(0))
  assert 'loss' in sums


@pytest.mark.parametrize(
  ('algorithm', 'message'),
  [
    ('swav', 'views of images'),
    ('fixmatch', 'views of images'),
    ('noisy_student', 'needs a teacher'),
  ],
)
def test_what_texts_cannot_be_learnt_by_is_refused(algorithm, message):
  with pytest.raises(types.InputError, match=message):
    wilds_text.build(config_of(algorithm))


def test_gaps_are_filled_by_the_settings_of_a_step():
  made = wilds_text.build(config_of('masked_lm', step=dict(ema_decay=0.9)))
  state = loop.init(made.method, made.train.batch(0), 0)
  assert isinstance(state.extra, steps.EmaState)
