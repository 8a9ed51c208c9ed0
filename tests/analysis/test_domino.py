"""Domino finds planted slices, and refuses what it cannot work on."""

import numpy as np
import planted_slices
import pytest

from repjax import types
from repjax.analysis import domino


@pytest.mark.parametrize('start', ['kmeans', 'random', 'confusion'])
def test_the_first_slice_is_the_planted_one(start):
  *valid, _ = planted_slices.draw(seed=0)
  *test, of_slice = planted_slices.draw(seed=1)
  found = domino.discover(
    *valid,
    seed=0,
    num_components=12,
    label_weight=1.0,
    prediction_weight=1.0,
    start=start,
    num_starts=3,
  )
  psi = domino.scores(found, *test)
  assert psi.shape == (600, 5)
  assert (np.diff(found.gaps) <= 0).all()
  assert found.gaps[0] > 0.3
  best = np.argsort(-domino.log_odds(found, *test)[:, 0])[:10]
  assert of_slice[best].mean() >= 0.9


@pytest.mark.parametrize('ratio', [1e4, 1e6])
def test_groups_may_be_far_from_each_other(ratio):
  # So many deviations within a group are between two.
  def drawn(seed):
    embeddings, *others = planted_slices.draw(seed=seed)
    far = np.random.default_rng([seed, 1]).integers(0, 2, len(embeddings))
    return (embeddings + ratio * far[:, None]).astype(np.float32), *others

  *valid, _ = drawn(0)
  *test, of_slice = drawn(1)
  found = domino.discover(*valid, seed=0)
  odds = domino.log_odds(found, *test)
  first = np.argsort(-odds, axis=0)[:10]
  assert of_slice[first].mean(0).max() == 1


@pytest.mark.parametrize(
  ('weights', 'known'), [((10, 10), True), ((7, 2), True), ((7, 2), False)]
)
def test_scores_are_responsibilities_of_all_components(weights, known):
  *valid, _ = planted_slices.draw(seed=0)
  given = dict(zip(('label_weight', 'prediction_weight'), weights, strict=True))
  if weights == (10, 10):  # The paper's, which nobody needs to give.
    assert domino.discover(*valid, seed=0).weights == given
  found = domino.discover(
    *valid, seed=0, num_components=6, num_slices=6, pca_dim=5, **given
  )
  assert found.weights == given
  psi = domino.scores(found, *valid[: 3 if known else 1])
  np.testing.assert_allclose(psi.sum(1), 1, atol=1e-5)
  mixture = found.fit.mixture
  z = (valid[0] - found.centre) @ found.basis
  z, labels, probs = z.astype(float), np.eye(2)[valid[1]], valid[2]
  label_weight, prediction_weight = (known * x for x in weights)
  # The definition, row by row, with logarithms of densities written out.
  for row in (0, 17, 400):
    of_label, of_prediction = (
      x[row] @ y.T + 1.2e-7
      for x, y in (
        (labels, mixture.label_probs),
        (probs, mixture.prediction_probs),
      )
    )
    logs = np.array(
      [
        np.log(mixture.weights[s])
        - 0.5
        * (
          np.log(2 * np.pi * mixture.variances[s])
          + (z[row] - mixture.means[s]) ** 2 / mixture.variances[s]
        ).sum()
        + label_weight * np.log(of_label[s])
        + prediction_weight * np.log(of_prediction[s])
        for s in found.chosen
      ]
    )
    share = np.exp(logs - logs.max())
    np.testing.assert_allclose(psi[row], share / share.sum(), atol=1e-4)


def test_more_starts_are_never_less_likely():
  *valid, _ = planted_slices.draw()
  one, many = (
    domino.discover(*valid, seed=0, num_components=8, num_starts=n)
    for n in (1, 4)
  )
  assert many.fit.bound >= one.fit.bound - 1e-3


def test_principal_directions_are_those_of_numpy():
  for shape in ((40, 6), (6, 40)):
    rows = np.random.default_rng(0).normal(size=shape)
    centre, basis = domino.principal(rows, 3)
    np.testing.assert_allclose(centre, rows.mean(0))
    expected = np.linalg.svd(rows - rows.mean(0))[2][:3].T
    np.testing.assert_allclose(abs((basis * expected).sum(0)), 1)


