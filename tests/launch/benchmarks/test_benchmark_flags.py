"""The benchmarks' launcher: what it refuses, its lines and its table."""

import json

import launching
import pytest

SETTINGS = ('--only=input', '--rounds=1')


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--only=lop'], 'there are loop, sam'),
    (['--only=vit'], 'It needs --platform=gpu.'),
    (['--platform=gpu'], 'JAX found only cpu. Install it with: pip install'),
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
