"""Presets for an accelerator build, though nothing is trained by them here."""

import importlib
from unittest import mock

import flax.linen as nn
import jax
from ml_collections import config_dict
import numpy as np
import pytest

from launch.lib import recipes
from launch.lib import results

# What reads fewer rows; shapes are those of the preset.
_LESS = {
  'anomaly_transformer': dict(
    data=dict(name='planted'), planted=dict(num_test=2_400, num_collective=1)
  ),
  'esvit': dict(data=dict(train_split='train[:600]')),
  'dp_finetuning': dict(data=dict(train_split='train[:2000]')),
  'mam_adapter': dict(data=dict(train_split='train[:4000]')),
  'contrastive_poisoning': dict(data=dict(train_split='train[:600]')),
  'diffstride': dict(data=dict(train_split='train[:200]')),
  'domino': dict(data=dict(train_split='train[:600]', num_rows=600)),
  'milan': dict(
    data=dict(train_split='train[:600]', heldout_split='test[:600]'),
    units=dict(k=3),
    encoder=dict(batch_size=100),
    preact_resnet=dict(stage_sizes=(1, 1, 1, 1), width=16),
  ),
  'mind_the_pad': dict(data=dict(train_split='train[:200]')),
  'mixup': dict(data=dict(train_split='train[:200]')),
  'performer': dict(data=dict(train_split='train[:100]')),
  'pico': dict(data=dict(train_split='train[:600]')),
  'pyraformer': dict(
    data=dict(file='', split='shares', sines=dict(length=2_000)),
  ),
  'gradient_vaccine': dict(family=dict(num_rows=(700,))),
  'flan': dict(data=dict(num_rows=100, num_eval_rows=20)),
  'imprint': dict(data=dict(train_split='train[10000:10600]')),
  'vit_transfer': dict(data=dict(train_split='train[:600]')),
  'vitgan': dict(data=dict(train_split='train[:200]')),
}


def test_all_of_them_are_known():
  found = {
    paper
    for paper in recipes.papers()
    if results.has_preset(recipes.load_study(paper), 'gpu')
  }
  # Tent's has a test of its own, with its stream (test_tent_config.py).
  assert found == {*_LESS, 'tent'}


def test_a_reader_is_told_what_was_not_run(tmp_path):
  table = results.table(['performer', 'rfa'], tmp_path / 'results')
  assert table.count('--preset=gpu`, for an accelerator, was not run') == 1


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """What is kept of prepared sets, of which papers share some."""
  return tmp_path_factory.mktemp('cache')


@pytest.mark.parametrize('paper', _LESS)
def test_a_step_has_the_shapes_of_its_data(paper, request, cache, monkeypatch):
  monkeypatch.setenv('REPJAX_CACHE', str(cache))
  config = recipes.load_study(paper).get_config('gpu')
  config.update(_LESS[paper])
  for group in config.values():
    if isinstance(group, config_dict.ConfigDict) and 'remat' in group:
      group.remat = True
  if paper != 'gradient_vaccine':  # Its languages are generated.
    config.data.dir = request.getfixturevalue('real_data')
  made = importlib.import_module(f'configs.{paper}').build(config)
  batch = made.train.batch(0)
  rows = {name: x[:1] for name, x in batch.items()}
  state = jax.eval_shape(made.method.init, jax.random.key(0), rows)
  with mock.patch.object(nn, 'remat', wraps=nn.remat) as remat:
    after, sums = jax.eval_shape(
      made.method.update, state, batch, jax.random.key(1)
    )
  # Of MILAN's networks the large one is not trained.
  assert remat.called or paper == 'milan'
  assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
  assert 'loss' in sums
