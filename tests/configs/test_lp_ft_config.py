"""Where a run of configs/lp_ft.py begins."""

import chex
import numpy as np
import pytest

from configs import lp_ft as recipe
from configs.studies import lp_ft as study
from repjax import loop
from repjax import start
from repjax import types


def began(stage='lp_ft'):
  config = recipe.get_config('smoke')
  config.stage = stage
  experiment = recipe.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), seed=0)
  return experiment, state, experiment.warm_start(state)


def test_a_run_begins_at_a_pretrained_backbone_and_a_probe():
  experiment, fresh, probed = began()
  assert not np.allclose(
    probed.params['hidden_0']['kernel'], fresh.params['hidden_0']['kernel']
  )
  evaluator = loop.Evaluator(experiment.method)
  accuracy = {}
  for name, state in (('fresh', fresh), ('probed', probed)):
    outputs, columns = evaluator(state, experiment.evals('val'))
    accuracy[name] = experiment.measure(outputs, columns)['accuracy']
  assert accuracy['probed'] > 0.5 > accuracy['fresh']
  # The sets of each name: the same test digits in other colours.
  inputs, others = (
    next(iter(experiment.evals(split))) for split in ('test', 'ood')
  )
  np.testing.assert_array_equal(inputs['label'], others['label'])
  assert inputs['image'][..., 1:].max() == 0 == others['image'][..., 0].max()


def test_a_probe_by_sgd_begins_at_the_backbone_and_trains_the_head_alone():
  _, fresh, tuned = began('ft')
  _, _, probing = began('lp')
  assert set(probing.params) == {'head'}
  both = start.parameters(probing)
  chex.assert_trees_all_equal(both, tuned.params)
  chex.assert_trees_all_equal(both['head'], fresh.params['head'])


def test_what_cannot_be_run_is_named():
  config = recipe.get_config('smoke')
  config.stage = 'both'
  with pytest.raises(types.InputError, match=r'config\.stage'):
    recipe.build(config)
  with pytest.raises(types.InputError, match='preset=small'):
    study.run(study.get_config('paper'))
