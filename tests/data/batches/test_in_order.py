"""Batches: order, resumption, processes, padding."""

import itertools
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from repjax import types
from repjax.data.batches import ahead
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import decode
from repjax.data.reading import source

_ROWS = 23
_ONE = {'process_index': 0, 'process_count': 1}
_AUGMENT = transforms.compose(
  transforms.random_crop(1),
  transforms.random_flip(),
  transforms.random_erasing(),
  transforms.scale_to_unit(),
)


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return source.from_arrays(
    'rows',
    {
      'image': rng.integers(0, 256, (_ROWS, 6, 5, 3), np.uint8),
      'label': np.arange(_ROWS) % 4,
      'text': np.array([b'word'] * _ROWS, object),
    },
    num_classes=4,
  )


def train(rows, **kwargs):
  return in_order.train_batches(
    rows, **{'batch_size': 8, 'seed': 1, **_ONE, **kwargs}
  )


def same(first, second):
  assert first.keys() == second.keys()
  for name, values in first.items():
    np.testing.assert_array_equal(values, second[name])


def join(parts):
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@pytest.mark.parametrize('batch_size', [1, 8, 23, 50])
def test_every_epoch_holds_each_row_once(rows, batch_size):
  loader = train(rows, batch_size=batch_size)
  steps = -(-5 * _ROWS // batch_size)
  order = np.concatenate([loader.batch(i)['index'] for i in range(steps)])
  epochs = order[: 5 * _ROWS].reshape(5, _ROWS)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(_ROWS))
  assert len({tuple(epoch) for epoch in epochs}) == 5


def test_seeds_share_no_epoch(rows):
  orders = [
    tuple(in_order.rows_at(epoch * _ROWS, _ROWS, _ROWS, seed))
    for seed, epoch in itertools.product(range(4), range(4))
  ]
  assert len(set(orders)) == 16


@pytest.mark.parametrize('num_threads', [0, 2])
@pytest.mark.parametrize('start', [0, 7])
def test_iterating_from_a_step_gives_the_batches_of_the_steps(
  rows, start, num_threads
):
  loader = train(rows, transform=_AUGMENT, num_threads=num_threads)
  stream = loader.iterate(start)
  for step in range(start, start + 4):
    same(next(stream), loader.batch(step))
  stream.close()


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('resize', [False, True])
def test_processes_share_the_batch_of_one(rows, count, resize):
  decoder = decode.inception_crop(4) if resize else None
  settings = dict(batch_size=12, transform=_AUGMENT, decode=decoder)
  if count == 4:
    settings['batch_size'] = 24  # More than the rows that there are.
  whole = train(rows, **settings)
  parts = [
    train(rows, **settings, process_index=i, process_count=count)
    for i in range(count)
  ]
  for step in (0, 3):
    same(whole.batch(step), join([part.batch(step) for part in parts]))


def test_a_batch_is_what_the_source_and_the_transform_say(rows):
  decoder = decode.inception_crop(4)
  loader = train(rows, transform=_AUGMENT, decode=decoder)
  batch = loader.batch(2)
  draws = in_order.draws_at(2, (8, decoder.num_draws + _AUGMENT.num_draws), 1)
  columns = rows.read(
    batch['index'], decode=decoder, draws=draws[:, : decoder.num_draws]
  )
  expected = _AUGMENT.apply(columns, draws[:, decoder.num_draws :])
  np.testing.assert_array_equal(batch['image'], expected['image'])
  np.testing.assert_array_equal(batch['label'], batch['index'] % 4)
  assert batch['image'].shape == (8, 4, 4, 3)
  assert batch['mask'].dtype == np.float32
  assert (batch['mask'] == 1).all()
  assert batch['index'].dtype == batch['label'].dtype == np.int32


def test_draws_differ_between_steps_and_seeds_and_are_uniform():
  seen = [
    in_order.draws_at(step, (100, 5), seed)
    for step, seed in itertools.product(range(3), range(3))
  ]
  values = np.stack(seen)
  assert len(np.unique(values)) == values.size
  assert values.min() >= 0
  assert values.max() < 1
  assert 0.48 < values.mean() < 0.52


