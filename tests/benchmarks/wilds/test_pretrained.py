"""A run goes on from what SwAV has learnt of rows without labels."""

import chex
import jax
import numpy as np
import pytest

from configs import wilds
from repjax import loop
from repjax import run
from repjax import start
from repjax import types
from repjax.benchmarks.wilds import metrics
from repjax.benchmarks.wilds import protocol


def config_of(algorithm, **settings):
  config = wilds.get_config('smoke')
  config.mlp.features = (8,)
  config.algorithm = algorithm
  config.update(settings)
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = config_of('swav', unlabelled='test_unlabeled')
  config.augment.kind = 'stains'
  config.swav.frozen_steps = 2
  folder = tmp_path_factory.mktemp('swav')
  found = run.fit(wilds.build(config), config, folder)['result']
  for split in ('val', 'test'):
    assert 0.5 <= found[f'{split}/accuracy'] <= 1
    assert 2 <= found[f'{split}/clusters'] <= 20
  return str(folder)


def begun(config):
  made = wilds.build(config)
  state = loop.init(made.method, made.train.batch(0), config.seed)
  return state, made.warm_start(state)


@pytest.mark.parametrize('algorithm', ['erm', 'dann'])
def test_networks_go_on_and_heads_start_afresh(workdir, algorithm):
  config = config_of(algorithm, pretrained=workdir)
  fresh, state = begun(config)
  saved = start.from_run(workdir)['params']['model']
  own, old = state.params, fresh.params
  if algorithm == 'dann':
    chex.assert_trees_all_equal(own['adversary'], old['adversary'])
    own, old = own['model'], old['model']
  chex.assert_trees_all_equal(own['head'], old['head'])
  layers = set(own) - {'head'}
  assert layers
  for layer in layers:
    chex.assert_trees_all_equal(own[layer], saved[layer])
    assert (own[layer]['kernel'] != old[layer]['kernel']).any()


def test_runs_that_do_not_fit_are_refused(workdir, tmp_path):
  with pytest.raises(types.InputError, match=r'config\.pretrained=.*nowhere'):
    wilds.build(config_of('erm', pretrained=str(tmp_path / 'nowhere')))
  config = config_of('erm', pretrained=workdir)
  config.mlp.features = (9,)
  with pytest.raises(types.InputError, match=r'config\.pretrained='):
    begun(config)


def test_an_arm_begins_from_its_own_pretraining():
  arm = next(x for x in protocol.UNLABELLED if x.algorithm == 'swav')
  settings = dict(
    draws=(0, 1),
    replicates=2,
    copies=2,
    strong='stains',
    unlabelled='test_unlabeled',
  )
  config = config_of('erm')
  found = protocol.run(arm, config, wilds.method, **settings)
  plain = protocol.run(protocol.AUGMENTED, config, wilds.method, **settings)
  assert found.accuracy['test'].shape == (2, 2)
  # The same rows and heads from another start.
  assert (abs(found.logits - plain.logits).max((2, 3)) > 1e-3).all()


def test_clusters_are_measured_by_labels_they_have_not_seen():
  scores = np.eye(4)[[0, 0, 0, 2, 2, 3]]
  label = np.array([1, 1, 0, 0, 0, 1])
  found = metrics.of_clusters({'scores': scores}, {'label': label})
  assert found == {'accuracy': pytest.approx(5 / 6), 'clusters': 3.0}


def test_statistics_come_with_the_network():
  state = types.TrainState(
    step=jax.numpy.zeros(()),
    params={'hidden': {'kernel': np.zeros(2, 'f4')}, 'head': np.zeros(1, 'f4')},
    opt_state=(),
    model_state={'batch_stats': {'norm': np.zeros(3, 'f4')}},
    extra=(),
  )
  found = start.with_network(
    state,
    {
      'params': {
        'model': {
          'hidden': {'kernel': np.ones(2, 'f4')},
          'head': np.ones(5, 'f4'),
        },
        'prototypes': np.ones(2, 'f4'),
      },
      'batch_stats': {'norm': np.ones(3, 'f4')},
      'swav': {},
    },
  )
  np.testing.assert_array_equal(found.params['hidden']['kernel'], 1)
  np.testing.assert_array_equal(found.params['head'], 0)
  np.testing.assert_array_equal(found.model_state['batch_stats']['norm'], 1)
  assert set(found.model_state) == {'batch_stats'}
