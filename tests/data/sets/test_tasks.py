"""Streams and mixtures of tasks against what they are by hand."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import mixtures
from repjax.data.reading import source
from repjax.data.sets import tasks


def images(rows=12, size=4, channels=1, name='set', num_classes=6):
  rng = np.random.default_rng(rows)
  shape = (rows, size, size, channels)
  columns = {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': np.arange(rows) % num_classes,
  }
  return source.from_arrays(name, columns, num_classes=num_classes)


def everything(part):
  return part.read(np.arange(len(part)))


def test_each_permutation_moves_all_images_alike_and_differs_from_the_others():
  train, test = images(12, channels=3), images(6, channels=3)
  stream = tasks.permuted(train, test, num_tasks=3, seed=1)
  original = everything(train)
  orders = []
  for number, task in enumerate(stream):
    # Which old pixel stands where, read off an image of distinct pixels.
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, -1)
    probe = source.from_arrays('probe', {'image': pixels, 'label': [0]})
    order = everything(
      tasks.permuted(probe, probe, num_tasks=3, seed=1)[number].train
    )['image'][0, ..., 0].ravel()
    assert sorted(order) == list(range(16))
    for part, rows in ((task.train, original), (task.test, everything(test))):
      found = everything(part)
      flat = rows['image'].reshape(len(part), 16, 3)
      np.testing.assert_array_equal(
        found['image'].reshape(len(part), 16, 3), flat[:, order]
      )
      np.testing.assert_array_equal(found['label'], rows['label'])
      assert (found['task'] == number).all()
    orders.append(tuple(order))
  assert len(set(orders)) == 3 and tuple(range(16)) not in orders
  again = tasks.permuted(train, test, num_tasks=3, seed=1)[2].train
  np.testing.assert_array_equal(
    everything(again)['image'], everything(stream[2].train)['image']
  )
  # Worker processes get a copy.
  copy = pickle.loads(pickle.dumps(stream[2].train))
  np.testing.assert_array_equal(
    everything(copy)['image'], everything(stream[2].train)['image']
  )


def test_rotation_is_counterclockwise():
  train = images()
  stream = tasks.rotated(train, train, degrees=(0, 90, 180))
  original = everything(train)['image']
  for task, turns in zip(stream, (0, 1, 2), strict=True):
    np.testing.assert_array_equal(
      everything(task.train)['image'], np.rot90(original, turns, (1, 2))
    )
  # An angle between keeps the size.
  (odd,) = tasks.rotated(train, train, degrees=(30,))
  assert everything(odd.train)['image'].shape == original.shape


@pytest.mark.parametrize('seed', [None, 3])
@pytest.mark.parametrize('relabel', [False, True])
def test_a_split_divides_the_classes(seed, relabel):
  train, test = images(24), images(12)
  stream = tasks.split(train, test, num_tasks=3, seed=seed, relabel=relabel)
  classes, seen = everything(train)['label'], []
  for number, task in enumerate(stream):
    rows = everything(task.train)
    assert (rows['task'] == number).all() and len(task.train) == 8
    assert set(rows['label']) == set(everything(task.test)['label'])
    original = [
      int(np.flatnonzero((everything(train)['image'] == x).all((1, 2, 3)))[0])
      for x in rows['image']
    ]
    chosen = sorted(set(classes[original]))
    seen += chosen
    if relabel:
      assert set(rows['label']) == {0, 1} and task.train.num_classes == 2
      # One class, one label.
      pairs = set(zip(classes[original], rows['label'], strict=True))
      assert len(pairs) == 2
    else:
      np.testing.assert_array_equal(rows['label'], classes[original])
    if seed is None:
      assert chosen == [2 * number, 2 * number + 1]
  assert sorted(seen) == list(range(6))


def test_digits_split_into_tasks_of_two():
  train = source.load('digits', 'train')
  test = source.load('digits', 'test')
  stream = tasks.split(train, test, num_tasks=5)
  assert sum(len(task.train) for task in stream) == len(train) == 1442
  assert sum(len(task.test) for task in stream) == len(test) == 355
  with pytest.raises(types.InputError, match='num_tasks=3'):
    tasks.split(train, test, num_tasks=3)


def test_real_sets_become_one_shape(real_data):
  stream = tasks.sets(
    ('cifar10', 'mnist'),
    size=16,
    train_split='train[:20]',
    test_split='test[:20]',
    data_dir=real_data,
  )
  for number, task in enumerate(stream):
    rows = task.test.read(np.array([0, 7]))
    assert rows['image'].shape == (2, 16, 16, 3)
    assert rows['image'].dtype == np.uint8 and rows['image'].std() > 10
    assert (rows['task'] == number).all()
  assert [task.name for task in stream] == ['cifar10', 'mnist']


def _opaque(made):
  columns = everything(made)
  columns['image'] = columns['image'][..., :3]
  return source.from_arrays('opaque', columns, num_classes=made.num_classes)


def test_resizing_keeps_colours_and_repeats_grey():
  grey, colour = images(4, size=8), images(4, size=4, channels=3)
  small = everything(tasks.resized(grey, 4, 3))['image']
  assert small.shape == (4, 4, 4, 3)
  np.testing.assert_array_equal(small[..., 0], small[..., 2])
  means = everything(grey)['image'].mean((1, 2, 3))
  np.testing.assert_allclose(small.mean((1, 2, 3)), means, atol=12)
  np.testing.assert_array_equal(
    everything(tasks.resized(colour, 4, 3))['image'],
    everything(colour)['image'],
  )
  clear = images(4, size=4, channels=4)
  for channels in (1, 3):
    np.testing.assert_array_equal(
      everything(tasks.resized(clear, 4, channels))['image'],
      everything(tasks.resized(_opaque(clear), 4, channels))['image'],
    )
  flat = everything(tasks.resized(colour, 4, 1))['image']
  expected = everything(colour)['image'].mean(-1, keepdims=True)
  np.testing.assert_allclose(flat, expected, atol=0.51)
  with pytest.raises(types.InputError, match='resize them'):
    tasks.stream([('a', grey, grey), ('b', colour, colour)])


# Mixtures.


def mixed(temperature=1.0, seed=0, **settings):
  parts = [images(4, name='a'), images(36, name='b'), images(400, name='c')]
  return mixtures.mixture(
    parts,
    batch_size=64,
    seed=seed,
    temperature=temperature,
    **{'process_index': 0, 'process_count': 1, **settings},
  )


@pytest.mark.parametrize('temperature', [1.0, 2.0, 1e6])
def test_tasks_are_drawn_by_their_temperature(temperature):
  rates = np.array([4, 36, 400]) ** (1 / temperature)
  rates /= rates.sum()
  found = mixed(temperature)
  counts = np.zeros(3)
  for step in range(40):
    counts += np.bincount(found.batch(step)['task'], minlength=3)
  total = counts.sum()
  error = (counts / total - rates) / np.sqrt(rates * (1 - rates) / total)
  assert np.abs(error).max() < 4


def test_rows_of_a_mixture_are_rows_of_their_tasks():
  parts = [images(4, name='a'), images(36, name='b'), images(400, name='c')]
  seen = set()
  for step in range(10):
    batch = mixed(1e6).batch(step)
    for task, index, image, label in zip(
      batch['task'], batch['index'], batch['image'], batch['label'], strict=True
    ):
      row = index - (0, 4, 40)[task]
      columns = parts[task].read(np.array([row]))
      np.testing.assert_array_equal(columns['image'][0], image)
      assert columns['label'][0] == label
      seen.add(int(index))
  assert len(seen) > 200 and {0, 1, 2, 3} < seen


def test_a_resumed_mixture_goes_on_with_the_same_batches():
  stream = list(itertools.islice(mixed().iterate(0), 4))
  resumed = next(iter(mixed().iterate(3)))
  for name, values in stream[3].items():
    np.testing.assert_array_equal(resumed[name], values)
  assert (mixed(seed=1).batch(3)['index'] != resumed['index']).any()
  # Two processes share the same global batch.
  parts = [mixed(process_index=i, process_count=2).batch(3) for i in (0, 1)]
  np.testing.assert_array_equal(
    np.concatenate([x['index'] for x in parts]), resumed['index']
  )


def test_a_temperature_is_positive():
  with pytest.raises(types.InputError, match='temperature'):
    mixed(temperature=0.0)


def test_a_union_has_the_columns_of_all_parts_in_every_batch():
  one = source.from_arrays('one', {'a': np.arange(3), 'b': np.arange(3)})
  other = source.from_arrays('other', {'a': np.arange(2)})
  both = mixtures.union([one, other])
  for rows in ([0, 1], [3, 4], [0, 4]):
    assert 'b' not in both.read(np.array(rows))
  np.testing.assert_array_equal(both.read(np.array([1, 4, 0]))['a'], [1, 1, 0])


def test_every_batch_of_a_union_has_the_types_of_the_others():
  one = source.from_arrays('one', {'a': np.arange(3, dtype=np.int32)})
  other = source.from_arrays('other', {'a': np.arange(2, dtype=np.int64)})
  both = mixtures.union([one, other])
  rows = ([0, 1], [3, 4], [0, 4], [])
  found = [both.read(np.array(x, int))['a'] for x in rows]
  assert {x.dtype for x in found} == {np.dtype(np.int64)}
  assert [x.shape for x in found] == [(2,), (2,), (2,), (0,)]


@pytest.mark.parametrize(
  'column', [np.ones((2, 3)), np.ones(2), np.array(['a', 'b'], object)]
)
def test_columns_that_are_not_alike_are_not_joined(column):
  one = source.from_arrays('one', {'a': np.ones((3, 3), np.uint8)})
  other = source.from_arrays('other', {'a': column})
  with pytest.raises(types.InputError, match="whose column 'a' is alike"):
    mixtures.union([one, other])


def test_classes_that_are_numbered_anew_keep_their_names():
  rows = dataclasses.replace(images(), class_names=tuple('abcdef'))
  part = tasks.of_classes(rows, np.array([4, 1]), relabel=True)
  assert part.class_names == ('e', 'b')
