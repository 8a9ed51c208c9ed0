"""Rates that go side by side against runs of their own."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import lp_ft
from repjax.models import mlp
from repjax.protocols import fine_tuning
from repjax.protocols import rate_search
from repjax.protocols import side_by_side

MODEL = mlp.Mlp(3, features=(5,))
SEEDS = (4, 7)
TRAINING = dict(seeds=SEEDS, batch_size=8, steps=6)
TUNING = dict(TRAINING, rule=rate_search.one_standard_error, points=3)


def columns(num_rows, seed):
  rng = np.random.default_rng(seed)
  label = np.arange(num_rows, dtype=np.int32) % 3
  image = rng.normal(size=(num_rows, 2, 2, 1)) + label[:, None, None, None]
  return {'image': image.astype(np.float32), 'label': label}


@pytest.fixture(scope='module')
def starts():
  """Two backbones, with random heads and with probes."""
  method = lp_ft.make(MODEL, side_by_side.swept(optax.sgd(1.0, momentum=0.9)))
  batch = {**columns(1, 0), 'mask': np.ones(1, np.float32)}
  backbones = jax.vmap(lambda rng: method.init(rng, batch).params)(
    jax.random.split(jax.random.key(9), 2)
  )
  random = fine_tuning.starts(method, backbones, columns(3, 0), seeds=SEEDS)
  probed = fine_tuning.probe(
    MODEL, random, columns(30, 1), columns(30, 2), num_classes=3, grid=[1.0]
  )
  return method, backbones, {'FT': random, 'LP-FT': probed}


def test_starts_have_the_backbones_and_heads_of_their_own(starts):
  _, backbones, states = starts
  for state in states.values():
    chex.assert_trees_all_equal(state.params['hidden_0'], backbones['hidden_0'])
  kernels = states['FT'].params['head']['kernel']
  assert not np.allclose(kernels, backbones['head']['kernel'])
  assert not np.allclose(kernels[0], kernels[1])
  rows = columns(30, 1)
  random, probed = (
    side_by_side.accuracy(fine_tuning.predict_fn(MODEL)(x, rows), rows)
    for x in states.values()
  )
  assert (probed > random).all()


def test_rates_side_by_side_are_runs_of_their_own(starts):
  method, _, states = starts
  train, val = columns(20, 3), columns(30, 4)
  states = {'FT': states['FT']}
  found = rate_search.tune(
    'test', method, states, train, val, rates=(1e-3, 0.1), **TUNING
  )
  for name, start in states.items():
    alone = {}
    for rate in (1e-3, 0.1):
      plain = lp_ft.make(MODEL, optax.sgd(rate, momentum=0.9))
      own = jax.vmap(plain.init, in_axes=(0, None))(
        jax.random.split(jax.random.key(0), 2),
        {**columns(1, 0), 'mask': np.ones(1, np.float32)},
      )
      alone[rate] = side_by_side.train(
        'alone',
        plain,
        side_by_side.per_seed(train, SEEDS),
        val,
        states=own.replace(params=start.params),
        **TRAINING,
      )
    np.testing.assert_allclose(
      found[name].scores, [x.score for x in alone.values()], atol=1e-6
    )
    best = max(x.score.mean() for x in alone.values())
    (error,) = {
      abs(x.score[0] - x.score[1]) / 2  # Of the mean of two seeds.
      for x in alone.values()
      if x.score.mean() == best
    }
    best = min(
      rate for rate, x in alone.items() if x.score.mean() >= best - error
    )
    assert found[name].rate == best
    chex.assert_trees_all_close(
      found[name].states.params, alone[best].states.params, atol=1e-5
    )


def test_of_equal_rates_the_smaller_one_is_chosen(starts):
  method, _, states = starts
  found = rate_search.tune(
    'test',
    method,
    {'LP-FT': states['LP-FT']},
    columns(20, 3),
    columns(30, 4),
    rates=(1e-9, 2e-9),
    **TUNING,
  )['LP-FT']
  np.testing.assert_array_equal(found.scores[0], found.scores[1])
  assert found.rate == 1e-9
  with pytest.raises(types.InputError, match='rates must rise'):
    rate_search.tune('test', method, {}, {}, {}, rates=(0.1, 0.01), **TUNING)


def test_a_rate_that_diverges_is_not_chosen(starts):
  method, _, states = starts
  tune = functools.partial(
    rate_search.tune,
    'test',
    method,
    {'FT': states['FT']},
    columns(20, 3),
    columns(30, 4),
    **{**TUNING, 'rule': lambda scores: int(scores.mean(-1).argmax())},
  )
  alone = tune(rates=(1e-3,))['FT']
  found = tune(rates=(1e-3, 1e30))['FT']
  assert found.rate == 1e-3
  chex.assert_trees_all_close(found.states.params, alone.states.params)
  # What it scores is what its rows score: none is right.
  np.testing.assert_array_equal(found.scores[1], 0.0)
  with pytest.raises(types.NonFiniteError, match='FT diverges at every rate'):
    tune(rates=(1e30, 1e31))


def test_held_out_rows_choose_and_others_are_reported(starts):
  method, _, states = starts
  held_out = columns(30, 4)
  other = {**held_out, 'label': (held_out['label'] + 1) % 3}
  tune = functools.partial(
    rate_search.tune,
    *('test', method, {'FT': states['FT']}, columns(20, 3), held_out),
    rates=(1e-3, 0.1),
    **TUNING,
  )
  alone, both = tune()['FT'], tune(test=other)['FT']
  np.testing.assert_allclose(both.scores, alone.scores, atol=1e-6)
  assert both.rate == alone.rate
  np.testing.assert_allclose(
    both.score, side_by_side.accuracy(both.outputs, other), atol=1e-6
  )
  assert (both.score != alone.score).any()
