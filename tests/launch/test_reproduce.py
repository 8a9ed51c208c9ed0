"""Studies with changed fields stand beside those of the config as it is."""

import json

import launching
import pytest

pytestmark = pytest.mark.slow


def test_a_changed_study_is_a_row_of_its_own(tmp_path):
  out = tmp_path / 'results'
  flags = ('--papers=mixup', '--preset=smoke', f'--out={out}')
  code, output = launching.run(
    'reproduce', *flags, '--set=study.num_rows=40,data.train_split=train[:50%]'
  )
  assert code == 0, output
  (folder,) = out.iterdir()
  assert folder.name == 'mixup.smoke-40-train-50-'
  report = json.loads((folder / 'report.json').read_text())
  assert report['config']['study']['num_rows'] == 40
  table = (tmp_path / 'RESULTS.md').read_text()
  assert '--set=study.num_rows=40,data.train_split=train[:50%]' in table
  assert '| mixup |' in table
  assert 'not run' in table  # The config as it is.
  code, output = launching.run('reproduce', f'--out={out}', '--check')
  assert code == 0, output
  # A threshold that is moved afterwards makes the table stale.
  report['config']['claims']['accuracy_gain']['at_least'] = -1.0
  (folder / 'report.json').write_text(json.dumps(report))
  code, output = launching.run('reproduce', f'--out={out}', '--check')
  assert code == 1, output
  assert 'claims.accuracy_gain.at_least' in output


@pytest.mark.parametrize(
  ('setting', 'says'),
  [
    ('study.rows=40', 'study.rows'),
    ('study.num_rows=many', 'study.num_rows=many'),
    ('epochs', 'field=value'),
  ],
)
def test_a_wrong_change_is_named(tmp_path, setting, says):
  code, output = launching.run(
    'reproduce',
    '--papers=mixup',
    '--preset=smoke',
    f'--out={tmp_path / "results"}',
    f'--set={setting}',
  )
  assert code == 1, output
  assert says in output
  assert 'Traceback' not in output


def test_a_file_instead_of_a_folder_is_refused_before_any_run(tmp_path):
  code, output = launching.run('reproduce', f'--out={tmp_path / "RESULTS.md"}')
  assert code == 1, output
  assert '--out=' in output
  assert 'folder' in output
  assert not list(tmp_path.iterdir())
