"""Published folders, read; what is missing is said with the remedy.

`golden.json` was made once with PyPI's `wilds` 2.0.0 on the same random
folders (Amazon's users, products and categories by their names); tests/parity
compares everything, where that package is installed.
"""

import json
import pathlib

import numpy as np
import pytest
import wilds_folders

from repjax import types
from repjax.benchmarks.wilds import folders
from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import published
from repjax.data.reading import decode

_GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden.json').read_text('utf-8')
)
_WRITE = vars(wilds_folders)


@pytest.mark.parametrize('name', published.SETS)
def test_splits_and_results_are_those_of_wilds(name, tmp_path):
  _WRITE[name](tmp_path)
  data, golden = published.load(name, str(tmp_path)), _GOLDEN[name]
  sizes = {x: int((data.split == i).sum()) for x, i in data.split_ids.items()}
  assert sizes == golden['splits']
  part = data.subset('test')
  assert part.rows[:5].tolist() == golden['first_rows']
  first = [list(x) for x in part.metadata.values[:3].astype(float)]
  if name == 'amazon':  # Whose numbers are those of a sort without order.
    for i, field in enumerate(('user', 'product', 'category')):
      for row in first:
        row[i] = part.metadata.names[field][int(row[i])]
  assert first == [
    [x if isinstance(x, str) else pytest.approx(x, abs=1e-6) for x in row]
    for row in golden['first_metadata']
  ]
  if name == 'poverty':
    guess = part.label + np.sin(np.arange(len(part)))[:, None]
  else:
    wrong = (part.label + 1) % data.num_classes
    guess = np.where(np.arange(len(part)) % 3 == 0, wrong, part.label)
  results = part.evaluate(guess).results
  expected = golden['results']
  # Of Amazon's users some are kept.
  if name != 'amazon':
    assert set(results) == set(expected)
  for key, value in expected.items():
    assert results[key] == pytest.approx(value, abs=2e-6), key


def test_names_of_reviews_are_numbered_as_they_come_split_after_split(tmp_path):
  # By this rule alone, so that they are the same on all machines.
  wilds_folders.amazon(tmp_path)
  data = published.load('amazon', str(tmp_path))
  in_turn = [
    row
    for i in range(data.split.max() + 1)
    for row in np.flatnonzero(data.split == i)
  ]
  for field in ('user', 'product', 'category'):
    numbers = data.metadata.column(field)[in_turn].tolist()
    known = list(dict.fromkeys(numbers))
    assert known == list(range(len(data.metadata.names[field])))


@pytest.mark.parametrize(
  'name', ['camelyon17', 'iwildcam', 'civilcomments', 'poverty']
)
def test_rows_without_labels_group_with_those_that_have_some(name, tmp_path):
  _WRITE[name](tmp_path)
  _WRITE[name](tmp_path, unlabelled=True)
  pair = [published.load(name, str(tmp_path), unlabelled=x) for x in (0, 1)]
  field = {'camelyon17': 'hospital', 'iwildcam': 'location'}.get(name)
  field = field or {'civilcomments': 'black', 'poverty': 'country'}[name]
  grouper = groupers.Grouper([x.metadata for x in pair], (field,))
  for data in pair:
    group = grouper(data.metadata.values)
    np.testing.assert_array_equal(group, data.metadata.column(field))
  if name == 'camelyon17':
    hospitals = {
      split: set(pair[1].subset(split).metadata.column('hospital'))
      for split in pair[1].split_ids
    }
    assert hospitals == {
      'train_unlabeled': {0, 3, 4},
      'val_unlabeled': {1},
      'test_unlabeled': {2},
    }
  if name == 'civilcomments':
    assert grouper.num_groups == 3  # A group of their own.


def test_patches_are_read(tmp_path):
  wilds_folders.camelyon17(tmp_path, rows=9, images=True)
  source = published.load('camelyon17', str(tmp_path)).subset('test').source()
  assert source.image_shape == (96, 96, 3)
  assert source.num_classes == 2
  image = source.read(np.arange(len(source)))['image']
  assert image.shape == (len(source), 96, 96, 3)
  assert len(np.unique(image)) == 256


