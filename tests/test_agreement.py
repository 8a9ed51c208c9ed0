"""Processes of one job that do not do the same are stopped, in one line."""

import json
import types as python_types

import pytest

from configs import sam
from repjax import agreement
from repjax import checkpoint
from repjax import parallel
from repjax import report
from repjax import run
from repjax import types
from repjax.experiments import private_keys


@pytest.fixture
def others(monkeypatch):
  """What a second process says: changes of what the first one does."""
  changes = []

  def gather(data):
    second = json.loads(data)
    for change in changes:
      change(second)
    return [data, json.dumps(second).encode()]

  monkeypatch.setattr(parallel, 'gather', gather)
  return changes


def test_alone_a_process_agrees():
  agreement.check({'config': {'seed': 0}})
  assert parallel.gather(b'\0\1') == [b'\0\1']


def test_what_differs_is_named(others):
  facts = {'config': {'tx': {'rate': 0.1}, 'seed': 0}, 'code': 'a'}
  agreement.check(facts)
  others.append(lambda x: x['config']['tx'].update(rate=0.2))
  with pytest.raises(types.InputError) as error:
    agreement.check(facts)
  assert '(process 0 -> process 1): config.tx.rate: 0.1 -> 0.2.' in str(
    error.value
  )
  others.append(lambda x: x.update(code='b'))
  with pytest.raises(types.InputError, match='code: a -> b; config'):
    agreement.check(facts)


def test_another_key_is_named_and_not_told(others, tmp_path):
  secret = b'a secret that nobody knows'
  others.append(lambda x: x.update({'key_file or seed': 'other'}))
  with pytest.raises(types.InputError, match='key_file or seed') as error:
    private_keys.of_run(tmp_path, secret, {}, '')
  assert secret.hex()[:8] not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_facts_tell_configs_rows_and_code_apart(tmp_path):
  config = sam.get_config('smoke')

  def facts(file='configs/sam.py'):
    made = sam.build(config)
    return agreement.facts(made, config, {'file': file, 'preset': 'smoke'})

  first = facts()
  assert first['versions'] == report.environment()['versions']
  config.data.dir = '/elsewhere'  # Each machine has its own.
  assert facts() == first
  # How often to save counts, too: all processes save together.
  config.run.save_every += 1
  agreed = facts()
  assert {k for k in first if agreed[k] != first[k]} == {'config'}
  config.data.train_split = 'train[:50%]'
  assert facts()['training rows'] != agreed['training rows']
  # Of a split by one name, other rows.
  made = sam.build(config)
  other = made._replace(evals=lambda split: made.evals(f'{split}[:-1]'))
  found = [agreement.facts(x, config, {}) for x in (made, other)]
  assert {k for k in found[0] if found[0][k] != found[1][k]} == {
    'evaluation rows'
  }
  (tmp_path / 'sam.py').write_text('# Another recipe.')
  assert facts(tmp_path / 'sam.py')['code'] != agreed['code']


def test_processes_go_on_from_one_checkpoint(tmp_path, monkeypatch, request):
  config = sam.get_config('smoke')
  calls = iter(range(99))
  with pytest.raises(types.PreemptedError):
    run.fit(
      sam.build(config),
      config,
      tmp_path,
      asked_to_stop=lambda: next(calls) == 5,
    )
  store = checkpoint.Checkpoints(
    str(tmp_path / 'checkpoints'), keep=2, best='', best_mode='max'
  )
  others = request.getfixturevalue('others')
  two = python_types.SimpleNamespace(process_count=lambda: 2)
  monkeypatch.setattr(run, 'jax', two)

  def begin():
    directory = report.Run(tmp_path)
    return run._begin(sam.build(config), config, directory, store, 'same')

  assert int(begin()[0].step) == 6
  # One that could not read the newest.
  others.append(lambda x: x.update({'step to start from': 4}))
  with pytest.raises(types.InputError, match='step to start from: 6 -> 4'):
    begin()
