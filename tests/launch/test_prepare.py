"""Preparing sets: embedded, converted, downloaded; every failure one line."""

import functools
import http.server
import importlib.util
import json
import shutil
import threading
import zipfile

import launching
import pytest
import tensorflow_datasets as tfds

from launch import prepare
from repjax import types
from repjax.data.reading import prepared
from repjax.data.reading import source
from repjax.data.sets import digits


@pytest.fixture(scope='module', autouse=True)
def cache_folder(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('REPJAX_CACHE', str(folder))
    yield folder


@pytest.fixture
def tensorflow(monkeypatch):
  """As if TensorFlow were installed."""
  monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: name)


def test_an_embedded_set_is_prepared_and_described(cache_folder):
  code, output = launching.call('prepare', '--name=digits')
  assert code == 0, output
  place = cache_folder / 'tfds' / 'digits' / '1.0.0'
  assert f'digits/1.0.0 is in {place}: train 1,442, test 355' in output or (
    f'digits/1.0.0 is in {place}: test 355, train 1,442' in output
  )


def test_a_name_that_is_none_is_one_line_and_code_1(tmp_path):
  code, output = launching.call(
    'prepare', '--name=not-a-name', f'--data_dir={tmp_path}'
  )
  assert code == 1
  assert "ERROR: 'not-a-name' is not the name of a data set" in output
  assert 'Traceback' not in output


# TFDS takes a module that a test hides for one that is there.
no_tensorflow = pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is not None,
  reason='It is about machines without TensorFlow.',
)


def _named(name):
  return tfds.core.BuilderConfig(name=name)


