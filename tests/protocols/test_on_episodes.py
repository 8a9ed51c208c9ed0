"""Thousands of episodes say what one by one says."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.data.batches import episodes
from repjax.methods import few_shot
from repjax.protocols import on_episodes

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
