"""What every method must keep, checked on every recipe's smoke preset.

A recipe whose paper breaks a property by nature says so, `EXEMPT = {'rows are
independent': 'batch statistics (sec. 3.2)'}`; the property must then fail here,
so that no exemption outlives its reason.
"""

import functools
import importlib
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import loop
from repjax import parallel
from repjax import trees
from repjax import types

_CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parent.parent / 'configs').glob('[a-z]*')
  if path.suffix == '.py' and path.stem != 'presets'
)
_PROPERTIES = set()  # Those that can be exempted.


class Bench:
  """One recipe's method with its batches, compiled once for many tests."""

  def __init__(self, module):
    # Adam and momentum hide a gradient that is wrong by a factor.
    self.experiment = module.build(
      module.get_config('smoke'),
      optimizer=lambda *args, **kwargs: optax.sgd(0.05),
    )
    self.exempt = getattr(module, 'EXEMPT', {})
    unknown = set(self.exempt) - _PROPERTIES
    if unknown:
      raise ValueError(
        f'{module.__name__}.EXEMPT names {sorted(unknown)}; what can be '
        f'exempted is {sorted(_PROPERTIES)}'
      )
    self.method = self.experiment.method
    self.traces = 0
    self.step = parallel.train_step(self._counted)
    self.step_on_one = parallel.train_step(
      self.method.update, jax.local_devices()[:1]
    )
    self.batches = [self.experiment.train.batch(i) for i in range(3)]
    self.rng = jax.random.key(3)

  def _counted(self, state, batch, rng):
    self.traces += 1
    return self.method.update(state, batch, rng)

  def init(self, seed=0, devices=None):
    return loop.init(self.method, self.batches[0], seed, devices)

  def update(self, state, batch):
    return self.step(state, parallel.shard(batch), self.rng)

  def run(self, batches, seed=0):
    state = self.init(seed)
    for batch in batches:
      state, sums = self.update(state, batch)
    return jax.device_get((parallel.whole(state), sums))


@pytest.fixture(scope='module', params=_CONFIGS)
def bench(request):
  return Bench(importlib.import_module(f'configs.{request.param}'))


def keeps(name):
  """A test of the property `name`; where it is exempted, that it fails."""
  _PROPERTIES.add(name)

  def decorate(test):
    @functools.wraps(test)
    def checked(bench, *args, **kwargs):
      if name not in bench.exempt:
        test(bench, *args, **kwargs)
        return
      try:
        test(bench, *args, **kwargs)
      except AssertionError:
        return
      pytest.fail(
        f'the property {name!r} is exempted, but it holds: take it '
        'out of EXEMPT'
      )

    return checked

  return decorate


def _data(state):
  return jax.tree.map(
    lambda x: (
      jax.random.key_data(x)
      if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
      else x
    ),
    state,
  )


@pytest.mark.versions
def test_three_updates_are_finite_stable_and_traced_once(bench):
  state = bench.init()
  like = jax.eval_shape(lambda x: x, state)
  for i, batch in enumerate(bench.batches):
    state, sums = bench.update(state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(like, state)
    assert int(state.step) == i + 1
  chex.assert_tree_all_finite(jax.device_get((state.params, sums)))
  assert bench.traces == 1  # Whatever tests came before.


@pytest.mark.devices(4)
@pytest.mark.versions
def test_replicas_are_equal_leaf_by_leaf(bench):
  # What comes back as replicated is one buffer a device, and nothing checks
  # that they agree: a forgotten psum shows one value while the others differ.
  state, sums = bench.update(bench.init(), bench.batches[0])
  copied, _ = trees.apart(state)  # Of tables in parts devices have their own.
  for leaf in jax.tree.leaves(_data((copied, sums))):
    replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(replicas) == 4
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])


@pytest.mark.devices(4)
@keeps('one device equals four')
def test_one_device_equals_four(bench):
  one = jax.local_devices()[:1]
  state = bench.init(devices=one)
  for batch in bench.batches:
    state, sums = bench.step_on_one(
      state, parallel.shard(batch, one), bench.rng
    )
  expected = jax.device_get((_data(state), sums))
  actual = bench.run(bench.batches)
  chex.assert_trees_all_close(
    (_data(actual[0]), actual[1]), expected, rtol=1e-4, atol=2e-6
  )


# One recipe of each kind of method: one loss, rows that meet, a teacher, a
# queue, statistics, two losses, words, groups, a private optimizer, an actor.
# `make test` leaves most of them out.
_KINDS = ['sam', 'pico', 'dp_finetuning']
_KINDS += [
  pytest.param(x, marks=pytest.mark.dear)
  for x in ('mixup', 'esvit', 'tent', 'vitgan', 'flan', 'wilds', 'sac')
]


@pytest.mark.parametrize('bench', _KINDS, indirect=True)
def test_one_device_makes_the_numbers_of_a_mapped_one(bench):
  one = jax.local_devices()[:1]
  mapped_step = jax.pmap(
    lambda state, batch, rng: bench.method.update(
      state, batch, jax.random.fold_in(rng, state.step)
    ),
    axis_name=parallel.AXIS,
    in_axes=(None, 0, None),
    out_axes=None,
    devices=one,
  )
  mapped_predict = jax.pmap(
    bench.method.predict,
    axis_name=parallel.AXIS,
    in_axes=(None, 0),
    out_axes=0,
    devices=one,
  )
  state, mapped = bench.init(devices=one), bench.init(devices=one)
  for batch in bench.batches:
    rows = {name: x[None] for name, x in batch.items()}
    mapped, expected = mapped_step(mapped, rows, bench.rng)
    state, sums = bench.step_on_one(
      state, parallel.shard(batch, one), bench.rng
    )
    chex.assert_trees_all_equal(sums, expected)
  chex.assert_trees_all_equal(_data(state), _data(mapped))
  outputs, _ = parallel.predict_step(bench.method.predict, one)(
    state, parallel.shard(batch, one)
  )
  expected = {k: x[0] for k, x in mapped_predict(mapped, rows).items()}
  chex.assert_trees_all_equal(dict(outputs), expected)