class Texts(tfds.core.GeneratorBasedBuilder):
  """Lines of a file that is downloaded, or of one in an archive."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = tuple(map(_named, ('plain', 'archive')))
  code_path = None
  url = ''

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
    )

  def _split_generators(self, dl_manager):
    if self.builder_config.name == 'archive':
      path = dl_manager.download_and_extract(f'{self.url}/lines.zip')
      return {'train': self._generate_examples(path / 'lines.txt')}
    path = dl_manager.download(f'{self.url}/lines.txt')
    return {'train': self._generate_examples(path)}

  def _generate_examples(self, path):
    for i, line in enumerate(path.read_text().splitlines()):
      yield i, {'text': line}


@pytest.fixture
def served(tmp_path, monkeypatch):
  """The set `texts`, its files on a server of this machine."""
  folder = tmp_path / 'served'
  folder.mkdir()
  (folder / 'lines.txt').write_text('a\nb\nc\n')
  with zipfile.ZipFile(folder / 'lines.zip', 'w') as archive:
    archive.write(folder / 'lines.txt', 'lines.txt')
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=folder
  )
  monkeypatch.setattr(handler.func, 'log_message', lambda *_: None)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Texts, 'url', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    yield
    server.shutdown()


@no_tensorflow
def test_a_set_is_downloaded_and_read_without_tensorflow(tmp_path, served):
  made = prepare.prepare('texts/plain', data_dir=str(tmp_path))
  assert prepared.formats(made) == ['array_record']
  rows = source.load('texts/plain', 'train', data_dir=str(tmp_path))
  assert sorted(rows.column('text')) == [b'a', b'b', b'c']


@no_tensorflow
def test_an_archive_needs_tensorflow_and_its_download_is_kept(
  tmp_path, served, capsys
):
  with pytest.raises(types.InputError) as error:
    prepare.prepare('texts/archive', data_dir=str(tmp_path))
  downloads = tmp_path / 'downloads' / 'texts_archive'
  assert (
    str(error.value) == 'TFDS cannot prepare texts/archive without TensorFlow, '
    f'by which it unpacks archives and reads many files. What was downloaded '
    f'is kept in {downloads}; pip install -e ".[prepare]" and repeat the '
    'command. (Reading a set afterwards needs no TensorFlow.)'
  )
  assert [x for x in downloads.rglob('*.zip') if x.stat().st_size]
  assert '****' not in capsys.readouterr().out


@no_tensorflow
@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('mnist', 'TFDS reads the sources of mnist by TensorFlow: pip install'),
    ('titanic', 'TFDS cannot prepare titanic without TensorFlow, .* pip inst'),
    # TFDS does not even find some of its sets.
    ('glue/sst2', 'Without TensorFlow TFDS has no data set glue/sst2: .* pip'),
    ('mnits', 'Without TensorFlow TFDS has no data set mnits: check the name'),
  ],
)
def test_a_set_that_needs_tensorflow_is_not_downloaded(tmp_path, name, says):
  with pytest.raises(types.InputError, match=says) as error:
    prepare.prepare(name, data_dir=str(tmp_path))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'downloads').exists()


@no_tensorflow
def test_half_a_set_is_none(tmp_path, monkeypatch):
  def builder(*unused_args, **unused):
    raise ValueError('BuilderConfig sst2 not found with version 2.0.0.')

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(types.InputError, match='Without TensorFlow TFDS has no'):
    prepare.prepare('glue/sst2', data_dir=str(tmp_path))


def test_a_set_is_downloaded_as_array_record(tmp_path, monkeypatch, tensorflow):
  asked = {}

  class Recorded(digits.Digits):
    def download_and_prepare(self, **kwargs):
      asked.update(kwargs)
      super().download_and_prepare(**kwargs)

  def builder(name, *, data_dir, try_gcs):
    assert (name, try_gcs) == ('recorded', False)
    return Recorded(data_dir=data_dir)

  monkeypatch.setattr(tfds, 'builder', builder)
  for _ in range(2):  # The second time it is there.
    result = prepare.prepare('recorded', data_dir=str(tmp_path))
    assert prepared.formats(result) == ['array_record']
    assert result.info.splits['test'].num_examples == 355
    monkeypatch.setattr(tfds, 'builder', None)
  downloads = tmp_path / 'downloads' / 'recorded'
  assert asked['download_dir'] == str(downloads)
  config = asked['download_config']
  assert str(config.manual_dir) == str(downloads / 'manual')
  assert not config.try_download_gcs


def test_what_tfds_does_not_know_is_one_line(tmp_path, monkeypatch, tensorflow):
  def unknown(name, **kwargs):
    raise tfds.core.DatasetNotFoundError(f'Dataset {name} not found.')

  monkeypatch.setattr(tfds, 'builder', unknown)
  with pytest.raises(types.InputError, match='TFDS has no data set mnits'):
    prepare.prepare('mnits', data_dir=str(tmp_path))


def test_a_failed_download_says_why(tmp_path, monkeypatch, tensorflow):
  def offline(name, **kwargs):
    raise ConnectionError('no route to host')

  monkeypatch.setattr(tfds, 'builder', offline)
  with pytest.raises(
    types.InputError, match=r'mnist could not .* ConnectionError: no route'
  ):
    prepare.prepare('mnist', data_dir=str(tmp_path))


@pytest.mark.parametrize('file_format', ['tfrecord', 'riegeli'])
def test_a_set_without_random_access(tmp_path, monkeypatch, file_format):
  folder = tmp_path / 'digits' / '1.0.0'
  shutil.copytree(prepared.find('digits').data_dir, folder)
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = file_format
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  monkeypatch.setattr(prepared, 'embedded', lambda name: None)
  converted = []
  monkeypatch.setattr(
    prepare.tfrecord, 'add_array_record', lambda b: converted.append(b.data_dir)
  )
  # tests/data holds the test of the conversion itself.
  with pytest.raises(types.InputError) as error:
    prepare.prepare('digits', data_dir=str(tmp_path))
  if file_format == 'tfrecord':
    assert converted == [str(folder)]
  else:
    assert 'as riegeli, which cannot be converted' in str(error.value)
