"""Every bad input: one clear line, a non-zero exit code, nothing lost.

In this process, but for what needs one of its own: see `launching`.
"""

import json
import pathlib
import re
import resource
import shutil

import jax
import launching
import numpy as np
import pytest
import tensorflow_datasets as tfds

from repjax import loop
from repjax.protocols import transfer_matrix


def _one_line(output):
  """The single ERROR line; no traceback."""
  assert 'Traceback' not in output, output
  lines = [x for x in output.splitlines() if x.startswith('ERROR: ')]
  assert len(lines) == 1, output
  return lines[0]


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (
      ['--config=configs/vit.py:smal'],
      ['paper, small, smoke', "mean 'small'"],
    ),
    (
      ['--config=configs/vitt.py'],
      ['configs/vitt.py', "mean 'configs/vit.py'"],
    ),
    (['--config=vit'], ["Did you mean 'configs/vit.py'"]),
    (['--workdir=x'], ['--config is missing: --help says what it takes']),
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
      ['config.batch_size=15', '--config.batch_size=8 or 16'],
    ),
    (['--config=configs/vit.py:small'], ['--workdir']),
    ([f'--config={launching.SMOKE}', 'extra'], ["'extra'"]),
    (
      [f'--config={launching.SMOKE}', '--platform=tpu'],
      ['--platform=tpu', 'cpu', '.[tpu]'],
    ),
    (
      [f'--config={launching.SMOKE}', '--num_processes=2'],
      ['--coordinator_address', '--process_id'],
    ),
    (
      [
        '--config=configs/dp_finetuning.py:smoke',
        '--config.run.best=test/accuracy',
      ],
      ["config.run.best='test/accuracy'", 'privacy statement'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.patch_grid=3'],
      ['config.patch_grid=3', '8 x 8'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.model.hidden_dim=0'],
      ['config.model.hidden_dim must be in [1, inf)'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.run.best=nope'],
      ["config.run.best='nope'", 'test/accuracy, test/loss'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.run.best=test/nope'],
      ["config.run.best='test/nope'", 'test/accuracy, test/loss'],
    ),
    (
      [f'--config={launching.SMOKE}', '--config.run.best=test/loss'],
      ['config.run.best=test/loss', '--config.run.best_mode=min'],
    ),
  ],
)
def test_flags_that_cannot_work(flags, says, tmp_path):
  code, output = launching.call('train', *flags, f'--data_dir={tmp_path}')
  assert code == 1, output
  line = _one_line(output)
  for text in says:
    assert text in line


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (['--train_flags="x'], ['--train_flags="x', 'quotation']),
    (['--train_flags=--config.seed=0'], ['--train_flags=', 'beside']),
    (['--train_flags=--workdir=/x'], ['--train_flags=', 'beside']),
    (['--train_flags=--flagfile=/x'], ['--train_flags=', 'beside']),
    (['--train_flags=--dry_run'], ['--train_flags=--dry_run', 'no trial']),
    (['--train_flags=--print_config'], ['--print_config', 'no trial']),
    (['--metric=test/ece'], ['--mode is missing', 'test/ece']),
    (['--space=sam.rho=uniform(0,inf)'], ['uniform(0,inf)', 'finite']),
    (['--until=nan'], ['--until=nan', 'finite']),
    (['--score=noisy'], ['--score is of', '--private']),
    (['--expected_trials=5'], ['--expected_trials is of', '--private']),
    (['--slurm=timeout_min=60'], ['--slurm', '--executor=slurm']),
  ],
)
def test_sweeps_that_cannot_work(flags, says, tmp_path):
  code, output = launching.call(
    'sweep',
    '--config=configs/sam.py:smoke',
    f'--workdir={tmp_path}',
    *([] if 'space' in flags[0] else ['--space=sam.rho=0.1,0.2']),
    *flags,
  )
  assert code == 1, output
  line = _one_line(output)
  for text in says:
    assert text in line
  assert not list(tmp_path.iterdir())


