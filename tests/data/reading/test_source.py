"""Reading embedded and prepared sets and arrays; and what goes wrong."""

import concurrent.futures
import dataclasses
import io
import json
import os
import pickle
import shutil
import threading

import google_crc32c
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from repjax import types
from repjax.data.reading import cache
from repjax.data.reading import decode
from repjax.data.reading import prepared
from repjax.data.reading import source
from repjax.data.reading import tfrecord


class Photos(tfds.core.GeneratorBasedBuilder):
  """Images that differ in size, ragged numbers, text, nested features."""

  VERSION = tfds.core.Version('1.2.3')
  code_path = None  # As in repjax.data.sets.digits.

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'thumbnail': tfds.features.Image(shape=(4, 4, 1)),
          'label': tfds.features.ClassLabel(names=['cat', 'dog']),
          'about': {
            'words': tfds.features.Text(),
            'boxes': tfds.features.Tensor(shape=(None, 2), dtype=np.float32),
          },
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for row in range(6):
      yield (
        row,
        {
          'image': io.BytesIO(photo_file(row)),
          'thumbnail': io.BytesIO(file_of(thumbnail(row))),
          'label': row % 2,
          'about': {
            'words': f'photo {row}',
            'boxes': np.full((row, 2), row, np.float32),
          },
        },
      )


def photo(row):
  rng = np.random.default_rng(row)
  return rng.integers(0, 256, (10 + row, 20 - row, 3), np.uint8)


def thumbnail(row):
  return np.full((4, 4, 1), 10 * row, np.uint8)


def file_of(pixels):
  stream = io.BytesIO()
  decode.to_picture(pixels).save(stream, 'PNG')
  return stream.getvalue()


