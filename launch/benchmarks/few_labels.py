"""Few-shot episodes, many at once against one after the other."""

import functools
import time
from typing import Any

import numpy as np

from launch.lib import timing

_WAYS, _SHOTS, _QUERIES, _WIDTH = 5, 5, 15, 64
_EPISODES, _OTHERS = 1000, 20
# Of WRN-28-10 and of a base class of miniImageNet.
_PUBLISHED_WIDTH, _PUBLISHED_ROWS, _DRAWN, _ROWS = 640, 600, 750, 10


def episodes(rounds: int) -> dict[str, Any]:
  """Five-way five-shot episodes a second, logistic regression on 64 features.

  The other side is scikit-learn, one episode after the other. Their accuracies
  stand beside each other.
  """
  from sklearn import linear_model

  from repjax.data.batches import episodes as batches
  from repjax.methods import few_shot
  from repjax.protocols import on_episodes

  features, labels = _features(num_classes=20, rows=60, width=_WIDTH)
  sampler = batches.sampler(
    labels, ways=_WAYS, shots=_SHOTS, queries=_QUERIES, seed=0
  )
  classifiers = {'regression': few_shot.logistic_regression()}
  drawn = sampler.draw(0, _OTHERS)
  truth = [np.repeat(np.arange(_WAYS), x) for x in (_SHOTS, _QUERIES)]
  accuracy: dict[str, float] = {}
  seconds: dict[str, list[float]] = {'ours': [], 'theirs': []}

  def ours():
    start = time.perf_counter()
    found = on_episodes.accuracy(
      features, sampler, classifiers, count=_EPISODES
    )
    seconds['ours'].append((time.perf_counter() - start) / _EPISODES)
    accuracy['ours'] = float(found['regression'][:_OTHERS].mean())
    return seconds['ours'][-1]

  def theirs():
    start = time.perf_counter()
    scores = []
    for support, query in zip(drawn.support, drawn.query, strict=True):
      model = linear_model.LogisticRegression(max_iter=1000)
      model.fit(features[np.ravel(support)], truth[0])
      scores.append(model.score(features[np.ravel(query)], truth[1]))
    seconds['theirs'].append((time.perf_counter() - start) / _OTHERS)
    accuracy['theirs'] = float(np.mean(scores))
    return seconds['theirs'][-1]

  ratio = timing.alternate(rounds, theirs, ours)
  return {
    'episodes_per_second': _per_second(seconds['ours']),
    'scikit_learn_per_second': _per_second(seconds['theirs']),
    'times_faster': round(ratio, 1),
    'accuracy': round(accuracy['ours'], 4),
    'scikit_learn_accuracy': round(accuracy['theirs'], 4),
  }


def calibration(rounds: int) -> dict[str, Any]:
  """Distribution Calibration: draws for one row, and whole one-shot episodes.

  Draws are 750 of 640 features around two base classes of 600 rows, as in the
  paper, or 150 as for each of five rows; the published way decomposes their
  covariance for each row (`np.random.multivariate_normal`). Episodes are of 64
  features; the published way is that, and scikit-learn.
  """
  import jax
  from sklearn import linear_model

  from repjax.methods import distribution_calibration

  wide = _Base(num_classes=2, width=_PUBLISHED_WIDTH)
  row = np.sqrt(wide.features[0]).astype(np.float32)
  draw = jax.jit(
    functools.partial(distribution_calibration.drawn, base=wide.base, row=row),
    static_argnames='num_drawn',
  )

  def drawn(num):
    keys = jax.random.split(jax.random.key(0), _ROWS)
    # Threads of NumPy's library still wait for more of the published way's
    # work when a first row would be timed.
    jax.block_until_ready(draw(keys[0], num_drawn=num))
    start = time.perf_counter()
    for key in keys:
      jax.block_until_ready(draw(key, num_drawn=num))
    return (time.perf_counter() - start) / _ROWS

  def decomposed(num):
    start = time.perf_counter()
    wide.published(row, np.random.default_rng(0), num)
    return time.perf_counter() - start

  def ratio(num):
    return timing.alternate(rounds, lambda: decomposed(num), lambda: drawn(num))

  small = _Base(num_classes=10, width=_WIDTH)
  support = small.features.reshape(10, -1, _WIDTH)[:_WAYS, :1]
  query = small.features.reshape(10, -1, _WIDTH)[:_WAYS, 1:16]
  query = query.reshape(-1, _WIDTH)
  classify = jax.jit(
    jax.vmap(
      distribution_calibration.classifier(small.base, num_drawn=_DRAWN),
      in_axes=(None, None, 0),
    )
  )
  seconds: list[float] = []

  def ours():
    keys = jax.random.split(jax.random.key(0), _OTHERS)
    start = time.perf_counter()
    jax.block_until_ready(classify(support, query, keys))
    seconds.append((time.perf_counter() - start) / _OTHERS)
    return seconds[-1]

  def theirs():
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    rows = np.sqrt(support[:, 0])
    draws = [small.published(x, rng, _DRAWN) for x in rows]
    model = linear_model.LogisticRegression(max_iter=1000)
    model.fit(
      np.concatenate([rows, *draws]),
      np.concatenate([np.arange(_WAYS), np.repeat(np.arange(_WAYS), _DRAWN)]),
    )
    model.predict(np.sqrt(query))
    return time.perf_counter() - start

  return {
    'draws_times_faster': round(ratio(_DRAWN), 1),
    'draws_times_faster_of_five_rows': round(ratio(_DRAWN // _SHOTS), 1),
    'episodes_times_faster': round(timing.alternate(rounds, theirs, ours), 1),
    'episodes_per_second': _per_second(seconds),
  }


class _Base:
  """Base classes as both sides want them."""

  def __init__(self, *, num_classes, width):
    from repjax.methods import distribution_calibration

    self.features, labels = _features(
      num_classes=num_classes, rows=_PUBLISHED_ROWS, width=width
    )
    self.base = distribution_calibration.statistics(self.features, labels)
    rows = self.features.reshape(num_classes, _PUBLISHED_ROWS, width)
    self._means = rows.mean(1)
    self._covariances = np.stack([np.cov(x.T) for x in rows])

  def published(self, row, rng, num):
    near = np.argsort(np.linalg.norm(self._means - row, axis=1))[:2]
    mean = (self._means[near].sum(0) + row) / 3
    covariance = self._covariances[near].mean(0) + 0.21
    return rng.multivariate_normal(mean, covariance, num)


def _features(*, num_classes, rows, width):
  """Rows [R, D] as after a relu, sorted by their labels [R]."""
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(num_classes), rows)
  means = 0.5 * rng.normal(size=(num_classes, width))
  noise = rng.normal(size=(len(labels), width))
  return np.maximum(means[labels] + noise, 0).astype(np.float32), labels


def _per_second(seconds):
  """Of a median, without the round that compiles."""
  return round(1 / float(np.median(seconds[1:])))