def test_a_study_without_the_preset(tmp_path):
  code, output = launching.call(
    'reproduce', '--papers=sam', '--preset=nope', f'--out={tmp_path}/results'
  )
  assert code == 1, output
  assert '--preset: sam: presets are paper, small, smoke' in _one_line(output)


@pytest.mark.slow
def test_a_platform_that_is_not_there():
  code, output = launching.run(
    'train', f'--config={launching.SMOKE}', env={'JAX_PLATFORMS': 'cuda'}
  )
  assert code == 1, output
  assert 'JAX_PLATFORMS=cuda' in _one_line(output)


@pytest.mark.parametrize(
  ('card', 'flags', 'says', 'never'),
  [
    *(
      (
        card,
        ['data.name=python_topics'],
        ['python_topics has no images'],
        ['size', 'None'],
      )
      for card in ('vit', 'mixup', 'dp_finetuning', 'lp_ft', 'gpm')
    ),
    (
      'performer',
      ['data.kind=pixels', 'data.name=python_topics'],
      ['python_topics has no images'],
      ['size'],
    ),
    (
      'performer',
      ['data.kind=proteins', 'data.path={}/a.fasta'],
      ['{}/a.fasta', 'lower length'],
      ['python_topics'],
    ),
    (
      'mam_adapter',
      ['data.name=digits', 'data.column=label'],
      ['data.column', 'holds numbers such as '],
      ['Error', 'int32'],
    ),
    (
      'mam_adapter',
      ['data.name=csv', 'data.dir={}/a.csv', 'data.column=a+a'],
      ['--config.data.column=a+a', 'premise+hypothesis'],
      ['Error'],
    ),
    (
      'mam_adapter',
      ['data.name=csv', 'data.dir={}/a.csv', 'data.kind=pairs'],
      ['data.kind=pairs', '--config.data.target=COLUMN'],
      ["''"],
    ),
    (
      'vit',
      ['data.name=folder', 'data.dir={}/a.csv'],
      ['{}/a.csv is a file', '--config.data.name=csv'],
      ['no folder'],
    ),
    *(
      (
        card,
        ['data.name=npz', 'data.dir={}/b.npz'],
        ['config.data.name=npz has no labels', 'csv:label=COLUMN'],
        ['Error', 'None'],
      )
      for card in ('vit', 'mixup')
    ),
    ('vit', ['weights={}/a.npz'], ['{}/a.npz', 'no .npz file'], ['pickle']),
    *(
      (card, [f'{name}=-14'], [name, '[1, inf)', '-14'], ['use -14', 'are .'])
      for card in ('vit', 'rfa', 'gradient_vaccine')
      for name in ('batch_size', 'eval_batch_size')
    ),
  ],
)
def test_messages_name_what_is_wrong(card, flags, says, never, tmp_path):
  (tmp_path / 'a.fasta').write_text('>a\nMKV\n>b\nACDEFGH\n')
  (tmp_path / 'a.npz').write_bytes(b'abc')
  (tmp_path / 'a.csv').write_text('a,label\nx,1\ny,2\n' * 5)
  np.savez(tmp_path / 'b.npz', image=np.zeros((20, 8, 8), np.uint8))
  code, output = launching.call(
    'train',
    f'--config=configs/{card}.py:smoke',
    *(f'--config.{x}'.format(tmp_path) for x in flags),
  )
  assert code == 1, output
  line = _one_line(output)
  for text in says:
    assert text.format(tmp_path) in line
  for text in never:
    assert text not in line


@pytest.mark.parametrize('folder', ['/proc/repjax', '/dev/null/repjax'])
def test_a_workdir_that_cannot_be_written(folder):
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', f'--workdir={folder}'
  )
  assert code == 1, output
  assert f'--workdir={folder}' in _one_line(output)