def test_text_reaches_the_transform_but_not_the_batch(rows):
  def count_letters(columns, draws):
    del draws
    return {**columns, 'letters': np.array([len(x) for x in columns['text']])}

  transform = transforms.Transform(0, count_letters)
  batch = train(rows, transform=transform).batch(0)
  assert batch.keys() == {'image', 'label', 'letters', 'mask', 'index'}
  assert (batch['letters'] == 4).all()


@pytest.mark.parametrize(
  ('batch_size', 'count'), [(4, 1), (23, 1), (40, 1), (8, 2), (4, 4), (40, 4)]
)
def test_evaluation_counts_each_row_once(rows, batch_size, count):
  parts = [
    in_order.eval_batches(
      rows, batch_size=batch_size, process_index=i, process_count=count
    )
    for i in range(count)
  ]
  assert len({len(part) for part in parts}) == 1
  whole = [join(step) for step in zip(*parts, strict=True)]
  assert len(whole) == len(parts[0])
  assert {len(batch['mask']) for batch in whole} == {batch_size}
  everything = join(whole)
  real = everything['mask'] == 1
  np.testing.assert_array_equal(everything['index'][real], np.arange(_ROWS))
  np.testing.assert_array_equal(everything['label'][real], np.arange(_ROWS) % 4)
  assert set(everything['mask']) <= {0, 1}


def test_evaluation_cannot_be_random(rows):
  for extra in (
    {'transform': _AUGMENT},
    {'decode': decode.inception_crop(4)},
  ):
    with pytest.raises(types.InputError, match='must not be random'):
      in_order.eval_batches(rows, batch_size=4, **_ONE, **extra)


def test_a_batch_that_does_not_divide_names_the_nearest(rows):
  with pytest.raises(
    types.InputError, match=r'config.batch_size=10 .* 4 proc.* 8 and 12'
  ):
    train(rows, batch_size=10, process_count=4)
  with pytest.raises(
    types.InputError, match=r'config.eval_batch_size=2 .* nearest .* 4\.'
  ):
    in_order.eval_batches(rows, batch_size=2, process_index=0, process_count=4)


def test_a_process_is_one_of_all(rows):
  # Of the two, what is left out is this process's.
  part = in_order.train_batches(rows, batch_size=8, seed=0, process_count=2)
  assert len(part.batch(0)['index']) == 4
  for given in (
    dict(process_index=2, process_count=2),
    dict(process_index=-1, process_count=2),
    dict(process_index=1),
  ):
    with pytest.raises(types.InputError, match=r'process_index=.* is none of'):
      in_order.eval_batches(rows, batch_size=8, **given)


def test_a_column_of_the_batches_own_is_refused():
  rows = source.from_arrays('bad', {'mask': np.zeros(4)})
  with pytest.raises(types.InputError, match="columns named \\['mask'\\]"):
    train(rows).batch(0)


def test_errors_keep_their_type_through_threads(rows):
  def fail(columns, draws):
    raise types.InputError('row 3 is broken')

  stream = train(rows, transform=transforms.Transform(0, fail)).iterate(0)
  with pytest.raises(types.InputError, match='row 3 is broken'):
    next(stream)


def test_workers_without_parsed_flags_are_replaced_by_threads(
  rows, monkeypatch
):
  monkeypatch.setattr(
    ahead.flags.FLAGS.__class__, 'is_parsed', lambda self: False
  )
  loader = train(rows, num_workers=2)
  stream = loader.iterate(5)
  same(next(stream), loader.batch(5))
  stream.close()


@pytest.mark.parametrize(('pause', 'reads_ahead'), [(0.0, False), (3e-3, True)])
def test_threads_read_where_reading_takes_time(
  rows, monkeypatch, pause, reads_ahead
):
  monkeypatch.setattr(in_order, '_QUICK', 1e-3 if pause else 10.0)
  here, seen = threading.get_ident(), []

  def note(columns, draws):
    time.sleep(pause)
    seen.append(threading.get_ident())
    return columns

  loader = train(rows, transform=transforms.Transform(0, note))
  stream = loader.iterate(4)
  batches = [next(stream) for _ in range(7)]
  stream.close()
  others = [x for x in seen if x != here]
  assert bool(others) == reads_ahead
  assert len(seen) == 7 or reads_ahead  # None is read that nobody asked for.
  for step, batch in enumerate(batches, 4):  # Nothing is lost between both.
    same(batch, loader.batch(step))


