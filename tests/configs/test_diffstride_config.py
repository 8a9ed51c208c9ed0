"""The paper's shapes, and that strides learn in their own group."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from configs import diffstride
from configs.parts import known_bands
from configs.studies import diffstride as study
from repjax import trees
from repjax.optim import strides


def test_the_papers_network_has_its_size_and_crops():
  config = diffstride.get_config('paper')
  config.stride.room = 1.0
  model = diffstride.network(config, 10)
  image = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda rng, image: model.init(rng, image, train=False),
    jax.random.key(0),
    image,
  )
  # ResNet-18 for small images, and two strides for each of three stages.
  assert trees.size(variables['params']) == 11_172_170 + 6
  _, seen = jax.eval_shape(
    lambda variables, image: model.apply(
      variables,
      image,
      train=False,
      capture_intermediates=lambda module, _: len(module.path) == 1,
      mutable=['intermediates'],
    ),
    variables,
    image,
  )
  sides = [
    seen['intermediates'][f'stage_{i}']['__call__'][0].shape[1]
    for i in range(4)
  ]
  assert sides == [32, 24, 20, 18]


def test_an_update_moves_strides_by_loss_and_price():
  config = diffstride.get_config('smoke')
  data = np.random.default_rng(0)
  batch = {
    'image': data.normal(size=(4, 12, 12, 1)).astype(np.float32),
    'label': np.arange(4),
    'mask': np.ones(4, np.float32),
  }
  moved = {}
  for price in (0.0, 10.0):
    config.stride_cost = price
    method = diffstride.method(config, 10, 6)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    after, _ = jax.jit(method.update)(state, batch, jax.random.key(1))
    for path, x in strides.in_order(after.params):
      assert path[-3:] == ('block_0', 'pool', 'strides')
      moved.setdefault(price, []).append(np.asarray(x))
  start = np.array(config.stride.strides)[:, None]
  assert abs(np.stack(moved[0.0]) - start).max() > 0
  assert (np.stack(moved[10.0]) > np.stack(moved[0.0])).all()


def test_a_study_has_poor_and_good_strides_of_its_networks_depth():
  for preset in ('paper', 'small', 'cifar10', 'smoke', 'gpu'):
    config = study.get_config(preset)
    stages = len(config.net.stage_sizes)
    assert len(config.stride.strides) == stages - 1 == len(config.study.good)
    assert max(config.stride.strides) > max(config.study.good)


def test_strides_find_the_band():
  np.testing.assert_array_less(known_bands.error(0, edges=(4,)), 0.02)


def test_each_kind_is_measured_at_its_own_best_rate(monkeypatch):
  best = {'strided': 0.1, 'spectral': 0.3, 'learnt': 0.03}
  asked = []

  def train(name, config, data, splits, seeds, *, kind, strides=None):
    rate = config.tx.learning_rate
    asked.append((name, kind, rate, splits))
    score = np.full(len(seeds), 1 / (1 + abs(np.log(rate / best[kind]))))
    trained = types.SimpleNamespace(score=score, curve=([0], score[None]))
    network = diffstride.network(config, 10, kind='strided', strides=(2.0, 2.0))
    learnt = {'stage_1/pool': (np.ones(1), np.ones((1, len(seeds), 2)))}
    return study._Found(trained, network, learnt if kind == 'learnt' else {})

  monkeypatch.setattr(study, '_train', train)
  monkeypatch.setattr(study.known_bands, 'error', lambda seed: np.zeros(1))
  config = study.get_config('smoke')
  config.study.rates = (0.03, 0.1, 0.3)
  found = study.run(config, seeds=(0, 1)).scalars
  tuning = [x for x in asked if ', rate ' in x[0]]
  assert len(tuning) == 15
  assert {x[3] for x in tuning} == {(config.study.tune, config.study.held_out)}
  measured = [x for x in asked if x not in tuning]
  assert [x[0] for x in measured if x[1] == 'strided'] == [
    'strided, poor',
    'strided, good',
    'wide strided, poor',
  ]
  for _, kind, rate, splits in measured:
    assert rate == best[kind] and splits == ('train', 'test')
  # The best rates of two kinds are at an end of the grid.
  np.testing.assert_allclose(found['rates_inside'], [2 / 5, 2 / 5])