def _changed(**columns):
  z, labels, probs, _ = planted_slices.draw(60)
  return {**dict(embeddings=z, labels=labels, probs=probs), **columns}


def _with(name, row, value):
  columns = _changed()
  columns[name][row] = value
  return columns


@pytest.mark.parametrize(
  ('columns', 'settings', 'message'),
  [
    (_changed(), dict(num_components=61), '60 rows are fewer than num_comp'),
    (_changed(labels=np.zeros(60, int)), {}, 'all 60 labels are 0'),
    (_changed(labels=np.full(60, 2)), {}, 'probs are of 2 classes'),
    (_changed(labels=np.zeros(60)), {}, 'labels are integers'),
    (_changed(labels=np.zeros(59, int)), {}, '60, 59 and 60 rows'),
    (_changed(probs=np.ones((60, 2))), {}, 'sum to 1: take a softmax'),
    (_changed(probs=np.ones(60)), {}, r'probs \[N, C\]'),
    (_with('embeddings', 3, np.nan), {}, 'embeddings of row 3 are not finite'),
    (_with('probs', 4, np.inf), {}, 'probs of row 4 are not finite'),
    (
      _changed(embeddings=np.full((60, 3), 1e25)),
      {},
      r'embeddings reach 1e\+25',
    ),
    (_changed(), dict(pca_dim=13), r'pca_dim must be in \[1, 12\]'),
    (_changed(), dict(num_slices=26), 'num_components must be in'),
    (_changed(), dict(label_weight=-1.0), 'label_weight must be in'),
    (_changed(), dict(start='spectral'), 'start must be one of'),
    (_changed(), dict(num_components=5, start='confusion', num_slices=2), None),
    (
      _changed(),
      dict(num_components=3, start='confusion', num_slices=2),
      r'num_components must be in \[4, inf\)',
    ),
    (_changed(), dict(update='newton'), 'update must be one of'),
    (_changed(), dict(num_starts=0), 'num_starts must be in'),
    (_changed(), dict(max_iter=0), 'max_iter must be in'),
  ],
)
def test_what_it_cannot_work_on_is_said(columns, settings, message):
  if message is None:
    domino.discover(**columns, seed=0, **settings)
    return
  with pytest.raises(types.InputError, match=message):
    domino.discover(**columns, seed=0, **settings)


def test_half_precision_is_enough_of_a_row():
  z, labels, probs, _ = planted_slices.draw(60)
  half = z.astype(np.float16)
  found, expected = (
    domino.discover(x, labels, probs, seed=0, num_components=6)
    for x in (half, half.astype(np.float32))
  )
  np.testing.assert_array_equal(found.gaps, expected.gaps)
  np.testing.assert_array_equal(
    domino.scores(found, half), domino.scores(expected, half.astype(np.float32))
  )


def test_new_rows_must_be_of_the_same_kind():
  *valid, _ = planted_slices.draw(60)
  found = domino.discover(*valid, seed=0, num_components=6)
  z, labels, probs = valid
  with pytest.raises(types.InputError, match='12 numbers and 2 classes'):
    domino.scores(found, z[:, :5], labels, probs)
  wide = np.concatenate([probs, np.zeros((60, 1))], 1)
  with pytest.raises(types.InputError, match='got 12 and 3'):
    domino.scores(found, z, labels, wide)


@pytest.mark.parametrize('shape', [(20, 50), (80, 50)])
def test_directions_without_variance_are_zero(shape):
  rows = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 30
  rows[:, :5] = 7.0  # As dead units.
  _, basis = domino.principal(rows, min(shape))
  rank = min(shape[0] - 1, shape[1] - 5)
  assert np.abs(basis[:, :rank]).max(0).min() > 0.01
  assert (basis[:, rank:] == 0).all()
  new = np.full(50, 100.0, np.float32)
  assert ((new @ basis)[rank:] == 0).all()
