"""MILANNOTATIONS are read as the authors' code writes them."""

import numpy as np
import pytest

from repjax import types
from repjax.data.sets import milannotations


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  lines = ['layer,unit,summary']
  for layer, units in (('conv1', [3, 5]), ('layer4', [0, 1])):
    (tmp_path / layer).mkdir()
    images = rng.integers(0, 256, (2, 4, 3, 6, 6)).astype(np.uint8)
    np.save(tmp_path / layer / 'images.npy', images)
    masks = rng.integers(0, 2, (2, 4, 1, 6, 6)).astype(np.uint8)
    np.save(tmp_path / layer / 'masks.npy', masks)
    if layer == 'conv1':
      np.save(tmp_path / layer / 'units.npy', np.array(units))
    lines += [f'{layer},{x},"edges, {x}"' for x in units]
  lines.append('conv1,3,lines')
  (tmp_path / 'annotations.csv').write_text('\n'.join(lines), 'utf-8')
  return tmp_path


def test_units_come_with_their_images_masks_and_all_captions(folder):
  units = list(milannotations.read(folder))
  assert [(x.layer, x.unit) for x in units] == [
    ('conv1', 3),
    ('conv1', 5),
    ('layer4', 0),
    ('layer4', 1),
  ]
  assert units[0].captions == ('edges, 3', 'lines')
  images = np.load(folder / 'layer4' / 'images.npy')
  masks = np.load(folder / 'layer4' / 'masks.npy')
  assert units[3].image.shape == (4, 6, 6, 3)
  np.testing.assert_array_equal(units[3].image[2, 1, 5], images[1, 2, :, 1, 5])
  np.testing.assert_array_equal(units[3].mask, masks[1, :, 0] > 0)


def test_a_unit_without_a_caption_is_left_out(folder):
  (folder / 'annotations.csv').write_text(
    'layer,unit,summary\nconv1,3,\nconv1,5,dots\n', 'utf-8'
  )
  assert [x.unit for x in milannotations.read(folder)] == [5]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('layer,unit,words\na,1,b\n', "no column 'summary'"),
    ('layer,unit,summary\na,one,b\n', "line 2: the unit 'one'"),
    ('layer,unit,summary\n', 'no annotation'),
    ('layer,unit,summary\nconv9,1,b\n', 'images.npy is missing'),
  ],
)
def test_a_broken_file_is_named(folder, text, message):
  (folder / 'annotations.csv').write_text(text, 'utf-8')
  with pytest.raises(types.InputError, match=message):
    list(milannotations.read(folder))


def test_shapes_that_do_not_fit_are_named(folder):
  np.save(folder / 'conv1' / 'masks.npy', np.zeros((2, 4, 1, 5, 6)))
  with pytest.raises(types.InputError, match=r'conv1: images are \[U, k, 3'):
    list(milannotations.read(folder))


def test_damaged_files_are_named(folder):
  whole = (folder / 'annotations.csv').read_bytes()
  (folder / 'annotations.csv').write_bytes(whole + 'é'.encode()[:1])
  with pytest.raises(types.InputError, match=r'\.csv cannot be read'):
    list(milannotations.read(folder))
  (folder / 'annotations.csv').write_bytes(whole)
  units = folder / 'conv1' / 'units.npy'
  np.save(units, np.arange(3))
  with pytest.raises(types.InputError, match='one for each of 2; got'):
    list(milannotations.read(folder))
  masks = folder / 'conv1' / 'masks.npy'
  for cut in (0, 20, 200):
    masks.write_bytes(masks.read_bytes()[:cut])
    with pytest.raises(types.InputError, match=r'masks\.npy cannot be read'):
      list(milannotations.read(folder))


def test_what_is_missing_is_said_with_a_remedy(tmp_path):
  with pytest.raises(
    types.InputError, match=r'config.data.dir=.*--preset=small'
  ):
    milannotations.annotations(tmp_path, field='config.data.dir')
