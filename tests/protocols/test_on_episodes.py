"""Thousands of episodes say what one by one says."""

import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.data.batches import episodes
from repjax.methods import distribution_calibration
from repjax.methods import few_shot
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import on_episodes
from repjax.protocols import side_by_side

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(6), 20)
FEATURES = (RNG.normal(size=(6, 5))[LABELS] + RNG.normal(size=(120, 5))).astype(
  np.float32
)
CLASSIFIERS = {
  'regression': few_shot.logistic_regression(),
  'centroid': few_shot.nearest_centroid(),
}


def test_accuracy_is_that_of_each_episode_alone():
  sampler = episodes.sampler(LABELS, ways=4, shots=2, queries=7, seed=3)
  found = on_episodes.accuracy(
    FEATURES, sampler, CLASSIFIERS, count=23, at_once=10
  )
  drawn = sampler.draw(0, 23)
  truth = np.repeat(np.arange(4), 7)
  for name, classify in CLASSIFIERS.items():
    classify = jax.jit(classify)
    assert found[name].shape == (23,)
    for index in range(23):
      logits = classify(
        FEATURES[drawn.support[index]],
        FEATURES[np.asarray(drawn.query[index]).ravel()],
        jax.random.key(0),
      )
      wanted = (np.asarray(logits).argmax(1) == truth).mean()
      np.testing.assert_allclose(found[name][index], wanted, atol=1e-6)


def test_chance_is_one_in_n_and_separate_classes_are_all_right():
  sampler = episodes.sampler(LABELS, ways=4, shots=2, queries=7)
  noise = RNG.normal(size=FEATURES.shape).astype(np.float32)
  of_noise = on_episodes.accuracy(noise, sampler, CLASSIFIERS, count=200)
  far = np.eye(6, dtype=np.float32)[LABELS] * 10
  of_far = on_episodes.accuracy(far, sampler, CLASSIFIERS, count=20)
  for name in CLASSIFIERS:
    assert abs(of_noise[name].mean() - 0.25) < 0.02
    assert of_far[name].min() == 1


@pytest.mark.parametrize(
  ('features', 'message'),
  [
    (FEATURES[:50], r'features must be \[R, D\] with R > 119'),
    (FEATURES * np.nan, 'not all finite'),
  ],
)
def test_features_that_do_not_fit_are_refused(features, message):
  sampler = episodes.sampler(LABELS, ways=4, shots=2, queries=7)
  with pytest.raises(types.InputError, match=message):
    on_episodes.accuracy(features, sampler, CLASSIFIERS, count=3)


def test_negative_features_under_a_power_are_refused_not_misjudged():
  sampler = episodes.sampler(LABELS, ways=4, shots=2, queries=7)
  classifiers = few_shot.regressions(power=None)
  on_episodes.accuracy(FEATURES, sampler, classifiers, count=2)
  with pytest.raises(
    types.InputError, match=r"'power' .* are negative have no"
  ):
    on_episodes.accuracy(
      FEATURES, sampler, few_shot.regressions(power=0.5), count=2
    )


def test_what_a_classifier_draws_is_its_episodes_whatever_goes_at_once():
  def chance(support, query, rng):
    return jax.random.normal(rng, (len(query), len(support)))

  sampler = episodes.sampler(LABELS, ways=4, shots=2, queries=7)
  few, all_of = (
    on_episodes.accuracy(FEATURES, sampler, {'it': chance}, count=9, at_once=x)
    for x in (4, 9)
  )
  np.testing.assert_array_equal(few['it'], all_of['it'])
  assert len(set(few['it'])) > 2


def test_features_are_what_the_layer_sees():
  # The head of an MLP sees the hidden layer's rows, computed by hand here.
  method = supervised.make(
    mlp.Mlp(num_classes=3, features=(4,)), optax.sgd(0.1)
  )
  rows = {
    'image': RNG.normal(size=(7, 2, 2, 1)).astype(np.float32),
    'label': np.arange(7) % 3,
  }
  states = jax.jit(
    lambda rows: side_by_side.begin(method, {}, (0, 1), shared=rows)
  )(rows)
  found = on_episodes.features(method, states, rows, layer='head', at_once=3)
  assert found.shape == (2, 7, 4)
  for seed in range(2):
    hidden = jax.tree.map(
      lambda x, s=seed: x[s], jax.device_get(states.params['hidden_0'])
    )
    wanted = (
      rows['image'].reshape(7, 4) @ hidden['kernel'] + hidden['bias'][None]
    )
    np.testing.assert_allclose(found[seed], np.maximum(wanted, 0), atol=1e-5)


def test_drawn_classifiers_say_alone_what_they_say_among_others():
  base = distribution_calibration.statistics(abs(FEATURES), LABELS)
  classify = jax.jit(distribution_calibration.classifier(base, num_drawn=10))
  support = abs(FEATURES[:40]).reshape(2, 4, 5, 5)[:, :3, :2]
  query = abs(FEATURES[40:60]).reshape(2, 10, 5)
  keys = jax.random.split(jax.random.key(0), 2)
  together = jax.jit(jax.vmap(classify))(support, query, keys)
  for index in range(2):
    np.testing.assert_allclose(
      together[index],
      classify(support[index], query[index], keys[index]),
      atol=1e-4,
    )


def test_any_seed_of_32_bits_draws_episodes():
  asked = dict(ways=4, shots=2, queries=7)
  for seed in (2**31 - 1, 2**32 - 1):
    sampler = episodes.sampler(LABELS, **asked, seed=seed)
    found = on_episodes.accuracy(FEATURES, sampler, CLASSIFIERS, count=3)
    assert all(x.shape == (3,) for x in found.values())
  for seed in (-1, 2**32):
    with pytest.raises(types.InputError, match='seed'):
      episodes.sampler(LABELS, **asked, seed=seed)