class Broken(tfds.core.GeneratorBasedBuilder):
  """A TFDS set named 'broken', of one image."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None  # As in repjax.data.sets.digits.
  feature = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8)
  image = np.zeros((8, 8, 1), np.uint8)

  def _info(self):
    label = tfds.features.ClassLabel(num_classes=10)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        dict(image=self.feature, label=label)
      ),
    )

  def _split_generators(self, dl_manager):
    return dict(train=self._generate_examples(), test=self._generate_examples())

  def _generate_examples(self):
    for i in range(32):
      yield i, dict(image=self.image, label=i % 10)


def _prepare(folder):
  Broken(data_dir=folder).download_and_prepare(file_format='array_record')


def _relabel(folder, num_classes):
  """Says that the labels of 'broken' are of so few classes."""
  for path in folder.rglob('features.json'):
    features = json.loads(path.read_text())
    label = features['featuresDict']['features']['label']
    assert 'classLabel' in label
    label['classLabel']['numClasses'] = str(num_classes)
    path.write_text(json.dumps(features))


def test_labels_out_of_range(tmp_path):
  _prepare(tmp_path)
  _relabel(tmp_path, 5)
  code, output = launching.call(
    'train',
    f'--config={launching.SMOKE}',
    '--config.data.name=broken',
    f'--data_dir={tmp_path}',
  )
  assert code == 1, output
  line = _one_line(output)
  assert 'broken train' in line
  assert "'label' of row" in line
  assert 'outside [0, 5)' in line


def test_a_corrupt_image(tmp_path, monkeypatch):
  # Bytes that an Image feature passes through without decoding them.
  bad = tmp_path / 'bad.png'
  bad.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(40))
  png = tfds.features.Image(shape=(8, 8, 1), encoding_format='png')
  monkeypatch.setattr(Broken, 'feature', png)
  monkeypatch.setattr(Broken, 'image', str(bad))
  _prepare(tmp_path)
  code, output = launching.call(
    'train',
    f'--config={launching.SMOKE}',
    '--config.data.name=broken',
    f'--data_dir={tmp_path}',
  )
  assert code == 1, output
  line = _one_line(output)
  assert 'broken train' in line
  assert 'row' in line
  assert 'cannot be decoded' in line


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The work directory of a finished smoke run."""
  workdir = tmp_path_factory.mktemp('finished')
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', f'--workdir={workdir}'
  )
  assert code == 0, output
  return workdir


def _copy(workdir, tmp_path, *, resumable=True):
  """A copy of a run, as if killed before its report."""
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  if resumable:
    (copy / 'report.json').unlink()
  return copy


def test_a_finished_run_prints_its_result_and_stays_as_it_is(finished):
  def written():
    return {p: p.stat().st_mtime_ns for p in finished.rglob('*') if p.is_file()}

  before = written()
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', f'--workdir={finished}'
  )
  assert code == 0, output
  assert 'is finished' in output
  assert written() == before


def test_the_workdir_of_another_config(finished, tmp_path):
  workdir = _copy(finished, tmp_path)
  flags = (f'--config={launching.SMOKE}', f'--workdir={workdir}')
  code, output = launching.call('train', *flags, '--config.sam.rho=0.2')
  assert code == 1, output
  line = _one_line(output)
  assert 'sam.rho: 0.02 -> 0.2' in line
  assert '--resume_config=new' in line
  assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == [
    '4',
    '8',
  ]
  # How often to write is not what the run is.
  code, output = launching.call('train', *flags, '--config.run.log_every=2')
  assert code == 0, output
  assert 'resuming from the checkpoint of step 8' in output


def test_a_truncated_checkpoint_is_skipped_by_name(finished, tmp_path):
  workdir = _copy(finished, tmp_path)
  for path in (workdir / 'checkpoints/8/state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', f'--workdir={workdir}'
  )
  assert code == 0, output
  assert 'Skipping the damaged checkpoint' in output
  assert 'checkpoints/8' in output
  assert 'resuming from the checkpoint of step 4' in output
  expected = launching.report(finished)
  assert launching.report(workdir)['params_crc32'] == expected['params_crc32']


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  code, output = launching.call(
    'train',
    f'--config={launching.SMOKE}',
    f'--workdir={tmp_path}',
    '--config.tx.learning_rate=1e30',
    '--config.tx.warmup=0.75',
    '--config.run.log_every=1',
    '--config.run.save_every=1',
    '--config.run.eval_every=0',
  )
  assert code == 3, output
  line = _one_line(output)
  assert re.search(
    r'(loss|parameter \S+) is (nan|inf|not finite).* step \d', line
  )
  kept = re.search(r'kept: \[([\d, ]+)\]', line)
  assert kept, line
  steps = {int(x) for x in kept[1].split(',')}
  on_disk = {
    int(p.name)
    for p in (tmp_path / 'checkpoints').iterdir()
    if p.name.isdigit()
  }
  assert steps == on_disk


