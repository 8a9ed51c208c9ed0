"""What a run prints is its own, true, and nothing twice."""

import tempfile

import launching


def test_the_first_run_on_a_machine_is_calm(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv('REPJAX_CACHE', str(tmp_path / 'cache'))  # Nothing there.
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
  code, output = launching.call(
    'train',
    '--config=configs/sam.py:smoke',
    '--config.data.label_noise=0.4',
    '--config.epochs=0.1',
  )
  assert code == 0, output
  output += ''.join(capfd.readouterr())  # Also what libraries print.
  assert '\r' not in output, 'a progress bar'
  assert 'Preparing digits' in output
  assert max(map(len, output.replace(str(tmp_path), '').splitlines())) < 150
  # What lasts is said before.
  lines = output.splitlines()
  places = [
    next(i for i, line in enumerate(lines) if text in line)
    for text in ('reading data', 'compiling the first', 'made the first step')
  ]
  assert places == sorted(places)
  # What looks wrong is explained.
  assert '40 % of the training labels are drawn at random' in output
  # Without a work directory nothing is left.
  assert 'nothing of it is kept' in output
  assert not list((tmp_path / 'temporary').glob('repjax-*'))


def test_training_on_blends_is_not_called_accuracy(tmp_path):
  code, output = launching.call(
    'train',
    '--config=configs/mixup.py:smoke',
    f'--workdir={tmp_path}',
    '--config.run.eval_every=0',
  )
  assert code == 0, output
  assert ' mixed_accuracy 0.' in output
  assert '  accuracy' not in output
  assert 'test/accuracy' in output
  # A figure of its own, beside that of the test set.
  plots = {path.stem for path in (tmp_path / 'plots').iterdir()}
  assert {'accuracy', 'mixed_accuracy'} <= plots
  log = (tmp_path / 'log.txt').read_text()
  assert 'orbax' not in log.lower()
  assert 'step 8/8' in log
