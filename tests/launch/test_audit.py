"""The launcher that audits recipes."""

import json

import launching
import pytest


def test_a_private_recipe_is_audited_as_it_is():
  code, output = launching.call(
    'audit', '--config=configs/dp_finetuning.py:smoke', '--draws=40'
  )
  assert code == 0, output
  assert 'not seen: canaries, layers and states that were not tried' in output
  lines = [x for x in output.splitlines() if x.startswith('{')]
  findings = [json.loads(x) for x in lines]
  assert all(x['holds'] for x in findings)
  assert findings[-1]['check'].startswith('epsilon')
  assert 2.9 < findings[-1]['claimed'] <= 3


def test_a_recipe_that_claims_nothing_is_refused():
  code, output = launching.call('audit', '--config=configs/sam.py:smoke')
  assert code == 1
  (line,) = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert 'claims no privacy' in line


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (
      ['--config=configs/dp_finetuning.py:smoke', '--delta=1e-6'],
      '--delta is not read with --config',
    ),
    (['--draws=40'], '--draws needs --config'),
    (['--print_config'], '--print_config needs --config'),
    (['--data_dir=/x'], '--data_dir needs --config'),
  ],
)
def test_flags_that_would_do_nothing_are_refused(flags, says):
  code, output = launching.call('audit', *flags)
  assert code == 1
  assert says in output
