"""Permutation tests against brute force, and how often they reject."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from repjax.analysis import decision_losses
from repjax.analysis import h_divergence
from repjax.analysis import kernels
from repjax.analysis import mmd
from repjax.analysis import rejections
from repjax.analysis import two_sample
from repjax.data.sets import two_samples
from repjax.types import InputError

MEANS = two_sample.Statistic(
  'distance of means',
  lambda rows: rows,
  lambda rows, split: jnp.abs(rows @ split.x - rows @ split.y),
)


def compiled(statistic):
  return statistic._replace(prepare=jax.jit(statistic.prepare))


H_MIN = compiled(h_divergence.statistic(decision_losses.kde(0.5), phi='min'))
BLOBS = jax.jit(two_samples.blobs, static_argnums=1)


def test_permutations_find_the_share_of_all_splits():
  x, y = np.array([0.0, 1, 2, 4]), np.array([3.0, 5, 6, 9])
  pool = np.concatenate([x, y])
  sums = [
    abs(2 * pool[list(s)].sum() - pool.sum())
    for s in itertools.combinations(range(8), 4)
  ]
  exact = np.mean(np.asarray(sums) >= abs(x.sum() - y.sum()))
  found = two_sample.permutation_test(
    x, y, MEANS, rng=jax.random.key(0), num_permutations=4999
  )
  assert set(found.permuted) <= set(np.float32(sums))
  assert found.value == 16 and found.num_rows == 4
  assert abs(found.p_value - exact) < 4 * (exact * (1 - exact) / 5000) ** 0.5
  assert found.p_value == (1 + (found.permuted >= 16).sum()) / 5000


def test_chunks_change_nothing():
  x, y = BLOBS(jax.random.key(0), 9)
  rng = jax.random.key(1)
  for statistic in (MEANS, H_MIN):
    rows = (x[:, 0], y[:, 0]) if statistic is MEANS else (x, y)
    whole, parts = (
      two_sample.permutation_test(
        *rows, statistic, rng=rng, num_permutations=9, chunk=chunk
      )
      for chunk in (128, 5)
    )
    # A last chunk draws more than are counted, and nothing else.
    assert len(whole.permuted) == len(parts.permuted) == 9
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-5)


def test_equal_splits_have_equal_values():
  # Ties would be broken by the last digit, and p-values be too small.
  x, y = BLOBS(jax.random.key(0), 3)
  test = two_sample.permutation_test(
    x, y, H_MIN, rng=jax.random.key(1), num_permutations=399
  )
  # 20 ways to choose 3 of 6, and the two samples change places.
  assert len(np.unique(test.permuted)) == 10
  assert test.value in test.permuted


@pytest.mark.parametrize('num_rows', [20, 21])
def test_rows_that_are_nearly_all_equal_are_rejected_by_chance_alone(num_rows):
  # Most splits are alike then but for rounding, which is the same for none.
  def rejected(rng):
    rng_rows, rng = jax.random.split(rng)
    rows = jax.random.bernoulli(rng_rows, 0.05, (2, num_rows, 1))
    x, y = jnp.where(rows, 0.7, 0.1)
    value, permuted = two_sample.values(
      mmd.statistic(1.0), x, y, rng, num_permutations=19
    )
    return two_sample.num_larger(value, permuted) == 0

  rngs = jax.random.split(jax.random.key(0), 1000)
  share = jax.lax.map(rejected, rngs, batch_size=100).mean()
  assert share < 0.05 + 4 * (0.05 * 0.95 / 1000) ** 0.5  # It was .18 and .20.


def test_unequal_sizes_are_drawn_from_if_asked():
  x, y = np.arange(5.0), np.arange(100.0, 108)
  test = two_sample.permutation_test(
    x, y, MEANS, rng=jax.random.key(0), sizes='subsample'
  )
  assert test.num_rows == 5
  assert 500 - 10 + 10 <= test.value <= 5 * 107 - 10
  _, drawn = two_sample.equal_sizes(
    x, y, sizes='subsample', rng=jax.random.key(0)
  )
  assert len(set(drawn.tolist())) == 5 and set(drawn.tolist()) <= set(y)


@pytest.mark.parametrize(
  ('x', 'y', 'word'),
  [
    (np.zeros(3), np.zeros(4), "sizes='subsample'"),
    (np.zeros((3, 2)), np.zeros((3, 1)), 'same shape'),
    (np.zeros(1), np.zeros(1), 'at least 2 rows'),
    ({'a': np.zeros(3)}, np.zeros(3), 'same shape'),
    ({'a': np.zeros(3), 'b': np.zeros(4)},) * 2 + ('same rows',),
  ],
)
def test_samples_that_do_not_go_together_are_refused(x, y, word):
  with pytest.raises(InputError, match=word) as error:
    two_sample.permutation_test(x, y, MEANS, rng=jax.random.key(0))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused_and_named(bad):
  clean = {'a': np.zeros((6, 2)), 'b': np.arange(6)}
  dirty = {'a': np.zeros((9, 2)), 'b': np.arange(9)}
  dirty['a'][4, 1] = bad
  statistic = two_sample.Statistic('sum', lambda x: x['b'], MEANS.value)
  for x, y, which in ((dirty, clean, 'first'), (clean, dirty, 'second')):
    for seed in range(3):  # Whether or not it is among those that are drawn.
      with pytest.raises(InputError, match=f'Row 4 of the {which} sample'):
        two_sample.permutation_test(
          x, y, statistic, rng=jax.random.key(seed), sizes='subsample'
        )


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf, -jnp.inf])
def test_a_statistic_that_is_not_finite_is_no_p_value(value):
  statistic = two_sample.Statistic(
    'ratio', lambda rows: rows, lambda rows, split: value * split.x.sum()
  )
  with pytest.raises(InputError, match='ratio of these samples is') as error:
    two_sample.permutation_test(
      np.zeros(4), np.ones(4), statistic, rng=jax.random.key(0)
    )
  assert '\n' not in str(error.value)


def test_a_nan_never_rejects():
  assert two_sample.num_larger(jnp.nan, jnp.zeros(9)) == 9
  # What is not known of a split may be large.
  found = two_sample.num_larger(1.0, jnp.array([0.0, jnp.nan, 2.0]))
  assert found == 2
  assert two_sample.p_value(2, 3) == 0.75
  assert two_sample.p_value(0, 19) <= 0.05


def test_both_estimates_of_mmd_order_splits_alike():
  x, y = BLOBS(jax.random.key(0), 8)
  distances = jax.jit(kernels.squared_distances)(np.concatenate([x, y]))
  k = np.asarray(jax.jit(kernels.gaussian)(distances, 0.5), np.float64)
  within = k[:8, :8].sum() + k[8:, 8:].sum() - 16
  expected = within / 56 - 2 * k[:8, 8:].mean()
  biased, unbiased = (
    two_sample.permutation_test(
      x, y, compiled(mmd.statistic(0.5, estimate=name)), rng=jax.random.key(1)
    )
    for name in ('biased', 'unbiased')
  )
  np.testing.assert_allclose(unbiased.value, expected, rtol=1e-4)
  assert biased.p_value == unbiased.p_value
  np.testing.assert_allclose(
    np.corrcoef(biased.permuted, unbiased.permuted)[0, 1], 1, rtol=1e-5
  )


def test_the_median_is_that_of_all_pairs():
  rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
  distances = jax.jit(kernels.squared_distances)(rows)
  pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(rows, 2)]
  found = jax.jit(kernels.median_distance)(distances)
  np.testing.assert_allclose(found, np.median(pairs), rtol=1e-5)


@pytest.mark.parametrize('num_equal', [50, 70, 80])
def test_the_median_leaves_equal_rows_out_where_they_are_most(num_equal):
  rows = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
  rows[:num_equal] = rows[0]
  apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(rows, 2)]
  if np.median(apart) == 0:
    apart = [x for x in apart if x > 0]
  distances = jax.jit(kernels.squared_distances)(rows)
  found = [
    median(distances)
    for median in (kernels.median_distance, jax.jit(kernels.median_distance))
  ]
  np.testing.assert_allclose(found, np.median(apart or 1.0), rtol=1e-5)


def test_a_sample_of_mostly_equal_rows_is_told_from_one_that_is_not():
  rng = np.random.default_rng(0)
  x, y = np.zeros((2, 40, 2))
  y[:10] = rng.normal(3, 1, (10, 2))  # 70 of the 80 are equal.
  found = two_sample.permutation_test(
    x, y, compiled(mmd.statistic('median')), rng=jax.random.key(0)
  )
  assert found.p_value <= 0.05


@pytest.mark.parametrize('bandwidth', ['median', 1.0])
@pytest.mark.parametrize('estimate', ['biased', 'unbiased'])
def test_samples_of_one_row_over_and_over_are_not_told_apart(
  bandwidth, estimate
):
  x = np.full((40, 2), 0.1)
  statistic = compiled(mmd.statistic(bandwidth, estimate=estimate))
  found = two_sample.permutation_test(x, x, statistic, rng=jax.random.key(0))
  assert abs(found.value) < 1e-6 and found.p_value == 1


def test_a_chosen_bandwidth_fits_the_difference():
  rng = np.random.default_rng(0)
  # Stripes of width .3 are seen by a kernel of that width alone.
  x, y = (
    jnp.asarray(rng.integers(0, 9, 120) * 0.6 + at + rng.normal(0, 0.03, 120))
    for at in (0.0, 0.3)
  )
  found = jax.jit(mmd.best_bandwidth)(
    x, y, bandwidths=np.array([0.001, 0.1, 1.0, 10.0])
  )
  assert float(found) == pytest.approx(0.1)


@pytest.fixture(scope='module')
def null():
  statistics = {
    'H-Min': H_MIN,
    'H-JS of halves': h_divergence.statistic(
      decision_losses.kde(0.5), phi='js', mixture='halves'
    ),
    'MMD': mmd.statistic('median'),
  }
  return rejections.p_values(
    two_samples.same(two_samples.blobs),
    {name: lambda x, y, s=s: s for name, s in statistics.items()},
    rngs=jax.random.split(jax.random.key(0), 1500),
    num_rows=8,
    num_permutations=19,
  )


@pytest.mark.parametrize('name', ['H-Min', 'H-JS of halves', 'MMD'])
def test_p_values_are_uniform_where_nothing_differs(null, name):
  summary = rejections.summary(null[name], num_permutations=19)
  assert summary.uniform > 1e-3
  assert summary.low <= 0.05 <= summary.high
  assert summary.calibrated(0.05)
  # A test that rejects twice as often would be noticed.
  doubled = rejections.summary(null[name] / 2, num_permutations=19)
  assert doubled.uniform < 1e-6 and not doubled.calibrated(0.05)


def test_a_summary_counts():
  p = np.array([0.01, 0.05, 0.06, 0.5])
  found = rejections.summary(p)
  low, high = stats.binomtest(2, 4).proportion_ci(0.99)
  assert (found.rate, found.low, found.high) == (0.5, low, high)


def test_rows_that_are_needed():
  rows = np.array([10, 20, 40])
  assert rejections.least_detectable([0.2, 0.6, 1.0], rows) == pytest.approx(30)
  assert np.isnan(rejections.least_detectable([0.2, 0.6, 0.7], rows))


def test_a_bandwidth_is_chosen_on_rows_that_are_not_tested():
  seen = []

  def draw(rng, num_rows):
    x = jax.random.normal(rng, (num_rows,))
    return x, x

  def choose(x, y):
    def value(rows, split):
      return (rows[: len(x)] == x).sum() + 0.0 * split.x.sum()

    seen.append(x.shape)
    return two_sample.Statistic('overlap', lambda rows: rows, value)

  p = rejections.p_values(
    draw,
    {'overlap': choose},
    rngs=jax.random.split(jax.random.key(0), 3),
    num_rows=5,
    num_permutations=4,
  )
  np.testing.assert_array_equal(p['overlap'], 1.0)  # All are 0: ties.
  assert seen == [(5,)]


def test_the_p_value_of_mmd_is_that_of_scipy_over_all_splits():
  x, y = (np.asarray(z) for z in BLOBS(jax.random.key(3), 5))

  def mmd2(a, b):
    def mean(a, b):
      distances = np.square(a[:, None] - b[None]).sum(-1)
      return np.exp(-distances / (2 * 0.7**2)).mean()

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)

  # scipy permutes numbers, and these are numbers of rows.
  rows = np.concatenate([x, y])
  theirs = stats.permutation_test(
    (np.arange(5), np.arange(5, 10)),
    lambda a, b: mmd2(rows[a.astype(int)], rows[b.astype(int)]),
    n_resamples=np.inf,
    vectorized=False,
    alternative='greater',
  )
  ours = two_sample.permutation_test(
    x,
    y,
    compiled(mmd.statistic(0.7)),
    rng=jax.random.key(0),
    num_permutations=9999,
  )
  np.testing.assert_allclose(ours.value, theirs.statistic, rtol=1e-4)
  assert 0.01 < theirs.pvalue < 0.99
  spread = (theirs.pvalue * (1 - theirs.pvalue) / 10_000) ** 0.5
  assert abs(ours.p_value - theirs.pvalue) < 4 * spread


@pytest.mark.parametrize('offset', [1.7e9, 20240115])
def test_what_float32_would_round_away_is_refused(offset):
  rng = np.random.default_rng(0)
  x, y = 10 * rng.normal(size=(2, 50)) + np.array([[0], [20]])
  rows = (x + offset, y + offset)
  if offset == 20240115:
    rows = tuple(z.astype(np.int64) for z in rows)
  test = lambda x, y: two_sample.permutation_test(  # noqa: E731
    x, y, MEANS, rng=jax.random.key(0)
  )
  if offset > 1e9:  # A second of Unix time.
    with pytest.raises(InputError, match='subtract what they have in common'):
      test(*rows)
    assert test(*(z - offset for z in rows)).p_value == test(x, y).p_value
  else:
    assert test(*rows).p_value < 0.05


def test_integers_that_32_bits_take_for_others_are_refused():
  x = np.random.default_rng(0).integers(0, 2**31, 40)
  y = x + 2**32  # Bytes of large files: their lower 32 bits are those of x.
  test = functools.partial(
    two_sample.permutation_test, statistic=MEANS, rng=jax.random.key(0)
  )
  with pytest.raises(InputError, match='give them as floating-point') as error:
    test(x, y)
  assert '\n' not in str(error.value)
  assert test(x.astype(float), y.astype(float)).p_value == 0.01
  assert test(x, x).p_value == 1


def test_a_plateau_of_power_is_reached_at_its_first_size():
  powers, sizes = [0.2, 0.8, 0.78, 0.95], [50, 100, 200, 400]
  assert rejections.least_detectable(powers, sizes, wanted=0.8) == 100
  assert rejections.least_detectable(powers, sizes, wanted=0.5) == 75
  assert rejections.least_detectable(powers, sizes, wanted=0.1) == 50


def test_rows_that_are_chosen_on_are_never_those_that_are_tested():
  def draw(rng, num_rows):
    x = jax.random.normal(rng, (num_rows,))
    return x, x + 10

  def choose(x, y):
    del y

    def prepare(rows):
      met = (rows[:, None] == x[None]).any()
      return jnp.where(met, rows, 0.0)

    return two_sample.Statistic('met', prepare, MEANS.value)

  p = rejections.p_values(
    draw,
    {'met': choose},
    rngs=jax.random.split(jax.random.key(0), 4),
    num_rows=5,
    num_permutations=9,
  )
  # Where none is met all splits tie; else samples 10 apart are told apart.
  np.testing.assert_array_equal(p['met'], 1.0)


def test_rows_of_the_larger_sample_are_drawn_from_all_of_it():
  few, many = np.zeros(5), np.arange(100.0)
  for place, pair in ((1, (few, many)), (0, (many, few))):
    drawn = [
      two_sample.equal_sizes(*pair, sizes='subsample', rng=jax.random.key(i))[
        place
      ]
      for i in range(40)
    ]
    # 200 draws of 100 rows: 87 different ones on average.
    assert len(np.unique(np.stack(drawn))) > 60


def test_a_test_takes_any_half_of_sorted_rows():
  x = np.repeat([0.0, 1.0], 4)[:, None]
  statistic = h_divergence.statistic(
    decision_losses.squared(), phi='js', mixture='halves'
  )
  values = {
    round(
      two_sample.permutation_test(
        x, x, statistic, rng=jax.random.key(i), num_permutations=3
      ).value,
      5,
    )
    for i in range(20)
  }
  # The first half of both is all zeros: one value at every call.
  assert len(values) > 1
