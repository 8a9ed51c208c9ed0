"""Rows that a README can take."""

import pytest

from launch.lib import benchmark_table


@pytest.mark.parametrize(
  'result, rows',
  [
    ({'images/s': 2640.4}, ['| x | images/s | 2,640 |']),
    ({'share': 0.28123}, ['| x | share | 0.281 |']),
    ({'timm': {'a': 'not measured: b'}}, ['| x | timm, a | not measured: b |']),
    (
      {'causal': {'ms': {1024: 0.5, 65536: 'not measured: c'}}},
      ['| x | causal, ms; at 1,024, 65,536 | 0.5; not measured: c |'],
    ),
    ({'p': (0.01, 0.5), 'n': 7}, ['| x | p | 0.01, 0.5 |', '| x | n | 7 |']),
    ({'a|b': None}, [r'| x | a\|b | None |']),
  ],
)
def test_a_figure_is_a_row_and_lengths_share_one(result, rows):
  assert benchmark_table.rows('x', result) == rows


def test_the_heading_names_command_and_device():
  text = benchmark_table.heading('python -m launch.benchmark', 'one NVIDIA L4')
  lines = text.splitlines()
  assert lines[0] == '`python -m launch.benchmark`, on one NVIDIA L4:'
  assert lines[2].count('|') == lines[3].count('|') == 4
