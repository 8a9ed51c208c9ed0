"""Real processes: one device, four devices and two processes agree."""

import json

import jax
import launching
import numpy as np
import private_sgd
import pytest

from repjax import loop
from repjax import run
from repjax import trees

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Work directories of the same 20 steps on three kinds of machine."""
  folder = tmp_path_factory.mktemp('runs')
  flags = (
    '--config=tests/vit_sgd.py:smoke',
    '--config.min_steps=20',
    # Long enough for sums of several steps to be fetched together.
    '--config.run.log_every=20',
    '--config.run.eval_every=0',
    '--config.run.save_every=0',
  )
  for name, devices in (('one', 1), ('four', 4)):
    code, output = launching.run(
      'train', *flags, f'--workdir={folder / name}', devices=devices
    )
    assert code == 0, output
  codes, outputs = launching.finish(
    launching.start_two(
      'train', *flags, f'--workdir={folder / "two"}', devices=2
    )
  )
  assert codes == [0, 0], outputs
  return folder


@pytest.mark.parametrize('other', ['four', 'two'])
def test_twenty_steps_of_sgd_agree(runs, other):
  expected, actual = (launching.arrays(runs / n) for n in ('one', other))
  assert expected.keys() == actual.keys()
  assert expected['step'] == 20
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name], value, rtol=0, atol=1e-6, err_msg=name
    )


@pytest.fixture(scope='module')
def private_run(tmp_path_factory):
  """The work directory of a private run by two processes."""
  workdir = tmp_path_factory.mktemp('private')
  codes, outputs = launching.finish(
    launching.start_two(
      'train',
      '--config=tests/private_sgd.py:smoke',
      f'--workdir={workdir}',
      devices=2,
    )
  )
  assert codes == [0, 0], outputs
  return workdir


@pytest.mark.parametrize('num_devices', [1, 4])
def test_private_updates_agree_with_their_noise(private_run, num_devices):
  config = private_sgd.get_config('smoke')
  experiment = private_sgd.build(config)
  # With the keys of that run.
  experiment = experiment.guard.begin(
    experiment, private_run, run.identity(config)
  )
  devices = jax.local_devices()[:num_devices]
  fresh = loop.init(
    experiment.method, experiment.train.batch(0), config.seed, devices
  )
  state = loop.fit(
    experiment.method,
    experiment.train.iterate,
    steps=experiment.steps,
    seed=config.seed,
    state=experiment.guard.keyed(fresh),
    devices=devices,
  )
  actual = launching.arrays(private_run)
  expected = {
    '/'.join(path): np.asarray(x) for path, x in trees.flatten(state).items()
  }
  assert expected.keys() == actual.keys()
  assert actual['step'] == experiment.steps
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name], value, rtol=0, atol=1e-6, err_msg=name
    )


def test_a_private_run_says_what_it_spends(private_run):
  said = launching.report(private_run)['privacy']
  assert said['epsilon'] <= 3.0 < said['epsilon'] * 1.01
  assert said['sampling'] == 'Poisson'
  lines = [
    json.loads(line)
    for line in (private_run / 'metrics.jsonl').read_text().splitlines()
  ]
  spent = [x['epsilon'] for x in lines if 'loss' in x]
  assert spent == sorted(spent)
  assert spent[-1] == said['epsilon']
  log = (private_run / 'log.txt').read_text()
  assert f'epsilon {spent[0]:.4f}' in log


@pytest.mark.parametrize('differs', ['rate', 'key'])
def test_processes_that_differ_are_stopped(tmp_path, differs):
  own, envs = ((), ()), ({}, {})
  flags = ['--config=tests/private_sgd.py:smoke', f'--workdir={tmp_path}/run']
  if differs == 'rate':
    own = ((), ('--config.tx.learning_rate=0.5',))
    says = 'config.tx.learning_rate: 0.1 -> 0.5'
  else:
    flags += ['--config.dp.key_file=~/key']
    for i in (0, 1):
      (tmp_path / f'{i}').mkdir()
      (tmp_path / f'{i}' / 'key').write_bytes(bytes(range(i, i + 32)))
      (tmp_path / f'{i}' / 'key').chmod(0o600)
    envs = tuple({'HOME': str(tmp_path / f'{i}')} for i in (0, 1))
    says = 'key_file or seed: '
  codes, outputs = launching.finish(
    launching.start_two('train', *flags, own=own, envs=envs, devices=2)
  )
  assert codes == [1, 1], outputs
  for output in outputs:
    (line,) = [x for x in output.splitlines() if x.startswith('ERROR: ')]
    assert f'(process 0 -> process 1): {says}' in line
    assert 'Traceback' not in output
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_who_keeps_the_targets_of_all_rows_does_not_matter(tmp_path):
  flags = ('--config=configs/pico.py:smoke', '--config.targets.warmup=0.02')
  one, two = tmp_path / 'one', tmp_path / 'two'
  code, output = launching.run('train', *flags, f'--workdir={one}')
  assert code == 0, output
  codes, outputs = launching.finish(
    launching.start_two('train', *flags, f'--workdir={two}', devices=2)
  )
  assert codes == [0, 0], outputs
  expected, actual = launching.arrays(one), launching.arrays(two)
  assert expected.keys() == actual.keys()
  targets = expected['extra/targets']
  assert len(np.unique(targets)) > 20  # They have moved.
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )
  # What both read of the tables, all rows of them, after the last step.
  told = [launching.report(x)['result'] for x in (one, two)]
  for name in ('targets/confidence', 'targets/disambiguation'):
    assert told[0][name] == pytest.approx(told[1][name], abs=2e-3)
  # The checkpoint of two processes goes on with one, on four devices.
  code, output = launching.run(
    'train',
    *flags,
    *('--config.epochs=0.2', '--resume_config=new', f'--workdir={two}'),
    devices=4,
  )
  assert code == 0, output
  assert launching.arrays(two)['extra/targets'].shape == targets.shape
