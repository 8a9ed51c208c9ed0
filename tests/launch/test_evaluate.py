"""`launch.evaluate` without a work directory: what a config starts from."""

import json

import launching
import pytest

from configs import vit
from launch.lib import judged_features
from repjax import loop
from repjax.weights import vit_weights

EPISODES = ('--episodes=3x1', '--queries=4', '--num_episodes=6')


def test_published_weights_are_judged_by_episodes(tmp_path):
  # Weights of another seed, which a run of seed 0 would never have.
  config = vit.get_config('smoke')
  experiment = vit.build(config)
  other = loop.init(experiment.method, experiment.train.batch(0), 7)
  weights = tmp_path / 'vit.npz'
  vit_weights.save_npz(weights, other.params)
  code, output = launching.call(
    'evaluate',
    f'--config={launching.SMOKE}',
    f'--config.weights={weights}',
    *EPISODES,
  )
  assert code == 0, output
  found = json.loads(output.strip().splitlines()[-1])
  settings = dict(layer='head', ways=3, shots=1, queries=4, count=6, seed=0)
  wanted = judged_features.measure(experiment, other, 'test', **settings)
  assert found['step'] == 0 and found['split'] == 'test'
  for name, (mean, half) in wanted['accuracy'].items():
    assert found['accuracy'][name] == pytest.approx([mean, half])


def test_neither_a_work_directory_nor_a_config():
  code, output = launching.call('evaluate', *EPISODES)
  assert code == 1
  (line,) = output.strip().splitlines()
  assert 'Give --workdir' in line and '--config.weights' in line
