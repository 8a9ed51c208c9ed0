"""The loop around a method that only counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import loop
from repjax import parallel
from repjax import types


def _init(rng, batch):
  del rng, batch
  return types.TrainState(jnp.zeros((), jnp.int32), jnp.zeros(()), (), {}, ())


def _update(state, batch, rng):
  del rng
  total, rows = parallel.psum(
    ((batch['x'] * batch['mask']).sum(), batch['mask'].sum())
  )
  state = state.replace(step=state.step + 1, params=state.params + total)
  return state, {'loss': (total, rows)}


_METHOD = types.Method(
  _init, _update, lambda state, batch: {'twice': 2 * batch['x']}
)


class _Stream:
  """Batches from a step on; says when it is closed."""

  def __init__(self, values):
    self.values, self.closed = values, False

  def __call__(self, start):
    self._at = start
    return self

  def __iter__(self):
    return self

  def __next__(self):
    if self._at == len(self.values):
      raise StopIteration
    self._at += 1
    value = self.values[self._at - 1]
    return {'x': np.full(4, value), 'mask': np.ones(4, np.float32)}

  def close(self):
    self.closed = True


def test_a_fit_goes_on_from_its_state_and_closes_the_stream():
  stream, seen = _Stream(np.arange(6.0)), []
  state = loop.fit(_METHOD, stream, steps=2, seed=0)
  assert (int(state.step), float(state.params)) == (2, 4 * 1)
  state = loop.fit(
    _METHOD,
    stream,
    steps=5,
    seed=0,
    state=state,
    hooks=(lambda step, state, sums: seen.append((step, sums['loss'])),),
  )
  assert float(state.params) == 4 * (0 + 1 + 2 + 3 + 4)
  assert jax.device_get(seen) == [(3, (8, 4)), (4, (12, 4)), (5, (16, 4))]
  assert stream.closed


def test_a_step_is_shown_before_it_is_made_and_compiled_once():
  shown, compiled, counts = [], [], []

  def count(name, seconds, **_):
    del seconds
    if counts and name.endswith('backend_compile_duration'):
      compiled.append(name)

  state = loop.init(_METHOD, {'x': np.ones(4), 'mask': np.ones(4)}, 0)
  stream = _Stream(np.arange(6.0))
  # What a fit compiles besides its step is compiled here.
  loop.fit(_METHOD, stream, steps=2, seed=0, state=state)
  # It stays, and counts nothing afterwards: not every JAX can forget it.
  jax.monitoring.register_event_duration_secs_listener(count)
  counts.append(True)
  for given in (None, shown.append):
    compiled.clear()
    loop.fit(
      types.Method(_init, lambda *x: _update(*x), _METHOD.predict),
      stream,
      steps=3,
      seed=0,
      state=state,
      compiled=given,
    )
    assert len(compiled) == 1
  counts.clear()
  (step,) = shown
  assert step.memory_analysis().argument_size_in_bytes > 0


def test_batches_that_end_too_early_are_named_by_their_step():
  stream = _Stream(np.arange(3.0))
  with pytest.raises(ValueError, match='ended at step 3, before steps=4'):
    loop.fit(_METHOD, stream, steps=4, seed=0)
  assert stream.closed


def test_progress_averages_an_interval_and_stops_at_the_first_nan():
  lines = []
  values = np.array([1.0, 3.0, 5.0, np.nan, 1.0, 1.0])
  progress = loop.Progress(
    every=2,
    steps=6,
    batch_size=4,
    write=lambda step, numbers: lines.append((step, numbers['loss'])),
  )
  with pytest.raises(types.NonFiniteError, match='loss is nan at step 4'):
    loop.fit(_METHOD, _Stream(values), steps=6, seed=0, hooks=(progress,))
  assert lines == [(2, 2.0)]


def _rows(values, stop=None, sums=None):
  """Step -> average, of steps that are logged every 4; and the last sums."""
  start = stop or 0
  rows = {}
  progress = loop.Progress(
    every=4,
    steps=8,
    batch_size=4,
    write=lambda step, numbers: rows.update({step: numbers['loss']}),
    start=start,
    sums=sums,
  )
  for step, value in enumerate(values, start + 1):
    total = (np.float32(value), np.float32(3))
    progress(step, None, {'loss': total})
  progress.check(None)
  return rows, progress.sums


def test_a_line_is_made_when_the_next_step_is_queued():
  events = []
  progress = loop.Progress(
    every=2,
    steps=7,
    batch_size=4,
    write=lambda step, numbers: events.append((step, numbers['loss'])),
  )
  queued = lambda step, state, sums: events.append(f'queued {step}')  # noqa: E731
  checked = lambda step, state, sums: step == 6 and progress.check(state)  # noqa: E731
  loop.fit(
    _METHOD,
    _Stream(np.arange(1.0, 8.0)),
    steps=7,
    seed=0,
    hooks=(queued, progress, checked),
  )
  assert events == [
    'queued 1',
    'queued 2',
    'queued 3',
    (2, 1.5),  # Of the steps up to 2 alone.
    'queued 4',
    'queued 5',
    (4, 3.5),
    'queued 6',
    (6, 5.5),  # Whoever saves a step has its line.
    'queued 7',
    (7, 7.0),  # And none is after the last one.
  ]


@pytest.mark.devices(4)
@pytest.mark.parametrize('count', [1, 4])
def test_a_long_interval_is_averaged_over_all_its_steps(count):
  # More steps than are fetched together, and not a multiple of them.
  values = np.random.default_rng(0).normal(size=47).astype(np.float32)
  lines = []

  def progress(**more):
    return loop.Progress(
      every=40,
      steps=47,
      batch_size=4,
      write=lambda step, numbers: lines.append((step, numbers['loss'])),
      **more,
    )

  devices = jax.local_devices()[:count]
  arguments = dict(steps=47, seed=0, devices=devices)
  hook = progress()
  loop.fit(_METHOD, _Stream(values), hooks=(hook,), **arguments)
  means = values[:40].mean(dtype=float), values[40:].mean(dtype=float)
  assert [x for x, _ in lines] == [40, 47]
  np.testing.assert_allclose([x for _, x in lines], means, rtol=1e-5)
  values[20], values[35] = np.inf, np.nan
  with pytest.raises(types.NonFiniteError, match='loss is inf at step 21'):
    loop.fit(_METHOD, _Stream(values), hooks=(progress(),), **arguments)


def test_sums_keep_their_types_when_they_are_stacked():
  big = 2**24 + 1  # No number of float32.
  progress = loop.Progress(
    every=100, steps=100, batch_size=4, write=lambda step, numbers: None
  )
  for step in range(1, 21):
    progress(step, None, {'rows': (jnp.int32(big), jnp.float32(step))})
  progress.check(None)
  assert progress.sums == {'rows': (20 * big, 210.0)}


def test_averages_of_a_resumed_run_are_over_the_whole_interval():
  values = np.random.default_rng(0).normal(size=8)
  whole, _ = _rows(values)
  assert whole[8] == pytest.approx(values[4:].mean() / 3, rel=1e-6)
  first, sums = _rows(values[:6])
  # As they come back from a checkpoint.
  sums = json.loads(json.dumps(sums))
  second, _ = _rows(values[6:], stop=6, sums=sums)
  assert {**first, **second} == whole


def test_a_prediction_that_is_not_finite_is_named_by_set_and_row():
  batch = {
    'x': np.array([3.0, 1.0, np.nan, 2.0]),
    'index': np.array([30, 10, 0, 20]),
    'mask': np.array([1, 1, 0, 1], np.float32),
  }
  state = loop.init(_METHOD, batch, seed=0)
  evaluate = loop.Evaluator(_METHOD)
  outputs, _ = evaluate(state, [batch])  # Padding may be anything.
  np.testing.assert_array_equal(outputs['twice'], [2, 4, 6])
  for value in (np.nan, np.inf):
    batch['x'][3] = value
    with pytest.raises(
      types.NonFiniteError, match=r'twice of row 20 of val .* \(1 of 3 rows'
    ):
      evaluate(state, [batch], split='val')


def test_evaluation_leaves_out_padding_and_keeps_the_order():
  batches = [
    {'x': np.array([3.0, 1.0, 9.0, 2.0]), 'index': np.array([3, 1, 0, 2])},
    {'x': np.array([0.0, 9.0, 9.0, 9.0]), 'index': np.array([0, 0, 0, 0])},
  ]
  for batch, mask in zip(batches, ([1, 1, 0, 1], [1, 0, 0, 0]), strict=True):
    batch['mask'] = np.asarray(mask, np.float32)
  state = loop.init(_METHOD, batches[0], seed=0)
  outputs, columns = loop.Evaluator(_METHOD)(state, batches)
  np.testing.assert_array_equal(outputs['twice'], [0, 2, 4, 6])
  np.testing.assert_array_equal(columns['x'], [0, 1, 2, 3])


def test_a_state_of_numpy_is_copied_to_devices_once(monkeypatch):
  copied, replicate = [], parallel.replicate

  def counting(*args):
    copied.append(args)
    return replicate(*args)

  monkeypatch.setattr(loop.parallel, 'replicate', counting)
  batch = {'x': np.ones(4, np.float32), 'mask': np.ones(4, np.float32)}
  evaluate = loop.Evaluator(_METHOD)
  state = loop.init(_METHOD, batch, seed=0)
  copied.clear()
  host = jax.tree.map(np.asarray, state)
  found, _ = evaluate(host, [batch] * 3)
  assert len(copied) == 1
  on_devices, _ = evaluate(state, [batch] * 3)
  assert len(copied) == 1
  np.testing.assert_array_equal(found['twice'], on_devices['twice'])


@pytest.mark.devices(4)
@pytest.mark.parametrize('count', [1, 4])
def test_predictions_of_many_batches_come_back_in_order(count):
  values = np.random.default_rng(0).permutation(np.arange(36.0))
  batches = [
    {'x': x, 'index': x.astype(np.int32), 'mask': np.ones(4, np.float32)}
    for x in values.reshape(9, 4)
  ]
  devices = jax.local_devices()[:count]
  state = loop.init(_METHOD, batches[0], 0, devices)
  outputs, columns = loop.Evaluator(_METHOD, devices)(state, batches)
  np.testing.assert_array_equal(outputs['twice'], 2 * np.arange(36))
  np.testing.assert_array_equal(columns['index'], np.arange(36))