@pytest.mark.parametrize('num_real', [11, 5])
@keeps('padding counts for nothing')
def test_garbage_in_padding_changes_nothing(bench, num_real):
  # With 5 real rows of 16 and more, some devices hold padding alone.
  batch = dict(bench.batches[0])
  mask = np.arange(len(batch['mask'])) < num_real
  clean, dirty = {}, {}
  for name, x in batch.items():
    shaped = mask.reshape(-1, *[1] * (x.ndim - 1))
    garbage = np.nan if np.issubdtype(x.dtype, np.floating) else 10**6
    clean[name] = np.where(shaped, x, 0).astype(x.dtype)
    dirty[name] = np.where(shaped, x, garbage).astype(x.dtype)
  clean['mask'] = dirty['mask'] = mask.astype(np.float32)
  expected, sums = bench.run([clean])
  chex.assert_trees_all_equal((expected, sums), bench.run([dirty]))
  assert float(sums['loss'][1]) == num_real
  # And the real rows do count.
  assert not np.array_equal(
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected.params)]),
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(bench.init().params)]),
  )


@keeps('rows are independent')
def test_prediction_is_deterministic_and_per_row(bench):
  # After a step: a head that starts at zero predicts the same of all rows.
  state, _ = bench.update(bench.init(), bench.batches[0])
  evaluator = loop.Evaluator(bench.method)
  # Without 'index', rows come back in the order of the batch.
  batch = {k: x for k, x in bench.batches[0].items() if k != 'index'}
  first, _ = evaluator(state, [batch])
  again, _ = evaluator(state, [batch])
  chex.assert_trees_all_equal(first, again)
  # A row's prediction does not depend on the others, which do change.
  changed = dict(batch)
  for name in set(types.INPUTS) & set(batch):
    changed[name] = np.array(batch[name])
    if np.issubdtype(changed[name].dtype, np.floating):
      changed[name][1:] += 1.0
    else:  # Ids stay ids in another order.
      changed[name][1:] = batch[name][1:, ::-1]
  assert any((changed[name] != batch[name]).any() for name in changed)
  other, _ = evaluator(state, [changed])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-6),
    first,
    other,
  )
  assert any(not np.allclose(first[x][1:], other[x][1:]) for x in first)


@pytest.mark.versions
def test_saving_and_restoring_changes_nothing(bench, tmp_path):
  state = bench.init()
  state, _ = bench.update(state, bench.batches[0])
  store = checkpoint.Checkpoints(str(tmp_path))
  store.save(state, {'name': 'bench'})
  store.wait()
  restored, config = store.restore(bench.init(seed=1))
  store.close()
  assert config == {'name': 'bench'}
  expected, _ = bench.update(state, bench.batches[1])
  actual, _ = bench.update(parallel.replicate(restored), bench.batches[1])
  chex.assert_trees_all_equal(_data(actual), _data(expected))


def test_seeds_decide_and_buffers_are_distinct(bench):
  first, again, other = bench.init(0), bench.init(0), bench.init(1)
  chex.assert_trees_all_equal(_data(first), _data(again))
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(_data(first.params), _data(other.params))
  # A buffer that a state holds twice must not be donated.
  pointers = [
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves(_data(first))
    for shard in leaf.addressable_shards
    if shard.data.size
  ]
  assert len(pointers) == len(set(pointers))


@keeps('an empty batch is harmless')
def test_masked_rows_of_a_whole_batch_give_a_zero_gradient(bench):
  batch = dict(bench.batches[0])
  batch['mask'] = np.zeros_like(batch['mask'])
  state, sums = bench.run([batch])
  chex.assert_tree_all_finite(state.params)
  assert float(sums['loss'][1]) == 0.0
  assert jnp.isfinite(sums['loss'][0])


class _Recipe:
  """A recipe whose rows see each other, or claim to."""

  __name__ = 'recipe'

  def __init__(self, exempt, *, mixes):
    self.EXEMPT, self._mixes = exempt, mixes

  def get_config(self, preset):
    return importlib.import_module('configs.sam').get_config(preset)

  def build(self, config, optimizer):
    made = importlib.import_module('configs.sam').build(config, optimizer)
    if not self._mixes:
      return made

    def predict(state, batch):
      logits = made.method.predict(state, batch)['logits']
      return {'logits': logits - logits.mean(0, keepdims=True)}

    return made._replace(method=made.method._replace(predict=predict))


@pytest.mark.parametrize('mixes', [True, False])
def test_an_exemption_must_be_true(mixes):
  rows = 'rows are independent'
  exempt = Bench(_Recipe({rows: 'their mean is taken off'}, mixes=mixes))
  if mixes:
    test_prediction_is_deterministic_and_per_row(exempt)
    with pytest.raises(AssertionError):
      test_prediction_is_deterministic_and_per_row(
        Bench(_Recipe({}, mixes=True))
      )
  else:
    with pytest.raises(pytest.fail.Exception, match='it holds'):
      test_prediction_is_deterministic_and_per_row(exempt)


def test_an_exemption_from_nothing_is_refused():
  with pytest.raises(ValueError, match='rows are independent'):
    Bench(_Recipe({'rows are blue': 'who knows'}, mixes=False))
