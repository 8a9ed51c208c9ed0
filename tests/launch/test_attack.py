"""`launch.attack`: who is fooled, in a table and in pictures, or one line."""

import json

import launching
import numpy as np
from PIL import Image
import pytest
from scipy import stats

from repjax import plots
from repjax import types
from repjax.attacks import losses


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Work directories of a ViT with refinements, and of an MLP."""
  return {
    name: _train(config, tmp_path_factory.mktemp(name))
    for name, config in (
      ('vit', 'configs/vit_transfer.py:smoke'),
      ('mlp', 'configs/sam.py:smoke'),
    )
  }


def _train(config, workdir):
  code, output = launching.call(
    'train',
    f'--config={config}',
    f'--workdir={workdir}',
    *launching.AT_THE_END,
  )
  assert code == 0, output
  return workdir


def _attack(workdir, *flags):
  return launching.call('attack', f'--workdir={workdir}', *flags)


def test_a_table_of_attacks_and_networks(trained):
  vit, mlp = trained['vit'], trained['mlp']
  checkpoints = sorted((mlp / 'checkpoints').rglob('*'))
  code, output = _attack(
    mlp,
    f'--targets={vit}',
    '--attack=fgsm,pgd,di_fgsm,ti_fgsm,mi_fgsm,r_fgsm,pi_fgsm',
    '--epsilon=0.3',
    '--num_steps=3',
    '--num_rows=60',
    '--batch_size=30',
  )
  assert code == 0, output
  assert 'accuracy [its 95 % interval over 60 rows] (fooled), in %' in output
  table = json.loads((mlp / 'attack_test.json').read_text())
  assert table['num_rows'] == 60 and table['epsilon'] == 0.3
  assert set(table['networks']) == {'itself', str(vit)}
  itself = table['networks']['itself']
  for network in table['networks'].values():
    for cell in network.values():
      hits = round(60 * cell['accuracy'])
      assert hits == pytest.approx(60 * cell['accuracy'])
      peer = stats.binomtest(hits, 60).proportion_ci(0.95, 'wilson')
      assert cell['interval'] == pytest.approx(list(peer), abs=2e-4)
  said = itself['pgd']
  printed = (
    f'{100 * said["accuracy"]:.1f} [{100 * said["interval"][0]:.1f}, '
    f'{100 * said["interval"][1]:.1f}] ({100 * said["fooled"]:.1f})'
  )
  assert printed in output
  for name in ('fgsm', 'pgd', 'mi_fgsm', 'pi_fgsm'):
    assert itself[name]['accuracy'] < itself['none']['accuracy'] - 0.2
    assert itself[name]['fooled'] > 0.3
  assert sorted((mlp / 'checkpoints').rglob('*')) == checkpoints
  assert (mlp / 'plots' / 'attack_test_pgd.png').exists()


def test_pictures_say_how_many_of_all_images_are_wrong(trained, monkeypatch):
  told, draw = [], plots.predictions

  def seeing(pixels, logits, label, *, wrong_rate):
    told.append((len(pixels), wrong_rate))
    return draw(pixels, logits, label, wrong_rate=wrong_rate)

  monkeypatch.setattr(plots, 'predictions', seeing)
  mlp = trained['mlp']
  code, output = _attack(
    mlp, '--attack=pgd', '--epsilon=0.1', '--num_rows=60', '--batch_size=40'
  )
  assert code == 0, output
  itself = json.loads((mlp / 'attack_test.json').read_text())['networks'][
    'itself'
  ]
  assert told == [
    (16, pytest.approx(1 - itself[name]['accuracy']))
    for name in ('none', 'pgd')
  ]
  assert told[0] != told[1]


def test_other_images_are_refused_though_a_network_would_take_them(
  trained, tmp_path
):
  code, output = launching.call(
    'train',
    '--config=configs/sam.py:smoke',
    '--config.augment.size=12',
    f'--workdir={tmp_path}',
  )
  assert code == 0, output
  code, output = _attack(trained['mlp'], f'--targets={tmp_path}')
  assert code == 1
  last = output.strip().splitlines()[-1]
  assert 'images of [12, 12, 1]' in last and str(tmp_path) in last


def test_nothing_changes_without_room(trained):
  mlp = trained['mlp']
  code, output = _attack(mlp, '--epsilon=0', '--num_rows=30', '--attack=pgd')
  assert code == 0, output
  table = json.loads((mlp / 'attack_test.json').read_text())
  itself = table['networks']['itself']
  assert itself['pgd'] == itself['none']


@pytest.mark.parametrize('heads', ['ensemble', 'refined'])
def test_all_blocks_of_a_vit(trained, heads):
  code, output = _attack(
    trained['vit'], f'--heads={heads}', '--attack=mi_fgsm', '--num_rows=20'
  )
  assert code == 0, output
  table = json.loads((trained['vit'] / 'attack_test.json').read_text())
  assert table['heads'] == heads


@pytest.mark.parametrize(
  ('flags', 'tells'),
  [
    (('--attack=pdg',), 'pgd'),
    (('--attack=',), '--attack'),
    (('--epsilon=-0.1',), '--epsilon'),
    (('--num_steps=0',), '--num_steps'),
    (('--norm=l2', '--attack=fgsm,r_fgsm'), '--norm=l2'),
    (('--norm=l2', '--attack=pi_fgsm'), '--norm=l2 is not of pi_fgsm'),
    (('--attack=fgsm', '--decay=.5'), '--decay is of'),
    (('--attack=mi_fgsm', '--random_start'), '--random_start is of'),
    (('--heads=refined',), 'vit_transfer.py'),
    (('--target_class=10',), 'class 10'),
    (('--targets=/nowhere',), '--targets=/nowhere'),
  ],
)
def test_wrong_flags_are_one_line(trained, flags, tells):
  code, output = _attack(trained['mlp'], '--num_rows=10', *flags)
  assert code == 1
  last = output.strip().splitlines()[-1]
  assert tells in last and 'Traceback' not in output


def test_a_class_that_is_asked_for_is_aimed_at(trained, monkeypatch):
  asked = []

  def seeing(logits_fn, label, *, targeted):
    asked.append(targeted)
    raise types.InputError('seen')

  monkeypatch.setattr(losses, 'cross_entropy', seeing)
  for flags in ((), ('--target_class=3',)):
    code, _ = _attack(trained['mlp'], '--attack=fgsm', '--num_rows=10', *flags)
    assert code == 1
  assert asked == [False, True]


def test_runs_of_other_classes_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  for data, names in (('pets', ('cat', 'dog')), ('zoo', ('dog', 'wolf'))):
    for name in names:
      (tmp_path / data / name).mkdir(parents=True)
      for i in range(10):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / data / name / f'{i}.png')
    code, output = launching.call(
      'train',
      '--config=configs/sam.py:smoke',
      *('--config.data.name=folder', f'--data_dir={tmp_path / data}'),
      *('--config.data.label_noise=0', '--config.batch_size=4'),
      *('--config.epochs=0', '--config.min_steps=1'),
      f'--workdir={tmp_path / "run" / data}',
    )
    assert code == 0, output
  runs = tmp_path / 'run'
  code, output = _attack(runs / 'pets', f'--targets={runs / "zoo"}')
  assert code == 1
  last = output.strip().splitlines()[-1]
  assert "calls class 0 'dog'" in last and "calls it 'cat'" in last
