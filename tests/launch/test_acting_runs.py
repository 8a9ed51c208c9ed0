"""An agent that acts is trained and judged by the launchers of all runs."""

import json

import launching
import pytest


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sac')
  code, output = launching.call(
    'train', '--config=configs/sac.py:smoke', f'--workdir={workdir}'
  )
  assert code == 0, output
  return workdir


def test_what_it_earns_is_what_it_earned(trained):
  result = json.loads((trained / 'report.json').read_text())['result']
  code, output = launching.call('evaluate', f'--workdir={trained}')
  assert code == 0, output
  told = json.loads(output.splitlines()[-1])
  assert told == {'step': 12, **result}
  assert set(result) == {'return'}


def test_it_has_no_rows_to_judge_features_by(trained):
  code, output = launching.call(
    'evaluate', f'--workdir={trained}', '--episodes=5x1'
  )
  assert code == 1
  assert 'no rows of a split' in output


@pytest.mark.parametrize('flag', ['--outputs=out', '--split=train'])
def test_flags_of_rows_are_refused(trained, flag):
  code, output = launching.call('evaluate', f'--workdir={trained}', flag)
  assert code == 1
  assert flag.partition('=')[0] in output
