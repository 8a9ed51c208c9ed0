"""TFDS's columns become a label and a nuisance, image by image.

The sets themselves are large: sources with their columns stand in for them.
"""

import pickle

import numpy as np
import pytest

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import attributed

_NAMED = dict(
  dsprites=dict(
    label_shape=3,
    label_scale=6,
    label_orientation=40,
    label_x_position=32,
    label_y_position=32,
  ),
  shapes3d=dict(
    label_floor_hue=10,
    label_wall_hue=10,
    label_object_hue=10,
    label_scale=8,
    label_shape=4,
    label_orientation=15,
  ),
  smallnorb=dict(
    label_category=5, label_elevation=9, label_azimuth=18, label_lighting=6
  ),
)


def fake(name, split='train', num_rows=60):
  """Rows whose image tells their number."""
  rng = np.random.default_rng(len(split))
  channels = 3 if name == 'shapes3d' else 1
  image = np.zeros((num_rows, 8, 8, channels), np.uint8)
  bits = (np.arange(num_rows)[:, None] >> np.arange(8)) & 1
  image[:, 0] = bits[..., None]
  columns = {
    column: rng.integers(size, size=num_rows)
    for column, size in _NAMED[name].items()
  }
  # TFDS has more columns, which no batch can hold.
  columns['id'] = np.full(num_rows, b'x', object)
  return sources.from_arrays(name, {**columns, 'image': image}, split=split)


@pytest.fixture(autouse=True)
def faked(monkeypatch):
  monkeypatch.setattr(
    sources, 'load', lambda name, split, data_dir: fake(name, split)
  )


@pytest.mark.parametrize('name', list(_NAMED))
def test_the_known_columns_are_those_of_tfds(name):
  known = dict(attributed.SETS[name].columns)
  known.pop('colour', None)
  assert {column: size for column, size in known.values()} == _NAMED[name]


@pytest.mark.parametrize(
  ('name', 'label', 'nuisance', 'sizes'),
  [
    ('dsprites', 'shape', 'orientation', (40, 10, 10)),
    ('shapes3d', 'shape', 'object_hue', (40, 10, 10)),
    ('smallnorb', 'category', 'lighting', (50, 10, 60)),
  ],
)
def test_columns_follow_their_images(name, label, nuisance, sizes):
  splits = attributed.load(
    name, label=label, nuisance=nuisance, num_held_out=10
  )
  assert splits.num_values == attributed.SETS[name].columns[nuisance][1]
  seen = set()
  for split, size in zip(splits[:3], sizes, strict=True):
    assert len(split) == size
    assert split.num_classes == attributed.SETS[name].columns[label][1]
    columns = split.columns()
    assert set(columns) == {'image', 'label', 'group'}
    assert columns['label'].dtype == columns['group'].dtype == np.int32
    own_test = name == 'smallnorb' and split is splits.test
    original = fake(name, 'test' if own_test else 'train').read(np.arange(60))
    bits = columns['image'][:, 0, :, 0] > 0
    rows = (bits << np.arange(8)).sum(1)
    np.testing.assert_array_equal(
      columns['label'], original[f'label_{label}'][rows]
    )
    np.testing.assert_array_equal(
      columns['group'], original[f'label_{nuisance}'][rows]
    )
    if not own_test:
      assert not seen & set(rows)
      seen |= set(rows)


def test_dsprites_is_bright_and_has_three_colours():
  splits = attributed.load(
    'dsprites', label='shape', nuisance='colour', num_held_out=10
  )
  columns = splits.train.columns()
  assert splits.num_values == 3
  assert splits.train.image_shape == (8, 8, 3)
  assert set(columns['image'].ravel()) == {0, 255}
  for image, group in zip(columns['image'], columns['group'], strict=True):
    others = [i for i in range(3) if i != group]
    assert not image[..., others].any()
    assert image[..., group].any() or not image.any()
  assert set(columns['group']) == {0, 1, 2}


def test_sources_reach_worker_processes():
  splits = attributed.load(
    'dsprites', label='shape', nuisance='colour', num_held_out=10
  )
  again = pickle.loads(pickle.dumps(splits.test))
  np.testing.assert_array_equal(
    again.columns()['image'], splits.test.columns()['image']
  )


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    (dict(name='mnist'), 'config.data.name'),
    (dict(label='colour_of_hair'), 'config.data.label'),
    (dict(nuisance='lighting'), 'config.data.nuisance'),
    (dict(nuisance='shape'), 'name two attributes'),
    (dict(num_held_out=30), 'num_held_out=30 leaves no row'),
  ],
)
def test_what_there_is_not_is_said_in_one_line(changes, match):
  usual = dict(
    name='dsprites', label='shape', nuisance='scale', num_held_out=10
  )
  arguments = {**usual, **changes}
  with pytest.raises(types.InputError, match=match) as error:
    attributed.load(arguments.pop('name'), **arguments)
  assert '\n' not in str(error.value)


def test_drawn_splits_are_uniform_and_share_no_row():
  splits = attributed.drawn(
    num_rows=120, num_held_out=60, num_kinds=3, num_colours=4, size=16, seed=2
  )
  images = [x.columns()['image'] for x in splits[:3]]
  flat = np.concatenate(images).reshape(240, -1)
  assert len(np.unique(flat, axis=0)) == 240
  for split in splits[:3]:
    columns = split.columns()
    counts = np.zeros((3, 4), int)
    np.add.at(counts, (columns['label'], columns['group']), 1)
    assert len(set(counts.ravel())) == 1