def test_a_stream_that_is_closed_leaves_no_threads(rows):
  def slow(columns, draws):
    time.sleep(3e-3)
    return columns

  before = set(threading.enumerate())
  loader = train(rows, transform=transforms.Transform(0, slow))
  stream = loader.iterate(0)
  for _ in range(5):
    next(stream)
  assert set(threading.enumerate()) - before
  stream.close()
  deadline = time.monotonic() + 10
  while set(threading.enumerate()) - before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert not set(threading.enumerate()) - before


@pytest.mark.slow
def test_who_reads_quickly_does_not_load_grain():
  code = (
    'import sys; import numpy as np; '
    'from repjax.data.batches import in_order; '
    'from repjax.data.reading import source; '
    'rows = source.from_arrays("x", {"image": np.zeros((8, 1))}); '
    'in_order._QUICK = 10.0; '
    'stream = in_order.train_batches(rows, batch_size=4, seed=0, '
    'process_index=0, process_count=1).iterate(0); '
    '[next(stream) for _ in range(9)]; '
    'assert "grain" not in sys.modules'
  )
  root = pathlib.Path(in_order.__file__).parents[3]
  subprocess.run([sys.executable, '-c', code], cwd=root, check=True)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(tmp_path):
  # In a process of its own: workers import the main module again.
  script = tmp_path / 'main.py'
  script.write_text(
    textwrap.dedent("""
    import sys

    from absl import app
    import numpy as np

    from repjax import types
    from repjax.data.batches import in_order
    from repjax.data.images import transforms
    from repjax.data.reading import source


    def main(argv):
      rows = source.from_arrays('rows', {'image': np.arange(
          48, dtype=np.uint8).reshape(12, 2, 2, 1)})

      def check(columns, draws):
        if (columns['image'] == 46).any():
          raise types.InputError('row 11 is broken')
        return columns

      loader = in_order.train_batches(
        rows, batch_size=2, seed=0, num_workers=1, process_index=0,
        process_count=1, transform=transforms.compose(
          transforms.Transform(0, check), transforms.random_crop(1)))
      with_row = 0
      while 11 not in in_order.rows_at(2 * with_row, 2, 12, 0):
        with_row += 1
      stream = loader.iterate(0)
      for step in range(with_row):
        for name, values in loader.batch(step).items():
          np.testing.assert_array_equal(next_batch(stream, name), values)
      try:
        next(stream)
      except types.InputError as error:
        print(with_row, 'batches, then', error)
      stream.close()

    current = {}

    def next_batch(stream, name):
      if name == 'image':
        current.update(next(stream))
      return current[name]


    if __name__ == '__main__':
      app.run(main)
    """)
  )
  root = pathlib.Path(__file__).resolve().parents[2]
  result = subprocess.run(
    [sys.executable, str(script)],
    env={'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'PATH': ''},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert 'batches, then row 11 is broken' in result.stdout, result.stderr


def test_every_row_counts_in_what_tells_sets_apart():
  columns = {'image': np.zeros((9000, 2, 2, 1), np.uint8)}
  labels = np.zeros(9000, np.int32)

  def told(labels):
    rows = source.from_arrays('x', {**columns, 'label': labels}, num_classes=2)
    return in_order.train_batches(rows, batch_size=8, seed=0).fingerprint()

  first = told(labels)
  assert told(labels.copy()) == first
  for row in (0, 5, 4096, 8999):
    changed = labels.copy()
    changed[row] = 1
    assert told(changed) != first


def test_names_and_kinds_of_columns_tell_sets_apart_and_their_order_does_not():
  def told(**columns):
    rows = source.from_arrays('x', columns)
    return in_order.train_batches(rows, batch_size=2, seed=0).fingerprint()

  zeros, ones = np.zeros(4, np.int32), np.ones(4, np.int32)
  first = told(a=zeros, b=ones)
  assert told(b=ones, a=zeros) == first
  assert told(a=zeros, c=ones) != first
  assert told(a=zeros.astype(np.float32), b=ones) != first
  assert told(a=zeros.reshape(4, 1), b=ones) != first

  def texts(*words):  # New objects: where they lie in memory says nothing.
    return np.array([bytes(list(x)) for x in words], object)

  first = told(text=texts(b'one', b'two'))
  assert told(text=texts(b'one', b'two')) == first
  assert told(text=texts(b'one', b'too')) != first