@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    (['--workdir=/nowhere'], ['--workdir=/nowhere', 'no checkpoints']),
    (['--step=7'], ['no checkpoint of step 7', '[4, 8]']),
    (['--step=newest'], ["'newest'", 'latest nor best']),
    (['--split=tset'], ['tset', 'test', 'train']),
  ],
)
def test_evaluating_what_is_not_there(flags, says, finished):
  if not any('--workdir' in flag for flag in flags):
    flags = [f'--workdir={finished}', *flags]
  code, output = launching.call('evaluate', *flags)
  assert code == 1, output
  for text in says:
    assert text in _one_line(output)


@pytest.mark.parametrize(
  ('flags', 'space'),
  [
    ([f'--config={launching.SMOKE}'], 'tx.learning_rate=0.1'),
    (
      [
        '--config=configs/dp_tuning.py:smoke',
        '--private',
        '--score=public',
      ],
      'dp.clip_norm=1.0,2.0',
    ),
  ],
)
def test_a_metric_that_no_trial_measures_is_refused_before(
  flags, space, tmp_path
):
  workdir = tmp_path / 'sweep'
  code, output = launching.call(
    'sweep',
    *flags,
    f'--space={space}',
    '--metric=nope',
    f'--workdir={workdir}',
  )
  assert code == 1, output
  assert '--metric=nope' in _one_line(output)
  assert 'test/accuracy, test/loss' in _one_line(output)
  assert not workdir.exists()


def test_evaluating_again_gives_the_same_numbers(finished):
  code, output = launching.call(
    'evaluate', f'--workdir={finished}', '--split=test', '--step=8'
  )
  assert code == 0, output
  numbers = json.loads(output.splitlines()[-1])
  expected = launching.report(finished)['result']
  for name in ('accuracy', 'loss', 'ece'):
    assert numbers[name] == expected[f'test/{name}']


def test_evaluation_goes_by_what_the_checkpoint_was_saved_with(
  finished, tmp_path
):
  workdir = _copy(finished, tmp_path)
  path = workdir / 'config.json'
  said = json.loads(path.read_text())
  said['config']['augment']['mean'] = [0.1]
  path.write_text(json.dumps(said))
  code, output = launching.call('evaluate', f'--workdir={workdir}')
  assert code == 0, output
  assert 'augment.mean: [0.1] -> [0.5]' in output
  numbers = json.loads(output.splitlines()[-1])
  expected = launching.report(finished)['result']
  assert numbers['accuracy'] == expected['test/accuracy']
  # Unless it is asked for.
  code, output = launching.call(
    'evaluate',
    f'--workdir={workdir}',
    f'--config={launching.SMOKE}',
    '--config.augment.mean=(0.2,)',
  )
  assert code == 0, output
  numbers = json.loads(output.splitlines()[-1])
  assert numbers['loss'] != expected['test/loss']


@pytest.mark.parametrize('file', ['{}/vit.py', '{}/configs/evil.py'])
def test_evaluation_executes_no_recipe_of_others(finished, tmp_path, file):
  workdir = _copy(finished, tmp_path)
  path = workdir / 'config.json'
  said = json.loads(path.read_text())
  recipe = pathlib.Path(file.format(tmp_path))
  recipe.parent.mkdir(exist_ok=True)
  recipe.write_text(
    f'import pathlib\npathlib.Path({str(tmp_path / "ran")!r}).touch()\n'
    'from configs.vit import *\n'
  )
  said['config']['file'] = str(recipe)
  path.write_text(json.dumps(said))
  flag = f'--workdir={workdir}'
  code, output = launching.call('evaluate', flag)
  assert code == 1, output
  assert f'--config={recipe}' in _one_line(output)
  assert not (tmp_path / 'ran').exists()
  code, output = launching.call('evaluate', flag, f'--config={recipe}:smoke')
  assert code == 0, output
  assert (tmp_path / 'ran').exists()


