"""Preparing sets: embedded, converted, downloaded; every failure one line."""

import json
import shutil

import launching
import pytest
import tensorflow_datasets as tfds

from launch import prepare
from repjax import types
from repjax.data.reading import prepared
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


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    types.InputError, match=r'mnist .* pip install -e "\.\[prepare\]"'
  ):
    prepare.prepare('mnist', data_dir=str(tmp_path))
  assert not list(tmp_path.iterdir())


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
