"""What GPM's recipe and study say of its networks and sets."""

import jax
import numpy as np
import pytest

from configs import gpm
from configs.parts import task_streams
from configs.studies import gpm as study
from repjax import types


@pytest.mark.parametrize('preset', ['paper', 'small', 'mnist', 'smoke'])
def test_each_layer_of_the_mlp_has_a_threshold(preset):
  config = gpm.get_config(preset)
  assert config.network == 'mlp'
  params = jax.eval_shape(
    lambda: task_streams.network(config, 10).init(
      jax.random.key(0), np.zeros((1, 28, 28, 1)), train=False
    )
  )['params']
  assert set(config.gpm.thresholds.mlp) == set(params)


@pytest.mark.parametrize(
  ('preset', 'width'),
  [('paper_cifar100', 10 * 10), ('paper_5datasets', 5 * 10), ('paper', 10)],
)
def test_tasks_share_a_head_or_have_one_each(preset, width):
  assert task_streams.network(gpm.get_config(preset), 10).num_classes == width


@pytest.mark.parametrize(
  ('preset', 'claim'),
  [
    ('small', 'bwt'),
    ('mnist', 'bwt_mnist'),
    ('paper', 'bwt_mnist'),
    ('paper_cifar100', 'bwt'),
  ],
)
def test_permuted_mnist_has_a_claim_of_its_own(preset, claim):
  assert study.bwt_claim(study.get_config(preset)) == claim
  assert claim in study.CLAIMS


def test_a_split_is_what_its_name_says():
  config = gpm.get_config('smoke')
  made = gpm.build(config)
  train, test = (made.evals(x).source for x in ('train', 'test'))
  assert len(train) == len(made.train.source) != len(test)
  with pytest.raises(types.InputError, match='train, test'):
    made.evals('validation')


def test_sets_are_read_by_the_splits_that_are_named(monkeypatch):
  asked = []
  monkeypatch.setattr(
    task_streams.tasks, 'sets', lambda names, **kwargs: asked.append(kwargs)
  )
  config = gpm.get_config('paper_5datasets')
  config.data.update(train_split='train[:10%]', eval_splits=('test[:5%]',))
  task_streams.read(config)
  assert asked[0]['train_split'] == 'train[:10%]'
  assert asked[0]['test_split'] == 'test[:5%]'
