"""NumPy's files as sets."""

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 3, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2 + 5


def _load(path, split='train+test', name='npz'):
  return source.load(name, split, data_dir=str(path))


def test_images_and_labels_come_back(tmp_path):
  np.savez(tmp_path / 'a.npz', x=IMAGES, y=LABELS)
  rows = _load(tmp_path / 'a.npz')
  assert rows.image_shape == (3, 3, 1) and rows.class_names == ('5', '6')
  read = rows.columns()
  found = {
    x.tobytes(): int(y)
    for x, y in zip(read['image'], read['label'], strict=True)
  }
  assert found == {
    x.tobytes(): y - 5 for x, y in zip(IMAGES, LABELS, strict=True)
  }


def test_the_array_that_is_asked_for_is_the_label(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, x=IMAGES, y=LABELS, coarse=(np.arange(20) < 5).astype(int))
  usual, coarse = (
    np.bincount(_load(path, 'train+test', x).column('label')).tolist()
    for x in ('npz', 'npz:label=coarse')
  )
  assert (usual, coarse) == ([10, 10], [15, 5])


def test_splits_by_the_ends_of_names_and_by_files(tmp_path):
  parts = {'train': slice(0, 15), 'test': slice(15, 20)}
  whole = {
    f'{k}_{s}': v[i]
    for s, i in parts.items()
    for k, v in (('x', IMAGES), ('y', LABELS))
  }
  np.savez(tmp_path / 'a.npz', **whole)
  (tmp_path / 'files').mkdir()
  for split, i in parts.items():
    np.savez(
      tmp_path / 'files' / f'{split}.npz', image=IMAGES[i], label=LABELS[i]
    )
  for place in (tmp_path / 'a.npz', tmp_path / 'files'):
    for split, i in parts.items():
      read = _load(place, split).column('image')
      assert {x.tobytes() for x in read} == {x.tobytes() for x in IMAGES[i]}


def test_one_file_a_column(tmp_path):
  np.save(tmp_path / 'features.npy', RNG.normal(size=(20, 4)))
  np.save(tmp_path / 'kind.npy', np.array(['a', 'b'] * 10))
  rows = _load(tmp_path, name='npz:label=kind')
  assert rows.class_names == ('a', 'b')
  assert rows.read([0])['features'].dtype == np.float32


@pytest.mark.parametrize(
  ('arrays', 'name', 'match'),
  [
    (dict(x=IMAGES, y=LABELS[:-1]), 'npz', 'arrays of one length'),
    (dict(x=IMAGES, y=LABELS / 2), 'npz', 'one class a row'),
    (dict(image=IMAGES / 255, label=LABELS), 'npz', 'uint8'),
    (dict(x=IMAGES), 'npz:label=z', "no array 'z'"),
    (dict(y=LABELS), 'npz', 'no array besides'),
    (dict(x=np.full((20, 2), np.nan), y=LABELS), 'npz', 'NaN'),
    (dict(x=np.full((20, 2), 1e39), y=LABELS), 'npz', 'infinite'),
    (
      dict(x=1.7e9 + np.arange(20.0)[:, None], y=LABELS),
      'npz',
      'float32 does not tell',
    ),
    (dict(x=np.array([None] * 20), y=LABELS), 'npz', 'cannot be read'),
    (dict(x_train=IMAGES, y_test=LABELS), 'npz', 'the split test has'),
    (
      dict(x_train=IMAGES, x_dev=IMAGES, x_val=IMAGES),
      'npz',
      "x_val and another array are both 'x' of the split validation",
    ),
    (dict(x=np.float32(1), y=LABELS), 'npz', 'one number'),
    (
      dict(x=IMAGES, y=np.array(['café'.encode('latin-1'), b'tea'] * 10)),
      'npz',
      'no UTF-8',
    ),
    ({}, 'npz', 'has no arrays'),
    (
      dict(x_test=IMAGES, y_test=LABELS),
      'npz',
      'test alone, and none to train',
    ),
    (dict(x=np.zeros((20, 3, 8, 8), np.uint8), y=LABELS), 'npz', 'last; got'),
    (dict(x=IMAGES[:, :0], y=LABELS), 'npz', 'channels last'),
  ],
)
def test_what_is_no_set_is_refused_in_one_line(tmp_path, arrays, name, match):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(types.InputError, match=match) as error:
    _load(tmp_path / 'a.npz', 'train', name)
  assert '\n' not in str(error.value)


def test_a_damaged_file(tmp_path):
  (tmp_path / 'a.npz').write_bytes(b'PK no archive')
  with pytest.raises(types.InputError, match='cannot be read as an'):
    _load(tmp_path / 'a.npz')


def test_another_file(tmp_path):
  np.save(tmp_path / 'a.npy', IMAGES)
  with pytest.raises(types.InputError, match=r'numpy\.savez writes such'):
    _load(tmp_path / 'a.npy')
