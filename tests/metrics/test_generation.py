"""Measures of generated rows against SciPy and loops."""

import numpy as np
import pytest
from scipy import linalg

from repjax import types
from repjax.metrics import generation

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(40, 5))
FAKE = RNG.normal(size=(30, 5)) @ RNG.normal(size=(5, 5)) + 0.5


def test_frechet_is_the_formula_with_a_root_of_a_matrix():
  mean, other = REAL.mean(0), FAKE.mean(0)
  cov, other_cov = np.cov(REAL.T), np.cov(FAKE.T)
  root = linalg.sqrtm(cov @ other_cov).real
  expected = ((mean - other) ** 2).sum() + np.trace(cov + other_cov - 2 * root)
  found = generation.frechet(REAL, FAKE)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frechet_of_a_sample_and_its_shift_is_the_shift():
  np.testing.assert_allclose(generation.frechet(REAL, REAL), 0, atol=1e-9)
  shifted = generation.frechet(REAL, REAL + np.array([3.0, 0, 0, 0, 4.0]))
  np.testing.assert_allclose(shifted, 25, rtol=1e-9)


def test_frechet_holds_with_fewer_rows_than_features():
  # Covariances are singular there, and roots of them are noise.
  few = np.eye(5)[:3]
  expected = 0.3**2 * np.trace(np.cov(few.T))
  found = generation.frechet(few - few.mean(0), 1.3 * (few - few.mean(0)))
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def _mmd(x, y):
  def k(a, b):
    return (a @ b / 5 + 1) ** 3

  def within(x):
    pairs = [
      k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j
    ]
    return np.mean(pairs)

  return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_kernel_is_the_mean_over_pairs_of_different_rows():
  found = generation.kernel(REAL, FAKE)
  np.testing.assert_allclose(found, _mmd(REAL, FAKE), rtol=1e-9)


def test_kernel_is_unbiased():
  # Of two samples of one distribution it is 0 on average, so often negative.
  values = [
    generation.kernel(*np.random.default_rng(i).normal(size=(2, 20, 3)))
    for i in range(400)
  ]
  assert abs(np.mean(values)) < 3 * np.std(values) / 20
  assert np.mean(np.asarray(values) < 0) > 0.3


def test_precision_and_recall_are_those_of_a_loop():
  def ball(x, i):
    return sorted(np.linalg.norm(x - x[i], axis=1))[3]

  def covered(rows, centres):
    return np.mean(
      [
        any(
          np.linalg.norm(row - centre) <= ball(centres, i)
          for i, centre in enumerate(centres)
        )
        for row in rows
      ]
    )

  found = generation.precision_recall(REAL, FAKE, neighbours=3)
  assert found.precision == covered(FAKE, REAL)
  assert found.recall == covered(REAL, FAKE)
  assert 0 < found.precision < 1
  assert 0 < found.recall < 1


def test_a_generator_of_one_mode_is_precise_and_recalls_half():
  rng = np.random.default_rng(1)
  left, right = rng.normal(size=(2, 100, 2))
  real = np.concatenate([left, right + 50])
  found = generation.precision_recall(real, rng.normal(size=(100, 2)))
  assert found.precision > 0.9
  assert 0.4 < found.recall <= 0.5


def test_all_measures_at_once():
  found = generation.measure(REAL, FAKE)
  assert found.frechet == generation.frechet(REAL, FAKE)
  assert found.kernel == generation.kernel(REAL, FAKE)
  assert found[2:] == generation.precision_recall(REAL, FAKE)


@pytest.mark.parametrize(
  ('real', 'fake', 'says'),
  [
    (REAL, FAKE[:, :4], r'one D; got \(40, 5\), \(30, 4\)'),
    (REAL[0], FAKE, 'one D'),
    (REAL, FAKE[:1], 'two rows or more; got 40 and 1'),
  ],
)
def test_samples_that_do_not_fit_are_refused(real, fake, says):
  with pytest.raises(types.InputError, match=says):
    generation.measure(real, fake)
  with pytest.raises(types.InputError, match='neighbours=3 needs more rows'):
    generation.precision_recall(REAL, FAKE[:3])


def test_a_sample_is_held_against_many_as_an_array_is():
  # Of more rows than one block of them has.
  rng = np.random.default_rng(5)
  real = rng.normal(size=(1100, 3))
  held = generation.Sample(real)
  for scale in (1.0, 1.5):
    fake = scale * rng.normal(size=(40, 3))
    found = generation.measure(held, fake, neighbours=2)
    assert found == generation.measure(real, fake, neighbours=2)
    distances = np.linalg.norm(real[:, None] - real[None], axis=-1)
    ordered = np.sort(distances, axis=1)
    for neighbours in (2, 4):  # What one leaves is not the other's.
      np.testing.assert_allclose(
        np.sqrt(held.reach(neighbours)), ordered[:, neighbours], rtol=1e-6
      )
    reach = ordered[:, 2]
    inside = np.linalg.norm(real[:, None] - fake[None], axis=-1)
    assert found.precision == (inside <= reach[:, None]).any(0).mean()
    products = (real @ real.T / 3 + 1) ** 3
    np.fill_diagonal(products, 0)
    np.testing.assert_allclose(held.within, products.sum() / (1100 * 1099))
  with pytest.raises(types.InputError, match='more rows in both samples'):
    generation.measure(held, fake[:2], neighbours=2)


@pytest.mark.parametrize(
  'measure',
  [
    generation.frechet,
    generation.kernel,
    generation.precision_recall,
    generation.measure,
  ],
)
def test_features_that_are_not_finite_are_named(measure):
  real, fake = np.random.default_rng(0).normal(size=(2, 30, 4))
  fake[7, 2] = np.nan
  with pytest.raises(types.NonFiniteError, match='of the fake row 7'):
    measure(real, fake)


def test_no_square_of_all_rows_is_made(monkeypatch):
  expected, whole = generation.measure(REAL, FAKE), generation._distances
  counts = []

  def distances(x, y):
    counts.append(len(x))
    return whole(x, y)

  monkeypatch.setattr(generation, '_ROWS', 7)
  monkeypatch.setattr(generation, '_distances', distances)
  found = generation.measure(REAL, FAKE)
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  assert max(counts) <= 7
