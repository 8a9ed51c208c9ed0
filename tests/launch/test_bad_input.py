"""Every bad input: one clear line, a non-zero exit code, nothing lost."""

import launching
import pytest


def _one_line(output):
  """The single ERROR line; no traceback."""
  assert 'Traceback' not in output, output
  lines = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert len(lines) == 1, output
  return lines[0]


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (['--config=configs/vit.py:smal'], ['smal', 'paper, small and smoke']),
    (['--config=configs/vitt.py'], ['configs/vitt.py', "mean 'vit.py'"]),
    (
      [f'--config={launching.SMOKE}', '--config.sam.roh=0.1'],
      ['--config.sam.roh', "Did you mean 'rho'", 'rho (float)'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.batch_size=abc'],
      ['--config.batch_size', "'abc' is not int", '16'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.data.name=mnist'],
      ['mnist', 'launch.prepare', 'digits'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.data.train_split=trian'],
      ['trian', 'train'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.data.train_split=train[:0]'],
      ['digits', 'train[:0]', 'no rows'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.batch_size=15'],
      ['config.batch_size=15', '--config.batch_size=12 or 16'],
    ),
    (['--config=configs/vit.py:small'], ['--workdir']),
    ([f'--config={launching.SMOKE}', 'extra'], ["'extra'"]),
    (
      [f'--config={launching.SMOKE}', '--platform=tpu'],
      ['--platform=tpu', 'cpu', 'repjax[tpu]'],
    ),
    (
      [f'--config={launching.SMOKE}', '--num_processes=2'],
      ['--coordinator_address', '--process_id'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.patch_grid=3'],
      ['config.patch_grid=3', '8 x 8'],
    ),
  ],
)
def test_flags_that_cannot_work(flags, says, tmp_path):
  devices = 2 if any('batch_size=15' in f for f in flags) else 1
  code, output = launching.run(
    'train', *flags, f'--data_dir={tmp_path}', devices=devices
  )
  assert code == 1, output
  line = _one_line(output)
  for text in says:
    assert text in line
