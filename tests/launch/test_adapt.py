"""`launch.adapt`: a table of what forms of adaptation are worth, or a line."""

import json

import jax.numpy as jnp
import launching
import numpy as np
from PIL import Image
import pytest

from repjax import types
from repjax.protocols import adaptation

TENT = 'configs/tent.py:smoke'
# What the smoke preset is evaluated on.
SPLIT = '--split=train[30%:]+test'
NAME = 'adapt_train_30%_+test'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Work directory of a network with batch norms."""
  return _train(TENT, tmp_path_factory.mktemp('tent'))


@pytest.fixture(scope='module')
def without_norms(tmp_path_factory):
  """Work directory of an MLP."""
  return _train('configs/sam.py:smoke', tmp_path_factory.mktemp('mlp'))


def _train(config, workdir):
  code, output = launching.call(
    'train',
    f'--config={config}',
    f'--workdir={workdir}',
    *launching.AT_THE_END,
  )
  assert code == 0, output
  return workdir


def _adapt(workdir, *flags):
  return launching.call('adapt', f'--workdir={workdir}', *flags)


def test_a_table_of_all_forms(trained):
  checkpoints = sorted((trained / 'checkpoints').rglob('*'))
  code, output = _adapt(
    trained, '--corruption=contrast,none', '--batch_size=100', SPLIT
  )
  assert code == 0, output
  table = json.loads((trained / f'{NAME}.json').read_text())
  assert table['severity'] == 5 and table['batch_size'] == 100
  assert list(table['streams']) == ['contrast', 'none']
  for forms in table['streams'].values():
    assert set(forms) == {'source', 'BN', 'blended', 'Tent'}
    for measured in forms.values():
      assert 0 <= measured['error'] <= 1
      assert 1 <= measured['classes'] <= 10
  # What was trained evaluates as in its report.
  (expected,) = [
    x
    for name, x in launching.report(trained)['result'].items()
    if name.endswith('/accuracy')
  ]
  clean = table['streams']['none']['source']['error']
  assert clean == pytest.approx(1 - expected, abs=1e-6)
  lines = [x for x in output.splitlines() if x.startswith(('error', 'mean'))]
  assert lines[0].split() == ['error', '[%]', 'source', 'BN', 'blended', 'Tent']
  mean = [
    sum(100 * x[form]['error'] for x in table['streams'].values()) / 2
    for form in lines[0].split()[2:]
  ]
  assert [float(x) for x in lines[1].split()[1:]] == pytest.approx(
    mean, abs=0.06
  )
  for name in (NAME, f'{NAME}_along'):
    assert (trained / 'plots' / f'{name}.png').stat().st_size > 1000
  assert sorted((trained / 'checkpoints').rglob('*')) == checkpoints


def test_an_episode_of_one_step_is_the_statistics_of_the_batch(trained):
  code, output = _adapt(
    trained, '--reset_every=1', '--learning_rate=1', '--order=sorted'
  )
  assert code == 0, output
  table = json.loads((trained / 'adapt_test.json').read_text())
  measured = table['streams']['none']
  assert measured['Tent']['error'] == measured['BN']['error']
  assert table['order'] == 'sorted'


def test_layer_norms_adapt_without_statistics(tmp_path):
  workdir = _train(launching.SMOKE, tmp_path)
  code, output = _adapt(workdir, '--batch_size=1', '--only=encoder_norm')
  assert code == 0, output
  table = json.loads((workdir / 'adapt_test.json').read_text())
  assert set(table['streams']['none']) == {'source', 'Tent'}


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (['--corruption=contrst'], ['--corruption=contrst', "mean 'contrast'"]),
    (['--corruption='], ['--corruption', 'at least one']),
    (['--severity=6'], ['severity', '6']),
    (['--severity=3'], ['--severity is of', '--corruption']),
    (['--scale=imagenet'], ['--scale is of', '--corruption']),
    (['--batch_size=1'], ['one row', 'larger batches']),
    (['--learning_rate=0'], ['--learning_rate', '(0, inf)']),
    (['--confidence=2'], ['--confidence', '(0, 1]']),
    (['--only=nothing'], ['No scale or bias', 'norm']),
    (['--only=('], ['--only=(', 'regular expression']),
    (['--split=tset'], ['tset', 'test']),
    (['--workdir=/nowhere'], ['/nowhere', 'no checkpoints']),
  ],
)
def test_what_cannot_adapt(trained, flags, says):
  code, output = _adapt(trained, *flags)
  assert code == 1, output
  assert 'Traceback' not in output
  (line,) = [
    x for x in output.splitlines() if x.startswith(('ERROR: ', 'FATAL'))
  ]
  for text in says:
    assert text in line


def test_a_network_without_norms(without_norms):
  code, output = _adapt(without_norms, '--corruption=fog')
  assert code == 1, output
  assert 'calls no norm with a scale or bias' in output
  assert 'Traceback' not in output


def test_photos_are_corrupted_at_the_size_of_the_network(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    (tmp_path / 'data' / name).mkdir(parents=True)
    for i in range(20):
      pixels = rng.integers(0, 256, (20 + i, 24), np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'data' / name / f'{i}.png')
  workdir, data = tmp_path / 'run', tmp_path / 'data'
  code, output = launching.call(
    'train',
    f'--config={TENT}',
    f'--workdir={workdir}',
    '--config.data.name=folder',
    f'--data_dir={data}',
    '--config.data.train_split=train',
    "--config.data.eval_splits=('test',)",
    '--config.augment.size=8',
    '--config.batch_size=8',
    '--config.min_steps=1',
    '--config.run.best=test/accuracy',
  )
  assert code == 0, output
  shapes, shifted = [], adaptation.shifted

  def seeing(source, *args, **settings):
    shapes.append(source.image_shape)
    return shifted(source, *args, **settings)

  monkeypatch.setattr(adaptation, 'shifted', seeing)
  code, output = _adapt(
    workdir, '--corruption=contrast', '--split=test', '--batch_size=4'
  )
  assert code == 0, output
  assert set(shapes) == {(8, 8, 1)}


def test_flags_of_tent_reach_it(trained, monkeypatch):
  seen = {}

  def forms(predict, state, batch, tx, **settings):
    seen.update(settings, tx=tx)
    raise types.InputError('seen')

  monkeypatch.setattr(adaptation, 'forms', forms)
  given = dict(steps=3, confidence=0.4, reset_every=7, reset_below=0.2)
  given |= dict(blend=50.0)
  flags = [f'--{k}={x}' for k, x in given.items()]
  for name, moved in (('adam', -1e-3), ('sgd', -4e-3)):
    code, _ = _adapt(trained, f'--optimizer={name}', '--predict=after', *flags)
    assert code == 1
    zero, tx = jnp.zeros(()), seen['tx']
    update, _ = tx.update(zero + 4, tx.init(zero))
    assert float(update) == pytest.approx(moved, rel=1e-3)
    assert {k: seen[k] for k in given} == given
    assert seen['when'] == 'after'