def test_evaluation_needs_no_config_json_and_no_place_to_write(
  finished, tmp_path
):
  workdir = _copy(finished, tmp_path)
  (workdir / 'config.json').write_bytes(b'\xff')
  # As in a folder that is read-only: nothing can be made there.
  shutil.rmtree(workdir / 'plots')
  (workdir / 'plots').write_text('')
  code, output = launching.call('evaluate', f'--workdir={workdir}')
  assert code == 1, output
  assert 'config.json cannot be read' in _one_line(output)
  code, output = launching.call(
    'evaluate', f'--workdir={workdir}', f'--config={launching.SMOKE}'
  )
  assert code == 0, output
  assert 'No plots are written' in output
  (numbers,) = [json.loads(x) for x in output.splitlines() if x[:1] == '{']
  expected = launching.report(finished)['result']
  assert numbers['accuracy'] == expected['test/accuracy']


def test_a_home_is_a_home_in_every_flag(finished, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  shutil.copytree(finished, tmp_path / 'run')
  code, output = launching.call('evaluate', '--workdir=~/run')
  assert code == 0, output
  code, output = launching.call(
    'train',
    f'--config={launching.ROOT}/configs/mam_adapter.py:smoke',
    '--workdir=~/a',
    '--config.weights=~/b',
  )
  assert code == 1, output
  assert f'{tmp_path}/b' in _one_line(output)
  code, output = launching.call('train', '--config=~/c.py:smoke')
  assert f'{tmp_path}/c.py' in _one_line(output)
  code, output = launching.call('reproduce', '--table', '--out=~/d/e')
  assert code == 0, output
  assert (tmp_path / 'd' / 'RESULTS.md').exists()
  assert not (tmp_path / '~').exists()


# In processes of their own.


@pytest.mark.slow
def test_the_process_ends_with_the_code_and_the_line():
  flags = [f'--config={launching.SMOKE}', '--config.patch_grid=3']
  code, output = launching.run('train', *flags)
  assert code == 1, output
  assert _one_line(output) == _one_line(launching.call('train', *flags)[1])


@pytest.mark.slow
def test_a_full_disk_while_saving(tmp_path):
  # No file may grow beyond this size: writing fails as on a full disk.
  def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

  code, output = launching.run(
    'train',
    f'--config={launching.SMOKE}',
    f'--workdir={tmp_path}',
    '--config.model.hidden_dim=64',
    '--nocompilation_cache',
    preexec_fn=limit,
  )
  assert code == 74, output
  line = _one_line(output)
  assert 'Could not save a checkpoint' in line
  assert 'run the same command again' in line
  # With room again, the same command finishes.
  code, output = launching.run(
    'train',
    f'--config={launching.SMOKE}',
    f'--workdir={tmp_path}',
    '--config.model.hidden_dim=64',
  )
  assert code == 0, output


def test_a_recipe_of_ones_own_has_the_preset_of_the_run(tmp_path):
  recipe = tmp_path / 'mine.py'
  recipe.write_text('from configs.lp_ft import *\n')  # Groups of small alone.
  flag = f'--workdir={tmp_path / "run"}'
  code, output = launching.call('train', f'--config={recipe}:smoke', flag)
  assert code == 0, output
  code, output = launching.call('evaluate', f'--config={recipe}', flag)
  assert code == 0, output


@pytest.mark.parametrize(
  ('launcher', 'flag'),
  [('evaluate', '--config.eval_batch_size'), ('attack', '--batch_size')],
)
def test_a_full_device_is_one_line(finished, monkeypatch, launcher, flag):
  def full(*unused, **unused_too):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 bytes are too many')

  monkeypatch.setattr(loop.Evaluator, '__call__', full)
  monkeypatch.setattr(transfer_matrix, 'measure', full)
  code, output = launching.call(launcher, f'--workdir={finished}')
  assert code == 1
  line = _one_line(output)
  assert 'the device is out of memory' in line
  assert flag in line
