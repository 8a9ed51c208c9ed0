"""An experiment in a work directory, without flags and processes."""

import json

import jax
import numpy as np
import pytest

from configs import sam
from repjax import run
from repjax import types


@pytest.fixture
def config():
  config = sam.get_config('smoke')
  config.run.update(log_every=5, eval_every=8, save_every=4)
  return config


def _history(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def lines(workdir):
  """Loss a logged step."""
  rows = [json.loads(x) for x in _history(workdir)]
  return {row['step']: row['loss'] for row in rows if 'loss' in row}


def test_a_stopped_run_goes_on_to_the_same_end(config, tmp_path):
  whole = run.fit(sam.build(config), config, tmp_path / 'whole')
  steps = whole['steps']
  calls = iter(range(steps))
  with pytest.raises(types.PreemptedError, match='after step 6'):
    run.fit(
      sam.build(config),
      config,
      tmp_path / 'parts',
      asked_to_stop=lambda: next(calls) == 5,
    )
  assert not (tmp_path / 'parts' / 'report.json').exists()
  parts = run.fit(sam.build(config), config, tmp_path / 'parts')
  assert parts['params_crc32'] == whole['params_crc32']
  assert parts['result'] == whole['result']
  # What was logged after the last save is made again, not doubled.
  assert lines(tmp_path / 'parts').keys() == lines(tmp_path / 'whole').keys()
  # A finished run is read, not repeated.
  calls = iter(())  # Asking would raise StopIteration.
  again = run.fit(
    sam.build(config),
    config,
    tmp_path / 'whole',
    asked_to_stop=lambda: next(calls),
  )
  assert again['time'] == whole['time']
  for name in ('config.json', 'log.txt', 'plots/test_confusion.png'):
    assert (tmp_path / 'whole' / name).exists()


def test_another_config_is_refused_or_taken_on_request(config, tmp_path):
  first = run.fit(sam.build(config), config, tmp_path)
  config.sam.rho = 0.1
  with pytest.raises(types.InputError, match=r'sam\.rho'):
    run.fit(sam.build(config), config, tmp_path)
  config.epochs *= 2
  second = run.fit(sam.build(config), config, tmp_path, resume_config='new')
  assert second['steps'] == 2 * first['steps']
  assert second['config']['sam']['rho'] == 0.1


def test_where_and_how_often_is_no_part_of_what_a_run_is(config):
  identity = run.identity(config)
  config.run.log_every = 1
  config.data.dir = '/elsewhere'
  assert run.identity(config) == identity
  config.seed = 1
  assert run.identity(config) != identity
  # Work directories of old had the fields of studies among them.
  old = {**identity, 'claims': {}, 'seeds': [0], 'study': {}}
  assert run.without_studies(old) == identity


def test_a_guard_speaks_and_refuses(config, tmp_path):
  seen = []

  class Said:
    def to_dict(self):
      return {'epsilon': 3.0}

  def check(experiment, state, best):
    seen.append((experiment.steps, int(state.step), best))

  def resumed(fresh, state, same_config):
    seen.append((int(fresh.step), int(state.step), same_config))
    raise types.InputError('not again')

  guard = types.Guard(
    check=check,
    resumed=resumed,
    line=lambda step: {'spent': step / 10},
    statement=lambda steps: {'privacy': Said()} if steps else {},
  )
  made = sam.build(config)._replace(guard=guard)
  stop = iter([False] * 6 + [True])
  with pytest.raises(types.PreemptedError):
    run.fit(made, config, tmp_path, asked_to_stop=lambda: next(stop))
  rows = [json.loads(x) for x in _history(tmp_path)]
  assert [x['spent'] for x in rows if 'spent' in x] == [0.5]
  with pytest.raises(types.InputError, match='not again'):
    run.fit(made, config, tmp_path)
  assert seen == [
    (made.steps, 0, 'test/accuracy'),
    (made.steps, 0, 'test/accuracy'),
    (0, 7, True),
  ]
  done = run.fit(
    made._replace(guard=guard._replace(resumed=types.Guard().resumed)),
    config,
    tmp_path,
  )
  assert done['privacy'] == {'epsilon': 3.0}


def test_a_warm_start_is_for_the_first_step_alone(config, tmp_path):
  made = sam.build(config)
  starts = []

  def warm_start(state):
    starts.append(int(state.step))
    return state.replace(params=jax.tree.map(lambda x: 0 * x, state.params))

  made = made._replace(warm_start=warm_start)
  stop = iter([False] * 3 + [True])
  with pytest.raises(types.PreemptedError):
    run.fit(made, config, tmp_path, asked_to_stop=lambda: next(stop))
  result = run.fit(made, config, tmp_path)
  assert starts == [0]
  assert np.isfinite(result['result']['test/loss'])
