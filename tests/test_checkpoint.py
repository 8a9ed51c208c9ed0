"""Checkpoints are whole or not at all, and strict about what they hold."""

import pathlib
import resource
from typing import NamedTuple

from absl import logging
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import types

pytestmark = pytest.mark.versions


class _Extra(NamedTuple):
  key: jax.Array
  empty: jax.Array


def _state(step=1, width=3, fill=1.0):
  params = {'layer': {'kernel': jnp.full((width, 2), fill, jnp.float32)}}
  return types.TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    model_state={'stats': {'mean': jnp.full((2,), fill, jnp.bfloat16)}},
    extra=_Extra(jax.random.key(step), jnp.zeros((0, 3))),
  )


def _data(state):
  return state.replace(
    extra=state.extra._replace(key=jax.random.key_data(state.extra.key))
  )


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: lines.append(text % args)
  )
  return lines


def _save(store, *states, metrics=None):
  for state in states:
    store.save(state, {'lr': 0.1}, metrics)
  store.wait()


def test_a_round_trip_is_exact(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path))
  assert store.restore(_state()) is None
  _save(store, _state(7, fill=0.1))
  state, config = store.restore(_state(0))
  chex.assert_trees_all_equal(_data(state), _data(_state(7, fill=0.1)))
  chex.assert_trees_all_equal_dtypes(_data(state), _data(_state(7)))
  assert jax.dtypes.issubdtype(state.extra.key.dtype, jax.dtypes.prng_key)
  assert config == {'lr': 0.1}
  store.close()


def test_keeps_the_newest_and_the_best(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path), keep=2, best='accuracy')
  for step, accuracy in enumerate([0.1, 0.9, 0.3, 0.2, 0.4], start=1):
    _save(store, _state(step), metrics={'accuracy': accuracy})
  _save(store, _state(6))  # Without an evaluation.
  assert store.steps() == [2, 5, 6]
  assert store.best_step() == 2
  store.close()
  again = checkpoint.Checkpoints(str(tmp_path), keep=2, best='accuracy')
  assert again.best_step() == 2
  again.close()


def test_the_best_may_be_the_smallest(tmp_path):
  store = checkpoint.Checkpoints(
    str(tmp_path), keep=1, best='loss', best_mode='min'
  )
  for step, loss in enumerate([0.5, 0.1, 0.3], start=1):
    _save(store, _state(step), metrics={'loss': loss})
  assert store.steps() == [2, 3]
  store.close()


def _payload(folder):
  """Files that hold a checkpoint's content."""
  return sorted(
    path
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file()
    and path.stat().st_size > 0
    and path.name not in ('commit_success.txt', '_CHECKPOINT_METADATA')
    and 'metrics' not in path.parts
  )


@pytest.mark.parametrize('damage', ['truncate', 'empty', 'flip', 'remove'])
def test_a_damaged_checkpoint_is_skipped_by_name(tmp_path, damage, warnings):
  reference = checkpoint.Checkpoints(str(tmp_path / 'a'), keep=3)
  _save(reference, _state(1, fill=0.1), _state(2, fill=0.2))
  files = _payload(tmp_path / 'a' / '2' / 'state') + _payload(
    tmp_path / 'a' / '2' / 'meta'
  )
  assert len(files) >= 3
  hits = 0
  for path in files:
    whole = path.read_bytes()
    if damage == 'remove':
      path.unlink()
    elif damage == 'flip':
      middle = len(whole) // 2
      path.write_bytes(
        whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
      )
    else:
      path.write_bytes(
        whole[: len(whole) // 2] if damage == 'truncate' else b''
      )
    warnings.clear()
    state, _ = reference.restore(_state(0))
    path.write_bytes(whole)
    if int(state.step) == 1:
      # Skipped, with its name, in favour of the older one.
      hits += 1
      assert any('/2' in line and 'damaged' in line for line in warnings)
      chex.assert_trees_all_equal(_data(state), _data(_state(1, fill=0.1)))
    else:
      # This file was not needed: then what was read is still exact.
      chex.assert_trees_all_equal(_data(state), _data(_state(2, fill=0.2)))
  assert hits >= 2
  reference.close()


@pytest.mark.parametrize(
  ('said', 'named'), [('', 'AssertionError'), ('\nno array\n', 'no array')]
)
def test_damage_is_skipped_whatever_its_message(
  said, named, tmp_path, warnings, monkeypatch
):
  store = checkpoint.Checkpoints(str(tmp_path))
  _save(store, _state(1), _state(2))
  restore = store._manager.restore

  def damaged(step, **kwargs):
    if step == 2:
      raise AssertionError(said)
    return restore(step, **kwargs)

  monkeypatch.setattr(store._manager, 'restore', damaged)
  assert int(store.restore(_state())[0].step) == 1
  assert warnings == [
    f'Skipping the damaged checkpoint {tmp_path / "2"}: {named}'
  ]
  store.close()


def test_no_whole_checkpoint_is_an_error(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path))
  _save(store, _state(3))
  for path in _payload(tmp_path / '3'):
    path.write_bytes(b'')
  with pytest.raises(types.InputError, match=r'steps \[3\].*--workdir'):
    store.restore(_state(0))
  store.close()


