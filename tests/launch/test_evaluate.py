"""`launch.evaluate` without a work directory: what a config starts from."""

import json

import launching
import pytest

from configs import beit
from configs import esvit
from configs import vit
from launch.lib import judged_features
from repjax import loop
from repjax.weights import beit_weights
from repjax.weights import swin_weights
from repjax.weights import vit_weights

EPISODES = ('--episodes=3x1', '--queries=4', '--num_episodes=6')


def vit_of(state, folder):
  vit_weights.save_npz(folder / 'vit.npz', state.params)
  return folder / 'vit.npz'


def swin_of(state, folder):
  # Hugging Face's names are told from timm's by themselves.
  swin_weights.save(
    folder / 'model.safetensors', state.params['backbone'], layout='timm'
  )
  return folder


def beit_of(state, folder):
  beit_weights.save(folder / 'model.safetensors', state.params)
  return folder


@pytest.mark.parametrize(
  ('recipe', 'flag', 'settings', 'write'),
  [
    (vit, 'weights', {}, vit_of),
    # The average of its teacher, whose head no file of a Swin has.
    (esvit, 'weights', {}, swin_of),
    (beit, 'pretrained', {'stage': 'finetune'}, beit_of),
  ],
)
def test_published_weights_are_judged_by_episodes(
  tmp_path, recipe, flag, settings, write
):
  # Weights of another seed, which a run of seed 0 would never have.
  config = recipe.get_config('smoke')
  config.update(settings)
  experiment = recipe.build(config)
  other = loop.init(experiment.method, experiment.train.batch(0), 7)
  weights = write(other, tmp_path)
  name = recipe.__name__.split('.')[1]
  code, output = launching.call(
    'evaluate',
    f'--config=configs/{name}.py:smoke',
    *(f'--config.{k}={v}' for k, v in {**settings, flag: weights}.items()),
    *EPISODES,
  )
  assert code == 0, output
  found = json.loads(output.strip().splitlines()[-1])
  asked = dict(layer='head', ways=3, shots=1, queries=4, count=6, seed=0)
  wanted = judged_features.measure(experiment, other, 'test', **asked)
  assert found['step'] == 0 and found['split'] == 'test'
  for name, (mean, half) in wanted['accuracy'].items():
    assert found['accuracy'][name] == pytest.approx([mean, half])


@pytest.mark.parametrize('flag', ['--queries=3', '--layer=x', '--alpha=.3'])
def test_what_only_episodes_heed_is_not_ignored(flag):
  code, output = launching.call('evaluate', '--workdir=runs/none', flag)
  assert code == 1
  (line,) = output.strip().splitlines()
  assert f'{flag.partition("=")[0]} needs --episodes' in line


def test_neither_a_work_directory_nor_a_config():
  code, output = launching.call('evaluate', *EPISODES)
  assert code == 1
  (line,) = output.strip().splitlines()
  assert 'Give --workdir' in line and '--config.weights' in line


@pytest.mark.parametrize(
  'flags',
  [
    ('--workdir=runs/none', '--inputs=a', '--split=train'),
    ('--features=a.npz', '--episodes=3x1', '--layer=x'),
    ('--features=a.npz', '--episodes=3x1', '--split=train'),
    ('--features=a.npz', '--episodes=3x1', '--step=3'),
    ('--config=configs/vit.py:smoke', '--episodes=3x1', '--step=3'),
  ],
)
def test_flags_that_would_do_nothing_are_refused(flags):
  code, output = launching.call('evaluate', *flags)
  assert code == 1
  (line,) = output.strip().splitlines()
  assert f'{flags[-1].partition("=")[0]} is ' in line
  assert 'leave it out' in line
