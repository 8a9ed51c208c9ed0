"""The benchmarks' launcher: what it refuses, its lines and its table."""

import json
import sys

import jax
import launching
import pytest

from launch.benchmarks import attention_speed
from repjax.data.batches import in_order

SETTINGS = ('--only=input', '--rounds=1')


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--only=lop'], 'there are loop, sam'),
    (['--only=vit'], 'It needs --platform=gpu.'),
    (['--platform=gpu'], 'JAX found only cpu. Install it with: pip install'),
    (['--platform=gpu', '--favor_peer=x.py'], '--favor_peer is not timed'),
    (['--platform=gpu', '--only=vit'], '--platform=gpu, but JAX found only'),
  ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(flags, words):
  code, output = launching.call('benchmark', *flags)
  assert code == 1
  (line,) = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert words in line


def test_a_benchmark_is_a_line_of_json():
  code, output = launching.call('benchmark', *SETTINGS)
  assert code == 0
  (line,) = [x for x in output.splitlines() if x.startswith('{')]
  found = json.loads(line)
  assert found.pop('rows_per_second') > 0
  assert found == {'benchmark': 'input'}


def test_a_table_names_command_and_device():
  code, output = launching.call('benchmark', *SETTINGS, '--table')
  assert code == 0
  assert '`python -m launch.benchmark --only=input --rounds=1' in output
  assert 'CPU cores:' in output
  assert '| input | rows_per_second | ' in output
  assert '{' not in output.partition('| benchmark |')[2]


def test_what_is_not_installed_ends_no_other_benchmark(monkeypatch):
  monkeypatch.setitem(sys.modules, 'skdim', None)
  code, output = launching.call(
    'benchmark', '--only=dimension,input', '--rounds=1'
  )
  assert code == 0, output
  lines = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
  assert 'parity' in lines[0]['skipped']
  assert lines[1]['rows_per_second'] > 0


@pytest.mark.parametrize('full', [True, False])
def test_a_device_that_is_full_is_told_in_the_line(monkeypatch, full):
  message = 'RESOURCE_EXHAUSTED: Out of memory.' if full else 'INTERNAL: Bug.'

  def fail(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(in_order, 'train_batches', fail)
  code, output = launching.call('benchmark', *SETTINGS)
  if not full:  # What nobody knows is told whole.
    assert code == 1
    assert 'Traceback' in output
    return
  assert code == 0, output
  (line,) = [x for x in output.splitlines() if x.startswith('{')]
  assert json.loads(line)['not measured'] == 'the device is out of memory'


@pytest.mark.parametrize(
  ('name', 'says'),
  [('fast.py', 'no_such_package'), ('fast.txt', 'no file of Python')],
)
def test_a_peer_that_cannot_be_loaded_is_refused_in_one_line(
  tmp_path, name, says
):
  (tmp_path / name).write_text('import no_such_package\n')
  flag = f'--favor_peer={tmp_path / name}'
  code, output = launching.call('benchmark', '--only=attention', flag)
  assert code == 1
  (line,) = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert says in line
  assert '--favor_peer=' in line


def test_a_crossover_is_a_length_that_was_measured():
  crossover = attention_speed.crossover
  assert crossover({256: 2.0, 512: 3.0}) == 'below 256'
  assert crossover({256: 0.5, 512: 1.5, 1024: 2.0}) == 512
  assert crossover({256: 2.0, 512: 0.5, 1024: 1.5}) == 1024
  assert crossover({256: 2.0, 512: 0.5}) == 'beyond 512'