def photo_file(row):
  return b'not an image' if row == 5 else file_of(photo(row))


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A folder with the prepared set `photos`."""
  folder = tmp_path_factory.mktemp('tfds')
  Photos(data_dir=folder).download_and_prepare(file_format='array_record')
  return folder


@pytest.fixture(scope='module')
def digits():
  return source.load('digits', 'train')


# The embedded set.


def test_digits_are_scikit_learns(digits):
  bunch = datasets.load_digits()
  test = source.load('digits', 'test')
  assert (len(digits), len(test)) == (1442, 355)
  columns = [x.read(np.arange(len(x))) for x in (digits, test)]
  pixels = np.concatenate([c['image'] for c in columns])
  labels = np.concatenate([c['label'] for c in columns])
  assert pixels.dtype == np.uint8
  assert labels.dtype == np.int32
  assert digits.image_shape == (8, 8, 1)
  assert digits.num_classes == 10
  expected = np.rint(bunch.images * 255 / 16).astype(np.uint8)
  ours = zip(map(bytes, pixels), labels, strict=True)
  theirs = zip(map(bytes, expected), bunch.target, strict=True)
  assert sorted(ours) == sorted(theirs)


def test_the_split_of_digits_is_stratified():
  test = source.load('digits', 'test').column('label')
  everything = datasets.load_digits().target
  for label in range(10):
    part = (test == label).sum() / (everything == label).sum()
    assert 0.19 < part < 0.21


def test_a_version_and_a_part_can_be_named(digits):
  part = source.load('digits:1.0.0', 'train[10%:20%]')
  assert part.version == '1.0.0'
  whole = digits.read(np.arange(len(digits)))['image']
  some = part.read(np.arange(len(part)))['image']
  np.testing.assert_array_equal(some, whole[144 : 144 + len(part)])


class Meeting(Photos):
  """A set that two threads prepare at the same time."""

  barrier = threading.Barrier(2)

  def _split_generators(self, dl_manager):
    self.barrier.wait(30)  # Both have found that nothing is there.
    return super()._split_generators(dl_manager)


@pytest.mark.parametrize(
  'split',
  ['train+train', 'train[:60%]+train[40%:]', 'train[:9]+test+train[8:]'],
)
def test_no_row_is_read_twice(split):
  with pytest.raises(types.InputError, match='rows more than once'):
    source.load('digits', split)


def test_parts_that_touch_are_the_whole():
  assert len(source.load('digits', 'train[50%:]+train[:50%]')) == 1442
  assert len(source.load('digits', 'train[:10]+test')) == 365


def test_two_may_prepare_an_embedded_set_at_once(tmp_path, monkeypatch):
  monkeypatch.setenv('REPJAX_CACHE', str(tmp_path))
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    roots = list(pool.map(prepared.prepare_embedded, [Meeting] * 2))
  assert roots == [tmp_path / 'tfds'] * 2
  assert [path.name for path in roots[0].iterdir()] == ['meeting']
  rows = source.load('meeting', 'train', data_dir=str(roots[0]))
  assert len(rows) == 6


# Arrays.


def test_arrays_come_back_by_index():
  rows = source.from_arrays(
    'five', {'x': np.arange(5) * 10, 'label': [0, 1, 0, 1, 2]}, num_classes=3
  )
  columns = rows.read([4, 0, 4])
  assert columns['x'].tolist() == [40, 0, 40]
  assert columns['label'].tolist() == [2, 0, 2]
  assert columns['label'].dtype == np.int32
  assert len(rows) == 5
  assert rows.image_shape is rows.num_channels is None


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    ({'x': np.zeros(0)}, 'length above 0'),
    ({}, 'length above 0'),
    ({'x': np.zeros(2), 'y': np.zeros(3)}, "{'x': 2, 'y': 3}"),
    ({'label': [0, 1, 3]}, "'label' of row 2 is 3, outside \\[0, 3\\)"),
    ({'label': [0, -1]}, "'label' of row 1 is -1"),
  ],
)
def test_arrays_that_cannot_be_used(columns, message):
  with pytest.raises(types.InputError, match=message):
    source.from_arrays('bad', columns, num_classes=3)


@pytest.mark.parametrize('indices', [[-1], [5], [[0]], [0.5]])
def test_indices_that_are_none_are_refused(indices):
  rows = source.from_arrays('five', {'x': np.arange(5)})
  with pytest.raises((IndexError, ValueError), match='got'):
    rows.read(indices)


def test_select_and_with_columns_are_views(digits):
  chosen = digits.select(np.array([7, 3, 9])).with_columns(
    weight=np.array([0.1, 0.2, 0.3])
  )
  assert len(chosen) == 3
  columns = chosen.read([2, 0])
  expected = digits.read([9, 7])
  np.testing.assert_array_equal(columns['image'], expected['image'])
  assert columns['weight'].tolist() == [0.3, 0.1]
  with pytest.raises(ValueError, match='3 rows'):
    chosen.with_columns(weight=np.zeros(4))
  with pytest.raises(types.InputError, match="'label' of row 0 is 10"):
    chosen.with_columns(label=np.array([10, 0, 0]))
  with pytest.raises(types.InputError, match='No row'):
    chosen.select([])


def test_a_column_that_is_not_there_names_those_that_are(digits):
  with pytest.raises(types.InputError, match=r"'lable'.*\['image', 'label'\]"):
    digits.column('lable')


# Prepared sets.


def test_every_kind_of_feature_comes_back(data_dir):
  rows = source.load('photos', 'train', data_dir=str(data_dir))
  assert rows.image_shape is None
  assert rows.num_channels == 3
  assert (rows.num_classes, rows.class_names) == (2, ('cat', 'dog'))
  for copy in (rows, pickle.loads(pickle.dumps(rows))):
    words = [w.decode() for w in copy.reader(np.arange(6))['about/words']]
    order = [int(w.split()[1]) for w in words]  # TFDS shuffles rows by key.
    sound = [i for i, row in enumerate(order) if row != 5]
    columns = copy.read(sound)
    for i, position in enumerate(sound):
      row = order[position]
      assert columns['label'][i] == row % 2
      np.testing.assert_array_equal(columns['image'][i], photo(row))
      np.testing.assert_array_equal(columns['thumbnail'][i], thumbnail(row))
      np.testing.assert_array_equal(
        columns['about/boxes'][i], np.full((row, 2), row)
      )
    assert columns['image'].dtype == object
    assert columns['thumbnail'].shape == (5, 4, 4, 1)


def test_decode_makes_one_size(data_dir):
  rows = source.load('photos', 'train', data_dir=str(data_dir))
  whole = rows.select(np.flatnonzero(row_order(rows) != 5))
  decoder = decode.inception_crop((6, 7))
  draws = np.random.default_rng(0).random((5, decoder.num_draws))
  columns = whole.read(np.arange(5), decode=decoder, draws=draws)
  assert columns['image'].shape == (5, 6, 7, 3)
  for i, row in enumerate(row_order(whole)):
    expected = decoder.apply(decode.to_picture(photo(row)), draws[i])
    np.testing.assert_array_equal(columns['image'][i], expected)
  fixed = whole.with_columns(image=columns['image'])
  assert fixed.image_shape == (6, 7, 3)
  np.testing.assert_array_equal(fixed.column('image'), columns['image'])
  np.testing.assert_array_equal(
    fixed.column('thumbnail'), whole.read(np.arange(5))['thumbnail']
  )
  with pytest.raises(ValueError, match=r'draws must be \[1, 22\]'):
    whole.read([0], decode=decoder)


def row_order(rows):
  words = rows.reader(np.arange(len(rows)))['about/words']
  return np.array([int(w.split()[1]) for w in words])


def test_decode_also_works_on_images_of_one_size(digits):
  columns = digits.read([0, 1], decode=decode.resize(5))
  for pixels, image in zip(
    digits.read([0, 1])['image'], columns['image'], strict=True
  ):
    expected = Image.fromarray(pixels[..., 0]).resize((5, 5), 2)
    np.testing.assert_array_equal(image[..., 0], np.asarray(expected))


def test_a_damaged_image_is_named(data_dir):
  rows = source.load('photos', 'train', data_dir=str(data_dir))
  bad = int(np.flatnonzero(row_order(rows) == 5)[0])
  with pytest.raises(
    types.InputError, match=f'image of row {bad} of photos train cannot be'
  ):
    rows.read([bad])


def test_the_cache_is_used_where_it_fits(digits):
  assert isinstance(digits.reader, cache.MappedColumns)
  large = source.load('digits', 'train', cache_limit=1000)
  assert not isinstance(large.reader, cache.MappedColumns)
  rows = np.arange(0, 1442, 7)
  expected = digits.read(rows)
  for name, values in large.read(rows).items():
    np.testing.assert_array_equal(values, expected[name])
    assert values.dtype == expected[name].dtype


def test_preparing_anew_makes_a_new_cache(tmp_path):
  folder = tmp_path / 'digits' / '1.0.0'
  original = prepared.find('digits').data_dir
  shutil.copytree(original, folder)
  first = fingerprint_of(folder)
  os.utime(folder / 'digits-test.array_record-00000-of-00001', (1, 1))
  assert fingerprint_of(folder) != first


def fingerprint_of(folder):
  return prepared.fingerprint(prepared.open_folder(folder), 'test')


def test_the_highest_version_is_chosen(tmp_path):
  for version in ('1.9.0', '1.10.0', '2.0.0.part'):
    (tmp_path / 'set' / version).mkdir(parents=True)
    (tmp_path / 'set' / version / 'features.json').touch()
  place = prepared.locate('set', data_dir=str(tmp_path))
  assert place == tmp_path / 'set' / '1.10.0'
  place = prepared.locate('set:1.9.0', data_dir=str(tmp_path))
  assert place == tmp_path / 'set' / '1.9.0'
  assert prepared.locate('set:2.0.0', data_dir=str(tmp_path)) is None


# What goes wrong.


@pytest.mark.parametrize(
  ('name', 'split', 'parts'),
  [
    ('digits', 'trian', ["no split 'trian'", 'train, test']),
    ('digits', 'train[:0]', ['train[:0]', 'no rows']),
    ('digits', 'train[9:5]', ['no rows']),
    ('digits', 'train[', ["no split 'train['"]),
    ('digits', 'train[5000:6000]', ["no split 'train[5000:6000]'"]),
    ('digits/grey', 'train', ['digits/grey', 'launch.prepare']),
    (
      'mnist',
      'train',
      [
        'mnist is not prepared in FOLDER.',
        'python -m launch.prepare --name=mnist --data_dir=FOLDER',
        'digits, which comes with repjax',
      ],
    ),
    ('photos:9.9.9', 'train', ['found there: photos/1.2.3']),
    ('photos/small', 'train', ['found there: photos/1.2.3']),
    ('a b', 'train', ["'a b' is not the name"]),
    ('', 'train', ["'' is not the name"]),
    ('../photos', 'train', ['is not the name']),
  ],
)
def test_one_line_says_what_is_wrong(data_dir, name, split, parts):
  with pytest.raises(types.InputError) as error:
    source.load(name, split, data_dir=str(data_dir))
  message = str(error.value)
  assert '\n' not in message
  for part in parts:
    assert part.replace('FOLDER', str(data_dir)) in message


def test_the_default_folder_is_tfdss(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(types.InputError, match=f'not prepared in {tmp_path}'):
    source.load('mnist', 'train')
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  with pytest.raises(types.InputError, match=f'{tmp_path}/tensorflow_datasets'):
    source.load('mnist', 'train')


def test_tfrecord_names_the_command_and_can_be_converted(tmp_path, monkeypatch):
  folder = tmp_path / 'digits' / '1.0.0'
  make_tfrecord(folder)
  with monkeypatch.context() as patch:
    patch.setattr(prepared, 'embedded', lambda name: None)
    with pytest.raises(
      types.InputError, match=r'as tfrecord, .* launch.prepare --name=digits'
    ):
      source.load('digits', 'test', data_dir=str(tmp_path))
  expected = source.load('digits', 'test').read(np.arange(355))
  builder = prepared.open_folder(folder)
  assert prepared.formats(builder) == ['tfrecord']
  tfrecord.add_array_record(builder)
  assert prepared.formats(prepared.open_folder(folder)) == [
    'array_record',
    'tfrecord',
  ]
  for file in folder.glob('*.tfrecord*'):
    file.unlink()  # They are not needed any more.
  monkeypatch.setattr(prepared, 'embedded', lambda name: None)
  converted = source.load('digits', 'test', data_dir=str(tmp_path))
  for name, values in converted.read(np.arange(355)).items():
    np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda content: content[:-3], 'is cut off'),
    (lambda content: content + content[:7], 'is cut off'),
    (lambda content: content + b'\xff' * 12 + content, 'is cut off or damaged'),
    (lambda content: content + _stored(b''), 'has 356 records instead of 355'),
    (lambda content: _flipped(content, 3), 'is cut off or damaged'),
    (lambda content: _flipped(content, 9), 'is cut off or damaged'),
    (lambda content: _flipped(content, 200), 'is cut off or damaged'),
    (lambda content: _flipped(content, -1), 'is cut off or damaged'),
  ],
)
def test_a_damaged_tfrecord_is_named(tmp_path, change, message):
  folder = tmp_path / 'digits' / '1.0.0'
  make_tfrecord(folder)
  shard = folder / 'digits-test.tfrecord-00000-of-00001'
  shard.write_bytes(change(shard.read_bytes()))
  with pytest.raises(types.InputError, match=message):
    tfrecord.add_array_record(prepared.open_folder(folder))
  assert prepared.formats(prepared.open_folder(folder)) == ['tfrecord']
  assert not list(folder.glob('*.part')) + list(folder.glob('.*.part'))


def test_a_split_of_many_parts_has_a_cache():
  parts = [f'train[{20 * i}:{20 * i + 10}]' for i in range(15)]
  found = source.load('digits', '+'.join(parts))
  whole = source.load('digits', 'train')
  np.testing.assert_array_equal(
    found.read([149])['image'], whole.read([289])['image']
  )


def test_splits_do_not_share_a_cache():
  few = source.load('digits', 'train[1:20%]')  # From 1 % on.
  late = source.load('digits', 'train[1_20:]')  # From row 120 on.
  whole = source.load('digits', 'train')
  np.testing.assert_array_equal(
    late.read([0])['image'], whole.read([120])['image']
  )
  assert len(few) != len(late)


def test_checksums_are_those_of_tensorflow(tmp_path):
  file = tmp_path / 'one.tfrecord'
  content = bytes.fromhex(
    '0900000000000000 37f97139 313233343536373839 e5b08ac7'
  )
  file.write_bytes(content * 2)
  assert list(tfrecord.read(file)) == [b'123456789'] * 2
  for place in range(len(content)):
    file.write_bytes(_flipped(content, place))
    with pytest.raises(types.InputError, match='damaged'):
      list(tfrecord.read(file))


@pytest.mark.parametrize('damage', ['cut', 'delete', 'features'])
def test_damaged_files_are_named(tmp_path, monkeypatch, damage):
  folder = tmp_path / 'digits' / '1.0.0'
  shutil.copytree(prepared.find('digits').data_dir, folder)
  shard = folder / 'digits-test.array_record-00000-of-00001'
  if damage == 'cut':
    shard.write_bytes(shard.read_bytes()[:20_000])
  elif damage == 'delete':
    shard.unlink()
  else:
    (folder / 'features.json').write_text('{')
  monkeypatch.setattr(prepared, 'embedded', lambda name: None)
  with pytest.raises(types.InputError, match='digits') as error:
    source.load('digits', 'test', data_dir=str(tmp_path))
  assert str(folder) in str(error.value)


def _flipped(content, place):
  changed = bytearray(content)
  changed[place] ^= 1
  return bytes(changed)


def _stored(record):
  """A record as TFRecord has it."""
  length = len(record).to_bytes(8, 'little')
  return length + _checksum(length) + record + _checksum(record)


def _checksum(content):
  crc = google_crc32c.value(content)
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  return masked.to_bytes(4, 'little')


def make_tfrecord(folder):
  """Writes digits as TFDS writes TFRecord."""
  original = prepared.find('digits')
  shutil.copytree(original.data_dir, folder)
  for split in ('train', 'test'):
    records = original.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    with open(folder / f'digits-{split}.tfrecord-00000-of-00001', 'wb') as f:
      for record in records:
        f.write(_stored(record))
    (folder / f'digits-{split}.array_record-00000-of-00001').unlink()
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (folder / 'dataset_info.json').write_text(json.dumps(info))


# Real sets.


def test_mnist_is_read_as_pillow_reads_it(real_data):
  rows = source.load('mnist', 'test[:50]', data_dir=real_data)
  assert (rows.image_shape, rows.num_classes) == ((28, 28, 1), 10)
  columns = rows.read(np.arange(50))
  raw = prepared.find('mnist', data_dir=real_data).as_data_source(
    'test', decoders={'image': tfds.decode.SkipDecoding()}
  )
  for i in range(50):
    expected = np.asarray(Image.open(io.BytesIO(raw[i]['image'])))
    np.testing.assert_array_equal(columns['image'][i, ..., 0], expected)
    assert columns['label'][i] == raw[i]['label']


def test_text_is_bytes(real_data):
  rows = source.load('glue/sst2', 'validation', data_dir=real_data)
  columns = rows.read([0, 871])
  assert columns['sentence'].dtype == object
  assert all(isinstance(x, bytes) and x for x in columns['sentence'])
  assert rows.class_names == ('negative', 'positive')


def test_a_split_without_labels_is_named(real_data):
  with pytest.raises(types.InputError, match="test: 'label' of row 0 is -1"):
    source.load('glue/sst2', 'test', data_dir=real_data)


def test_a_missing_config_lists_those_that_are_there(real_data):
  with pytest.raises(types.InputError, match=r'there: glue/sst2/2\.0\.0'):
    source.load('glue', 'train', data_dir=real_data)


def test_a_column_in_memory_is_given_without_reading_the_others():
  def never(indices):
    raise AssertionError('files were read')

  rows = dataclasses.replace(
    source.from_arrays('photos', {'x': np.arange(6)}),
    reader=never,
    encoded={'image': (None, None, 3)},
  )
  rows = rows.with_columns(label=np.arange(6) % 4).select([5, 1, 2])
  assert rows.column('label').tolist() == [1, 1, 2]