def test_pictures_of_many_sizes_are_decoded(tmp_path):
  wilds_folders.waterbirds(tmp_path, rows=9)
  source = published.load('waterbirds', str(tmp_path)).subset('val').source()
  assert source.image_shape is None
  assert source.num_channels == 3
  image = source.read([0, 1, 2], decode=decode.resize(16))['image']
  assert image.shape == (3, 16, 16, 3)
  np.testing.assert_allclose(image.mean((1, 2, 3)), [1, 4, 7], atol=1)


def test_texts_are_bytes(tmp_path):
  wilds_folders.amazon(tmp_path)
  part = published.load('amazon', str(tmp_path)).subset('train')
  text = part.source().column('text')
  assert text[0].startswith(b'It is "')
  assert text[0].endswith(b'I\nthink')


@pytest.mark.parametrize('nightlights', [True, False])
def test_satellites_have_eight_channels(tmp_path, nightlights):
  wilds_folders.poverty(tmp_path)
  data = published.load('poverty', str(tmp_path), nightlights=nightlights)
  image = data.inputs.read([3])['image']
  with np.load(
    tmp_path / 'poverty_v1.1/images/landsat_poverty_img_3.npz'
  ) as raw:
    expected = raw['x'].astype(np.float32).transpose(1, 2, 0)
  np.testing.assert_array_equal(image[0, ..., :7], expected[..., :7])
  last = expected[..., 7] if nightlights else np.zeros((224, 224))
  np.testing.assert_array_equal(image[0, ..., 7], last)
  with pytest.raises(types.InputError, match=r'img_4\.npz cannot be read'):
    data.inputs.read([4])


@pytest.mark.parametrize('name', published.SETS)
def test_what_is_missing_is_said_with_what_to_place_where(name, tmp_path):
  with pytest.raises(types.InputError) as error:
    published.load(name, str(tmp_path))
  message = str(error.value)
  assert '\n' not in message
  for text in (f'{name}_v', '.csv', folders.URL, '--data_dir', str(tmp_path)):
    assert text in message


def test_damage_is_named(tmp_path):
  wilds_folders.camelyon17(tmp_path, rows=9)
  path = tmp_path / 'camelyon17_v1.0/metadata.csv'
  whole = path.read_text('utf-8')
  load = lambda: published.load('camelyon17', str(tmp_path))  # noqa: E731
  with pytest.raises(types.InputError, match=r'png cannot be read .* unpacked'):
    load().inputs.read([0])
  for text, message in (
    (whole.replace('tumor', 'tumour'), "no column 'tumor'; it has"),
    (whole[:-9], r'Line 10 of .* has'),
    (whole.splitlines()[0] + '\n', 'has no rows'),
    (whole.replace('\n1,', '\n1,x,'), 'has 10 fields, not the 9'),
  ):
    path.write_text(text, 'utf-8')
    with pytest.raises(types.InputError, match=message):
      load()
  path.write_bytes(whole.encode() + 'é'.encode()[:1])  # In a character.
  with pytest.raises(types.InputError, match=r'metadata\.csv cannot be read'):
    load()
  wilds_folders.table(path, {'patient': ['1']})
  with pytest.raises(types.InputError, match='of another version'):
    load()


def test_numbers_and_names_that_are_none_are_named():
  with pytest.raises(types.InputError, match=r"row 1 is '1\.5', no whole"):
    folders.whole(np.array(['3.0', '1.5'], object), what='x')
  with pytest.raises(types.InputError, match='holds what is no number'):
    folders.real(np.array(['one'], object), what='x')
  assert np.isnan(folders.real(np.array([''], object), what='x')[0])
  with pytest.raises(types.InputError, match="row 0 is 'mars', none of the 1"):
    folders.codes(np.array(['mars'], object), ['earth'], what='country')


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    ('camelyon18', {}, 'read here are amazon, camelyon17'),
    ('waterbirds', dict(unlabelled=True), 'no rows without labels'),
    ('camelyon17', dict(scheme='mixed'), 'scheme must be one of'),
    ('amazon', dict(scheme='mixed'), 'scheme is .official'),
    ('amazon', dict(scheme='time', unlabelled=True), 'scheme must be one of'),
    ('fmow', dict(scheme='time_after_1999'), 'year from 2002 to 2018'),
    ('poverty', dict(fold='F'), 'fold must be one of'),
  ],
)
def test_wrong_settings_are_refused(tmp_path, name, settings, message):
  with pytest.raises(types.InputError, match=message):
    published.load(name, str(tmp_path), **settings)