def test_skipped_checkpoints_are_set_aside_not_deleted(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path), keep=3)
  _save(store, _state(1), _state(2))
  store.set_aside_after(1)
  assert store.steps() == [1]
  assert len(list(tmp_path.glob('damaged-2-*'))) == 1
  _save(store, _state(2, fill=5.0))
  state, _ = store.restore(_state(0))
  chex.assert_trees_all_equal(_data(state), _data(_state(2, fill=5.0)))
  store.close()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path))
  _save(store, _state(1))
  with pytest.raises(types.InputError, match=r'params/layer/kernel \(3, 2\)'):
    store.restore(_state(1, width=4))
  other = _state(1)
  other = other.replace(params={'other': other.params['layer']})
  with pytest.raises(types.InputError, match=r'missing.*params/other/kernel'):
    store.restore(other)
  store.close()


def test_a_step_that_is_not_there_is_an_error(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path))
  _save(store, _state(1))
  with pytest.raises(types.InputError, match=r'no checkpoint of step 5.*\[1\]'):
    store.restore(_state(0), step=5)
  store.close()


def test_nothing_is_written_of_a_state_that_is_not_finite(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path))
  with pytest.raises(types.NonFiniteError, match=r'layer/kernel.*step 4'):
    store.save(_state(4, fill=np.nan), {})
  assert store.steps() == []
  store.close()


def test_a_full_disk_is_said_and_the_older_checkpoint_stays(tmp_path):
  store = checkpoint.Checkpoints(str(tmp_path), keep=3)
  _save(store, _state(1, width=50_000))
  noise = jax.random.normal(jax.random.key(0), (50_000, 2))
  large = _state(2, width=50_000).replace(params={'layer': {'kernel': noise}})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
  try:
    with pytest.raises(OSError, match=r'Whole checkpoints there: \[1\]'):
      _save(store, large)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  again = checkpoint.Checkpoints(str(tmp_path), keep=3)
  state, _ = again.restore(_state(0, width=50_000))
  assert int(state.step) == 1
  again.close()


def test_differing_fields_are_named():
  lines = checkpoint.differing_fields(
    {'a': 1, 'tx': {'lr': 0.1, 'old': 2}}, {'a': 1, 'tx': {'lr': 0.2, 'new': 3}}
  )
  assert lines == [
    'tx.lr: 0.1 -> 0.2',
    'tx.new: (absent) -> 3',
    'tx.old: 2 -> (absent)',
  ]


def test_a_measure_that_is_no_number_is_not_the_smallest(tmp_path):
  store = checkpoint.Checkpoints(
    str(tmp_path), keep=1, best='loss', best_mode='min'
  )
  for step, loss in enumerate([0.5, np.nan, 0.7], start=1):
    _save(store, _state(step), metrics={'loss': loss})
  assert (store.steps(), store.best_step()) == ([1, 3], 1)
  store.close()
