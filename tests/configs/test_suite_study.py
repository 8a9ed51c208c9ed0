"""PAD in the DeepMind Control suite: the whole of its study, tiny."""

import numpy as np
import pytest

from configs import pad as pad_recipe
from configs import sac as sac_recipe
from configs.studies import pad
from launch.lib import results
from repjax import run
from repjax import types


@pytest.fixture
def suite():
  pytest.importorskip('dm_control.suite')


def _tiny():
  config = pad.get_config('paper')
  config.update(
    batch_size=4,
    min_steps=6,
    data=dict(name='cartpole-swingup'),
    world=dict(size=36, num_steps=5, action_repeat=2),
    agent=dict(
      channels=(4, 4, 4),
      strides=(2, 2, 1),
      own_channels=(4,),
      own_width=6,
      features=(8,),
    ),
    act=dict(first=5, episodes=1, capacity=100),
    pad=dict(copies=2, crop=28),
    run=dict(eval_every=3),
    study=dict(suite_episodes=2),
  )
  return config


def test_agents_learn_and_adapt_in_all_looks(suite):
  report = pad.run(_tiny(), (0, 1))
  judged = {x['name']: x for x in results.judge(pad.CLAIMS, report.scalars)}
  assert set(judged) == {'suite_learned', 'failing', 'suite_gain', 'suite_cost'}
  # An agent that has learned nothing loses nothing: that says nothing.
  assert judged['suite_cost']['verdict'] == results.NOT_TESTABLE
  met = dict(failing=np.ones(2), suite_learned=np.ones(2))
  for row in results.judge(pad.CLAIMS, {**report.scalars, **met}):
    assert 'unmet' not in row
  for name, values in report.scalars.items():
    assert len(values) == 2, name
    assert np.isfinite(values).all(), name
  none, adapting = report.arrays.values()
  assert none.shape == (2, 4)
  assert (none != adapting).any()


def test_runs_that_were_trained_before_are_deployed(suite, tmp_path):
  config = _tiny()
  config.study.update(suite_looks=('colours_hard',), suite_episodes=1)
  config.run.best = ''
  trained = config.copy_and_resolve_references()
  del trained.study
  for seed in (0, 1):
    trained.seed = seed
    run.fit(pad_recipe.build(trained), trained, tmp_path / str(seed))
  config.data.dir = str(tmp_path)
  report = pad.run(config, (0, 1))
  assert report.arrays['no adaptation'].shape == (2, 2)
  with pytest.raises(types.InputError, match='holds no checkpoint'):
    pad.run(config, (2,))
  config.agent.features = (9,)
  with pytest.raises(types.InputError, match='other shapes'):
    pad.run(config, (0,))
  config.data.name = 'cartpole-balance'
  with pytest.raises(types.InputError, match='was trained on cartpole-swingup'):
    pad.run(config, (0,))


def test_a_video_folder_without_pictures_is_refused(suite, tmp_path):
  config = _tiny()
  config.study.update(suite_looks=('video',), video=str(tmp_path))
  with pytest.raises(types.InputError, match='holds no PNG'):
    pad.run(config, (0,))


@pytest.mark.parametrize('stop', [3, 8])  # At the steps by chance, and later.
def test_a_run_on_states_is_resumed_bit_for_bit(suite, tmp_path, stop):
  config = sac_recipe.get_config('paper')
  config.update(
    batch_size=8,
    min_steps=14,
    data=dict(name='walker-stand'),
    world=dict(num=2, num_steps=7, action_repeat=2),
    agent=dict(features=(8,)),
    act=dict(first=4, episodes=1, capacity=100),
    run=dict(log_every=5, eval_every=7, save_every=4),
  )
  whole = run.fit(sac_recipe.build(config), config, tmp_path / 'whole')
  calls = iter(range(14))
  with pytest.raises(types.PreemptedError):
    run.fit(
      sac_recipe.build(config),
      config,
      tmp_path / 'parts',
      asked_to_stop=lambda: next(calls) == stop,
    )
  parts = run.fit(sac_recipe.build(config), config, tmp_path / 'parts')
  assert parts['params_crc32'] == whole['params_crc32']
  assert parts['result'] == whole['result']
