"""Files with keys, and private runs in work directories."""

import contextlib
import logging as python_logging
import os
import stat

from absl import logging
import numpy as np
import pytest

from configs import dp_tuning
from repjax import report
from repjax import run
from repjax import types
from repjax.experiments import private_keys

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'key'
  path.write_bytes(KEY)
  path.chmod(0o600)
  return path


def test_a_key_is_read_whole_and_from_home(path, monkeypatch):
  assert private_keys.read(str(path)) == KEY
  monkeypatch.setenv('HOME', str(path.parent))
  assert private_keys.read('~/key') == KEY
  # As mounted secrets are: a link to a file that may be read alone.
  path.chmod(0o400)
  (path.parent / 'link').symlink_to(path)
  assert private_keys.read(str(path.parent / 'link')) == KEY


@pytest.mark.parametrize(
  ('data', 'says'),
  [
    (b'', '0 bytes'),
    (b'short', '5 bytes'),
    (KEY * 200, 'more than 4096 bytes'),
    (bytes(32), '1 different byte'),
    (b'\n' * 1000, '1 different byte'),
    (b'0101' * 16, '2 different byte'),
  ],
)
def test_what_is_no_random_key_is_refused(path, data, says):
  path.write_bytes(data)
  with pytest.raises(types.InputError, match=says) as error:
    private_keys.read(str(path))
  assert f'head -c 32 /dev/urandom > {path}; chmod 600' in str(error.value)


def test_random_digits_are_a_key(path):
  rng = np.random.default_rng(0)
  for _ in range(100):
    path.write_text(rng.bytes(16).hex())
    assert len(private_keys.read(str(path))) == 32


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o666, 0o620, 0o601])
def test_a_key_of_others_is_refused(path, mode):
  path.chmod(mode)
  with pytest.raises(types.InputError, match=f'mode {mode:04o}.*chmod 600'):
    private_keys.read(str(path))


def test_what_has_no_end_is_not_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe', 0o600)
  for path in (tmp_path / 'pipe', '/dev/urandom', '/dev/null', tmp_path):
    with pytest.raises(types.InputError, match=r'is no file|Is a dir'):
      private_keys.read(str(path))


@pytest.fixture
def config(monkeypatch):
  # Nothing here looks at plots, which take longer than the training.
  monkeypatch.setattr(run.plots, 'curves', lambda history: {})
  config = dp_tuning.get_config('smoke')
  config.data.eval_splits = ('test',)
  config.epochs = 0.2
  config.run.update(log_every=2, save_every=2)
  return config


def test_a_run_keeps_its_key_and_resumes_bit_for_bit(config, tmp_path):
  def fit(folder, *, stops=False):
    asked = iter([False] * 2 + [stops] * 1000)
    return run.fit(
      dp_tuning.build(config),
      config,
      folder,
      asked_to_stop=lambda: next(asked),
    )

  first, second = tmp_path / 'first', tmp_path / 'second'
  for folder in (first, second):
    with pytest.raises(types.PreemptedError):
      fit(folder, stops=True)
  kept = first / private_keys.NAME
  assert stat.S_IMODE(kept.stat().st_mode) == 0o600
  assert kept.read_bytes() != (second / private_keys.NAME).read_bytes()
  # What another run has begun cannot be gone on with.
  (second / private_keys.NAME).unlink()
  with pytest.raises(types.InputError, match='noise_key'):
    fit(second)
  # The same random bytes, the same run: stopped or not.
  whole = tmp_path / 'whole'
  whole.mkdir()
  (whole / private_keys.NAME).write_bytes(kept.read_bytes())
  (whole / private_keys.NAME).chmod(0o600)
  done = fit(whole)
  assert fit(first)['params_crc32'] == done['params_crc32']
  assert done['privacy']['epsilon'] > 0
  fresh = fit(tmp_path / 'third')
  assert fresh['params_crc32'] != done['params_crc32']


def test_a_work_directory_that_shows_its_key_is_refused(config, tmp_path):
  (tmp_path / private_keys.NAME).write_bytes(KEY)
  (tmp_path / private_keys.NAME).chmod(0o644)
  with pytest.raises(types.InputError, match='mode 0644'):
    run.fit(dp_tuning.build(config), config, tmp_path)


@pytest.mark.parametrize('clip_norm', [1e-3, 1e3])
def test_rows_that_are_all_clipped_are_told_of_once(
  config, tmp_path, clip_norm
):
  config.dp.clip_norm = clip_norm
  config.epochs = 0.3
  with _warnings() as warnings:
    run.fit(dp_tuning.build(config), config, tmp_path)
  rows = report.Run(tmp_path).history()
  shares = [x['unclipped'] for x in rows if 'unclipped' in x]
  assert len(shares) > 1
  assert set(shares) == {0.0 if clip_norm < 1 else 1.0}
  told = [x for x in warnings if 'were clipped' in x]
  assert len(told) == (clip_norm < 1)
  if told:
    median = next(x['median_norm'] for x in rows if 'median_norm' in x)
    assert 0.1 < median < 100
    assert f'gradients is {median:.3g}, and clip_norm is 0.001' in told[0]


@contextlib.contextmanager
def _warnings():
  """Texts of absl's warnings."""
  texts: list[str] = []

  class Handler(python_logging.Handler):
    def emit(self, record):
      texts.append(record.getMessage())

  logger, handler = logging.get_absl_logger(), Handler(python_logging.WARNING)
  logger.addHandler(handler)
  try:
    yield texts
  finally:
    logger.removeHandler(handler)


def test_a_warm_start_brings_no_key_of_another_run(config, tmp_path):
  made = dp_tuning.build(config)._replace(
    warm_start=lambda state: private_keys.with_run(state, b'another run')
  )
  with pytest.raises(types.InputError, match='another key of the noise'):
    run.fit(made, config, tmp_path)


def test_all_processes_are_told_of_a_key_that_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(private_keys.jax, 'process_index', lambda: 1)
  monkeypatch.setattr(private_keys.parallel, 'any_process', lambda value: True)
  with pytest.raises(types.InputError, match='what process 0 says'):
    private_keys.of_run(tmp_path, b'secret', {}, 'rows')
