"""Folders of images: what is read, how it is split, and what is refused."""

import logging
import os
import pickle
import struct
import time
import zlib

import numpy as np
from PIL import Image
import pytest

from repjax import types
from repjax.data.own import folders
from repjax.data.own import sets
from repjax.data.reading import source


def _picture(path, value, size=(4, 4), mode='L'):
  """A file of one value, which tells it from others."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (*size, 3) if mode == 'RGB' else size
  Image.fromarray(np.full(shape, value, np.uint8), mode).save(path)


@pytest.fixture
def pets(tmp_path):
  for i in range(10):
    _picture(tmp_path / 'dog' / f'{i}.png', i)
    _picture(tmp_path / 'cat' / 'small' / f'{i}.png', 100 + i)
  (tmp_path / 'cat' / 'notes.txt').write_text('no image')
  (tmp_path / '.hidden').mkdir()
  return tmp_path


def test_a_class_may_begin_with_a_line(pets):
  _picture(pets / '_other' / '0.png', 200)
  _picture(pets / '_other' / '1.png', 201)
  _picture(pets / '__MACOSX' / '0.png', 0)
  rows = _load(pets, 'train+test')
  assert rows.class_names == ('_other', 'cat', 'dog')


def _load(path, split, name='folder'):
  return source.load(name, split, data_dir=str(path))


def _values(rows):
  return rows.column('image')[:, 0, 0, 0]


def test_files_that_change_places_are_others(tmp_path):
  paths = [tmp_path / x for x in ('a.png', 'b.png')]
  for path in paths:
    path.write_bytes(path.name.encode())
    os.utime(path, (1, 1))
  before = folders.fingerprint(paths)
  time.sleep(0.02)  # Kernels count by ticks.
  paths[0].rename(tmp_path / 'c')
  paths[1].rename(paths[0])
  (tmp_path / 'c').rename(paths[1])
  assert folders.fingerprint(paths) != before


def test_sub_folders_are_classes_and_every_pixel_is_kept(pets):
  rows = _load(pets, 'train+test')
  assert rows.class_names == ('cat', 'dog') and rows.num_classes == 2
  assert rows.image_shape == (4, 4, 1)
  pairs = set(zip(_values(rows), rows.column('label'), strict=True))
  assert pairs == {(i, 1) for i in range(10)} | {
    (100 + i, 0) for i in range(10)
  }


def test_the_split_is_stratified_and_the_same_whatever_is_added(pets):
  train, test = _load(pets, 'train'), _load(pets, 'test')
  assert np.bincount(test.column('label')).tolist() == [2, 2]
  assert not set(_values(train)) & set(_values(test))
  before = set(_values(test))
  for i in range(10, 15):
    _picture(pets / 'dog' / f'{i}.png', i)
  after = _load(pets, 'test')
  # One more of five is chosen; who was chosen among the old ones still is,
  # unless a new one is before it.
  assert np.bincount(after.column('label')).tolist() == [2, 3]
  old = {x for x in _values(after) if not 10 <= x < 15}
  assert old <= before or before <= old
  whole = _load(pets, 'train', 'folder:test_share=0.5')
  assert np.bincount(whole.column('label')).tolist() == [5, 7]


def test_the_log_says_that_a_split_was_made(pets, caplog):
  with caplog.at_level(logging.INFO, 'absl'):
    _load(pets, 'train')
  assert 'gives no test split' in caplog.text
  assert '16 train, 4 test' in caplog.text


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
  for i, split in enumerate(('train', 'val', 'test')):
    for k, name in enumerate('ab'):
      _picture(tmp_path / split / name / 'x.png', 10 * i + k)
  for i, split in enumerate(('train', 'validation', 'test')):
    assert _values(_load(tmp_path, split)).tolist() == [10 * i, 10 * i + 1]


def test_parts_of_splits_are_those_of_tfds(pets):
  whole = _values(_load(pets, 'train'))
  np.testing.assert_array_equal(_values(_load(pets, 'train[:25%]')), whole[:4])
  np.testing.assert_array_equal(_values(_load(pets, 'train[-3:]')), whole[-3:])
  with pytest.raises(
    types.InputError, match=r'more than once.*test \(4 rows\)'
  ):
    _load(pets, 'train[:9]+train[5:]')
  with pytest.raises(
    types.InputError, match=r"no split 'validation'.*eval_spl"
  ):
    _load(pets, 'validation')


def test_every_part_of_a_split_has_all_classes_in_their_shares(pets):
  for i in range(10, 40):
    _picture(pets / 'dog' / f'{i}.png', i)
  # 32 dogs and 8 cats are for training.
  for part in ('train[:25%]', 'train[25%:50%]', 'train[75%:]'):
    assert np.bincount(_load(pets, part).column('label')).tolist() == [2, 8]


def test_images_of_many_sizes_and_colours_stay_files_until_they_are_read(
  tmp_path,
):
  for i in range(3):
    _picture(tmp_path / 'a' / f'{i}.png', i, (4 + i, 4))
    _picture(tmp_path / 'b' / f'{i}.png', i, (4, 4), 'RGB')
  rows = pickle.loads(pickle.dumps(_load(tmp_path, 'train+test')))
  assert rows.image_shape is None and rows.num_channels == 3
  assert {x.shape for x in rows.read(np.arange(6))['image']} == {
    (4, 4, 3),
    (5, 4, 3),
    (6, 4, 3),
  }
  grey = _load(tmp_path, 'train', 'folder:channels=1')
  assert grey.num_channels == 1


def test_a_changed_file_is_read_again(tmp_path):
  for name in 'ab':
    for i in range(2):
      _picture(tmp_path / name / f'{i}.png', i)
  _load(tmp_path, 'train')
  for i in range(2):
    _picture(tmp_path / 'a' / f'{i}.png', 200 + i, (4, 5))
    _picture(tmp_path / 'b' / f'{i}.png', 200 + i, (4, 5))
  assert (_values(_load(tmp_path, 'train')) >= 200).all()


def test_damaged_images_are_named_and_refused_or_left_out(pets, caplog):
  good = (pets / 'dog' / '3.png').read_bytes()
  (pets / 'dog' / '3.png').write_bytes(good[: len(good) // 2])
  (pets / 'cat' / 'deep.png').write_text('no picture')
  deep = np.full((4, 4), 40_000, np.uint16)
  Image.fromarray(deep).save(pets / 'dog' / 'deep.png')
  with pytest.raises(types.InputError) as error:
    _load(pets, 'train')
  text = str(error.value)
  assert '3 of 22 images' in text and 'unreadable=skip' in text
  for name in ('cat/deep.png', 'dog/3.png', 'dog/deep.png'):
    assert name in text
  rows = _load(pets, 'train+test', 'folder:unreadable=skip')
  assert len(rows) == 19 and 3 not in _values(rows)
  assert 'left out' in caplog.text and 'dog/3.png' in caplog.text


@pytest.mark.parametrize('place', ['bird', 'cat/more'])
def test_a_class_may_be_a_link_and_no_folder_inside_of_one(pets, place):
  elsewhere = pets.parent / f'{pets.name}-more'
  for i in range(4):
    _picture(elsewhere / f'{i}.png', 50 + i)
  (pets / place).symlink_to(elsewhere)
  if place == 'bird':
    assert 'bird' in _load(pets, 'train').class_names
    return
  with pytest.raises(types.InputError, match='more is a link to a folder'):
    _load(pets, 'train')


def test_what_programs_leave_behind_is_no_image(pets):
  before = len(_load(pets, 'train+test'))
  for name in ('.thumbnails', '.ipynb_checkpoints', '__MACOSX'):
    _picture(pets / 'cat' / name / '0.png', 0)
  assert len(_load(pets, 'train+test')) == before


def _one_class(root):
  _picture(root / 'a' / '1.png', 1)
  _picture(root / 'a' / '2.png', 2)


def _no_class(root):
  _picture(root / '1.png', 1)


def _empty_class(root):
  _one_class(root)
  (root / 'b').mkdir()


def _twins(root):
  _one_class(root)
  _picture(root / 'b' / '1.png', 1)
  _picture(root / 'b' / '1.bmp', 1)


def _class_of_tests_alone(root):
  for name in 'ab':
    _picture(root / 'train' / name / '1.png', 1)
  _picture(root / 'test' / 'c' / '1.png', 1)


def _no_training(root):
  for name in ('val', 'test'):
    _picture(root / name / 'x' / '1.png', 1)


def _tests_alone(root):
  for name in 'ab':
    _picture(root / 'test' / name / '1.png', 1)


def _a_name_in_latin_1(root):
  _one_class(root)
  _picture(root / os.fsdecode(b'caf\xe9') / '1.png', 1)


def _split_among_classes(root):
  for name in ('train', 'bus'):
    _picture(root / name / 'x' / '1.png', 1)


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (_one_class, "has one class alone, 'a'"),
    (_no_class, r'no folders of classes \(but 1 image'),
    (_empty_class, 'b holds no image'),
    (_twins, r'1\.bmp and 1\.png have one stem'),
    (_class_of_tests_alone, r"labels that no training row has: 'c' \(1\)"),
    (_no_training, 'val, and none is called train'),
    (_tests_alone, 'splits, test, and none is called train'),
    (_a_name_in_latin_1, r'not in UTF-8, such as .caf\\udce9/1\.png.: rename'),
    (_split_among_classes, 'and others beside them, such as bus'),
  ],
)
def test_folders_that_are_no_set_are_refused(tmp_path, make, match):
  make(tmp_path)
  with pytest.raises(types.InputError, match=match) as error:
    _load(tmp_path, 'train')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('folder:unreadble=skip', "no option 'unreadble'"),
    ('folder:unreadable=maybe', "'refuse', 'skip'"),
    ('folder:channels=2', 'channels'),
    ('folder:channels=1.5', 'channels'),
    ('folder:test_share=1', r'must be in \(0, 1\)'),
    ('folder:skip', "'skip' is no option"),
  ],
)
def test_unknown_options_are_refused(pets, name, match):
  with pytest.raises(types.InputError, match=match):
    _load(pets, 'train', name)


def test_a_path_is_needed_and_must_be_there(tmp_path):
  with pytest.raises(types.InputError, match='--data_dir=PATH'):
    _load('', 'train')
  with pytest.raises(types.InputError, match='There is no folder'):
    _load(tmp_path / 'nowhere', 'train')


def test_in_python(pets):
  rows = sets.from_folder(pets, 'test', test_share=0.3)
  assert len(rows) == 6 and rows.class_names == ('cat', 'dog')


def test_pictures_that_pillow_does_not_know_are_named(pets):
  (pets / 'cat' / '1.heic').write_bytes(b'\0\0\0\x18ftypheic')
  with pytest.raises(types.InputError, match=r'1 of 21 images.*cat/1\.heic'):
    _load(pets, 'train')
  assert len(_load(pets, 'train+test', 'folder:unreadable=skip')) == 20


def test_colours_of_16_bits_are_refused_as_grey_is(pets):
  def chunk(kind, data):
    crc = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + crc

  row = b'\0' + struct.pack('>12H', *[4000] * 12)
  (pets / 'dog' / 'deep.png').write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 4, 16, 2, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(4 * row))
    + chunk(b'IEND', b'')
  )
  with pytest.raises(types.InputError, match=r'1 of 21 images.*dog/deep\.png'):
    _load(pets, 'train')


def test_a_changed_file_behind_a_link_is_read_again(pets):
  elsewhere = pets.parent / f'{pets.name}-birds'
  for i in range(4):
    _picture(elsewhere / f'{i}.png', 50 + i)
  (pets / 'bird').symlink_to(elsewhere)
  before = len(_load(pets, 'train+test'))
  _picture(elsewhere / '9.png', 59)
  rows = _load(pets, 'train+test')
  assert len(rows) == before + 1 and 59 in _values(rows)
