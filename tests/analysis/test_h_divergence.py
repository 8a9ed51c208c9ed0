"""H-divergences against formulas, sums by hand, and trained fits."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn import mixture as sklearn_mixture

from repjax.analysis import decision_losses
from repjax.analysis import fitted_losses
from repjax.analysis import h_divergence
from repjax.analysis import kernels
from repjax.analysis import mmd
from repjax.analysis import two_sample
from repjax.models import vae
from repjax.types import InputError


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def samples(n=12, dim=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, dim)), rng.normal(0.5, 1.2, size=(n, dim))


def observed(statistic, x, y):
  """The statistic of two samples."""

  @jax.jit
  def value(x, y):
    split = two_sample.split(jnp.arange(2 * len(x)))
    return statistic.value(statistic.prepare(two_sample.pool(x, y)), split)

  return float(value(x, y))


def gaussian(x, y, bandwidth):
  difference = np.square(x[:, None] - y[None]).sum(-1)
  return np.exp(-difference / (2 * bandwidth**2))


def js_of(loss, x, y):
  found = jax.jit(lambda *z: h_divergence.between(*z, loss, phi='js').value)
  return float(found(x, y))


def entropy_of(loss, rows, weights):
  found = jax.jit(lambda rows, w: loss.entropy(loss.prepare(rows), w))
  return found(rows, np.asarray(weights))


def compiled(statistic):
  return statistic._replace(prepare=jax.jit(statistic.prepare))


def test_h_js_of_the_kernel_loss_is_a_quarter_of_mmd():
  x, y = samples()
  mean = lambda a, b: gaussian(a, b, 0.8).mean()  # noqa: E731
  expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
  found = js_of(decision_losses.kernel(0.8), x, y)
  np.testing.assert_allclose(found, expected / 4, rtol=0, atol=1e-12)
  biased = observed(mmd.statistic(0.8), x, y)
  np.testing.assert_allclose(biased, expected, rtol=0, atol=1e-12)


def test_h_js_of_the_squared_loss_is_a_quarter_of_the_distance_of_means():
  x, y = samples()
  expected = np.square(x.mean(0) - y.mean(0)).sum() / 4
  found = js_of(decision_losses.squared(), x, y)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_h_js_of_the_log_loss_is_the_jensen_shannon_divergence():
  p, q = np.random.default_rng(0).dirichlet(np.ones(5), 2)
  p = np.append(p, 0.0)  # A value that p never takes.
  q = np.append(q * 0.7, 0.3)
  m = (p + q) / 2
  expected = (stats.entropy(p, m) + stats.entropy(q, m)) / 2
  found = h_divergence.divergence(
    np.arange(6), p, q, decision_losses.histogram(6), phi='js'
  )
  np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-12)
  np.testing.assert_allclose(found.entropy_p, stats.entropy(p), atol=1e-12)


@pytest.mark.parametrize(
  ('x', 'y'), [([0, 1], [5, 7]), ([5] * 4, [7] * 4), ([0, 1], [2, -1])]
)
def test_a_value_outside_of_a_histogram_does_not_vanish(x, y):
  x, y = np.array(x), np.array(y)
  loss = decision_losses.histogram(3)
  statistic = h_divergence.statistic(loss, phi='js')
  for call in (
    lambda: h_divergence.between(x, y, loss, phi='js'),
    lambda: two_sample.permutation_test(
      x, y, statistic, rng=jax.random.key(0), num_permutations=3
    ),
  ):
    with pytest.raises(InputError, match=r'integers in \[0, 3\)') as error:
      call()
    assert '\n' not in str(error.value)
  traced = jax.jit(lambda *z: h_divergence.between(*z, loss, phi='js').value)
  assert np.isnan(traced(x, y))
  # Nothing in common.
  found = js_of(decision_losses.histogram(9), x + 1, y + 1)
  np.testing.assert_allclose(found, np.log(2), rtol=1e-12)


def test_the_two_forms_by_hand():
  # Cost of two actions: the first is free for x, the second for y.
  costs = lambda rows: jnp.stack([rows, 2 - 2 * rows], -1)  # noqa: E731
  loss = decision_losses.actions('errand', costs, ('walk', 'ride'))
  x, y = np.zeros(4), np.array([1.0, 1.0, 1.0, 0.0])
  # H(p) = 0 by walking, H(q) = .5 by riding, H(m) = 3/8 by walking.
  found = {
    phi: h_divergence.between(x, y, loss, phi=phi) for phi in ('js', 'min')
  }
  assert float(found['js'].value) == 3 / 8 - 1 / 4
  assert float(found['min'].value) == 3 / 8
  assert found['js'].name == 'H-JS, errand'
  assert found['min'].name == 'H-Min, errand'
  weights = jnp.stack([jnp.ones(4), jnp.array([1.0, 1.0, 1.0, 0.0])])
  prepared = loss.prepare(y)
  np.testing.assert_array_equal(
    decision_losses.best_action(prepared, weights), [1, 1]
  )


ALL = {
  'squared': decision_losses.squared(),
  'kernel': decision_losses.kernel(0.5),
  'kde': decision_losses.kde(0.5),
  'leave one out': decision_losses.kde(0.5, rows='leave_one_out'),
  'actions': decision_losses.actions('sign', lambda x: x, ('a', 'b', 'c')),
  'mixture': fitted_losses.gaussian_mixture(2, rng=jax.random.key(0), steps=5),
}


@pytest.mark.parametrize('loss', ALL.values(), ids=ALL)
@pytest.mark.parametrize('phi', ['js', 'min'])
def test_equal_distributions_have_none_and_others_are_apart(loss, phi):
  rows = np.concatenate(samples(6))
  p, q = np.random.default_rng(1).dirichlet(np.ones(12), 2)
  # Not as a whole, which may round equal entropies in different ways.
  loss = loss._replace(
    prepare=jax.jit(loss.prepare), entropy=jax.jit(loss.entropy)
  )
  between = functools.partial(h_divergence.divergence, rows, loss=loss, phi=phi)
  assert float(between(p, p).value) == 0.0
  if loss.name.startswith(('KDE (leave', 'Gaussian')):
    return  # Not the best of all actions: no infimum.
  forth, back = float(between(p, q).value), float(between(q, p).value)
  assert forth == back >= 0
  h_min = float(between(p, q, phi='min').value)
  assert h_min >= float(between(p, q, phi='js').value) >= 0


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, jnp.bfloat16])
def test_rows_of_few_bits_are_measured_in_float32(dtype):
  rows = np.array([[-100], [-99], [99], [100]]).astype(dtype)
  exact = np.square(np.subtract.outer(*(rows[:, 0].astype(float),) * 2))
  distances = jax.jit(kernels.squared_distances)(rows)
  np.testing.assert_allclose(distances, exact, atol=1e-2)
  with jax.enable_x64(False):
    fit = fitted_losses.gaussian_mixture(2, rng=jax.random.key(0), steps=3)
    found = jax.jit(
      lambda *given: h_divergence.divergence(*given, fit, phi='min').value
    )(jnp.asarray(rows), np.full(4, 0.25), np.full(4, 0.25))
  assert np.isfinite(found)


@pytest.mark.parametrize('name', ['in_sample', 'leave_one_out'])
def test_kernel_densities_by_a_loop(name):
  x, _ = samples(7, dim=2)
  found = []
  for i, row in enumerate(x):
    others = np.delete(x, i, 0) if name == 'leave_one_out' else x
    density = [stats.norm.pdf(row, other, 0.6).prod() for other in others]
    found.append(-np.log(np.mean(density)))
  loss = decision_losses.kde(0.6, rows=name)
  rows = np.concatenate([x, x + 40])  # Rows of weight 0 are not there.
  entropy = entropy_of(loss, rows, np.repeat([1.0, 0.0], 7))
  np.testing.assert_allclose(entropy, np.mean(found), rtol=1e-12)


def test_a_row_without_neighbours_has_a_bounded_loss():
  loss = decision_losses.kde(0.1, rows='leave_one_out')
  far = np.array([[0.0], [1e3], [2e3]])
  entropy = jax.jit(lambda rows, w: loss.entropy(loss.prepare(rows), w))
  assert float(entropy(far, np.ones(3))) < 80
  for weights in ([1.0, 0.0, 0.0], [1.0, 1e-30, 0.0]):
    for rows in (far, 0.1 * far / 1e3):
      found = float(entropy(rows, np.array(weights)))
      assert 0 < found < 80


def test_the_best_bandwidth_is_that_of_the_likeliest_rows():
  x, _ = samples(20)
  grid = np.array([0.1, 0.3, 0.6, 1.0, 3.0])
  losses = [
    float(entropy_of(loss, x, np.ones(20)))
    for loss in (decision_losses.kde(h, rows='leave_one_out') for h in grid)
  ]
  found = jax.jit(decision_losses.best_bandwidth)(x, grid)
  assert float(found) == grid[np.argmin(losses)]
  assert 0 < np.argmin(losses) < 4


def test_scott_whitens_the_pool():
  rows, bandwidth = decision_losses.scott(jnp.asarray(samples(50)[1]), 25)
  np.testing.assert_allclose(np.cov(rows.T, ddof=0), np.eye(3), atol=1e-10)
  assert bandwidth == 25 ** (-1 / 7)


@pytest.mark.parametrize('wide', [False, True])
def test_columns_that_cannot_be_whitened_are_refused(wide):
  rows = samples(50)[1]
  beside = {
    'Column 3 is the same': [np.full(50, 0.1), np.zeros(50)],
    '4 columns depend': [rows @ [1.0, -2.0, 0.5]],
    '5 columns depend': [rows[:, 0], 3 * rows[:, 0]],
  }
  with jax.enable_x64(wide):
    for message, columns in beside.items():
      x = jnp.asarray(np.column_stack([rows, *columns]))
      with pytest.raises(InputError, match=message) as error:
        decision_losses.scott(x, 25)
      assert '\n' not in str(error.value)


def test_a_mixture_of_gaussians_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(80, 2)) + 4 * rng.integers(0, 2, (80, 1))
  rows = (rows - rows.mean(0)) / rows.std(0)
  start = fitted_losses.Mixture(
    np.array([0.5, 0.5]),
    rows[[0, 40]],
    np.tile(np.eye(2), (2, 1, 1)),
  )
  theirs = sklearn_mixture.GaussianMixture(
    2,
    tol=0.0,
    max_iter=60,
    reg_covar=1e-3,
    weights_init=start.shares,
    means_init=start.means,
    precisions_init=start.covariances,
  )
  with pytest.warns(match='did not converge'):
    theirs.fit(np.repeat(rows[:60], 2, 0))
  weights = np.where(np.arange(80) < 60, 2.0, 0.0)
  fit = functools.partial(fitted_losses.fit_mixture, steps=60)
  ours = jax.jit(fit)(rows, weights, start, ridge=1e-3 * np.eye(2))
  np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-6)
  np.testing.assert_allclose(ours.covariances, theirs.covariances_, atol=1e-6)
  np.testing.assert_allclose(
    jax.jit(fitted_losses.log_density)(ours, rows),
    theirs.score_samples(rows),
    atol=1e-6,
  )


def test_the_entropy_of_a_mixture_is_in_units_of_the_data():
  x, _ = samples(30, dim=2)
  entropies = []
  for scale in (1.0, 10.0):
    loss = fitted_losses.gaussian_mixture(2, rng=jax.random.key(0), steps=5)
    entropies.append(entropy_of(loss, scale * x, np.ones(30)))
  np.testing.assert_allclose(
    entropies[1] - entropies[0], 2 * np.log(10), rtol=1e-9
  )


@pytest.mark.parametrize('wide', [False, True])
@pytest.mark.parametrize('value', [0.0, 0.1])
def test_a_constant_column_changes_no_test_by_mixtures(value, wide):
  rng = np.random.default_rng(0)
  samples = [rng.normal(at, 1, (30, 2)) for at in (0, 5)]
  loss = fitted_losses.gaussian_mixture(2, rng=jax.random.key(0), steps=9)
  tests, entropies = [], []
  with jax.enable_x64(wide):
    for beside in ([], [np.full((30, 1), value)]):
      x, y = (jnp.asarray(np.hstack([z, *beside])) for z in samples)
      pool = two_sample.pool(x, y)
      entropies.append(entropy_of(loss, pool, np.ones(60)))
      statistic = compiled(h_divergence.statistic(loss, phi='min'))
      tests.append(
        two_sample.permutation_test(
          x, y, statistic, rng=jax.random.key(1), num_permutations=19
        )
      )
  np.testing.assert_allclose(tests[1].value, tests[0].value, rtol=1e-4)
  assert tests[0].p_value == tests[1].p_value == 1 / 20
  np.testing.assert_allclose(  # That of the variance that is added to it.
    entropies[1] - entropies[0], np.log(2 * np.pi * 1e-3) / 2, rtol=1e-5
  )


def test_k_means_plus_plus_never_picks_a_row_twice():
  rows = jnp.asarray(samples(5)[0])
  found = fitted_losses.plus_plus(jax.random.key(0), rows, 5)
  assert {tuple(x) for x in found.tolist()} == {tuple(x) for x in rows.tolist()}


def test_a_trained_loss_finds_the_least_squares_of_a_subset():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(16, 2))
  rows = {'features': features, 'label': rng.normal(size=16)}
  chosen = np.arange(16) % 2 == 0
  loss = fitted_losses.trained(
    'one line for both',
    lambda key, rows: jnp.zeros(2),
    lambda w, rows, key: jnp.square(rows['features'] @ w - rows['label']),
    optax.sgd(0.1),
    rng=jax.random.key(0),
    steps=400,
  )
  left = np.linalg.lstsq(features[chosen], rows['label'][chosen], rcond=None)[1]
  found = jax.jit(loss.entropy)(loss.prepare(rows), jnp.asarray(chosen * 1.0))
  np.testing.assert_allclose(found, left[0] / 8, rtol=1e-6)


def test_an_autoencoder_learns_its_own_rows_alone():
  black, white = np.zeros((6, 4)), np.ones((6, 4))
  loss = fitted_losses.vae(
    vae.Vae(features=(4,), code_dim=1),
    rng=jax.random.key(0),
    steps=150,
    learning_rate=3e-2,
  )
  names = []

  @jax.jit
  def entropies(x, y):
    found = h_divergence.between(x, y, loss, phi='min')
    names.append(found.name)
    return found.entropy_p, found.entropy_q, found.entropy_mixture

  h_p, h_q, h_m = entropies(black, white)
  # A bit of four pixels is one bit: both have it, neither alone needs it.
  assert float(h_p) < 0.1 and float(h_q) < 0.1
  assert float(h_m) > 0.5
  assert names == ['H-Min, VAE (150 steps)']


@pytest.mark.parametrize('mixture', ['pooled', 'halves'])
@pytest.mark.parametrize('phi', ['js', 'min'])
def test_the_indexed_form_equals_fits_of_every_split(phi, mixture):
  x, y = samples(4, dim=2)
  loss, pool = decision_losses.kde(0.7), np.concatenate([x, y])
  statistic = h_divergence.statistic(loss, phi=phi, mixture=mixture)
  prepared = jax.jit(statistic.prepare)(pool)

  @jax.jit
  def entropy(rows):
    return loss.entropy(loss.prepare(rows), jnp.ones(len(rows)))

  @jax.jit
  def value(order):
    return statistic.value(prepared, two_sample.split(order))

  for first in itertools.islice(itertools.combinations(range(8), 4), 0, 70, 9):
    second = [i for i in range(8) if i not in first]
    a, b = pool[list(first)], pool[second]
    halves = np.concatenate([a[:2], b[:2]])
    m = float(entropy(pool if mixture == 'pooled' else halves))
    h_a, h_b = float(entropy(a)), float(entropy(b))
    low, mean = min(h_a, h_b), (h_a + h_b) / 2
    found = value(np.array([*first, *second]))
    expected = m - (low if phi == 'min' else mean)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_an_estimate_takes_any_half_of_sorted_rows():
  x = np.repeat([0.0, 1.0], 3)

  @jax.jit
  def entropies(rng):
    found = h_divergence.between(
      x, x, decision_losses.squared(), phi='js', mixture='halves', rng=rng
    )
    return found.entropy_p, found.entropy_mixture

  h_p, h_m = zip(
    *(entropies(jax.random.key(i)) for i in range(20)), strict=True
  )
  # The first half of both is all zeros: an entropy of 0 at every call.
  assert len({round(float(x), 6) for x in h_m}) > 2
  np.testing.assert_allclose(h_p, 0.25)


@pytest.mark.parametrize(
  ('call', 'word'),
  [
    (lambda x: js_of(decision_losses.squared(), x, x[1:]), "sizes='subsample'"),
    (lambda x: decision_losses.kde(0.0), 'bandwidth'),
    (lambda x: decision_losses.kde(1.0, rows='some'), 'in_sample'),
    (lambda x: decision_losses.histogram(0), 'num_values'),
    (
      lambda x: h_divergence.statistic(decision_losses.squared(), phi='max'),
      'phi must be one of',
    ),
    (
      lambda x: h_divergence.between(
        x, x, decision_losses.squared(), phi='js', mixture='thirds'
      ),
      'mixture must be one of',
    ),
    (
      lambda x: js_of(decision_losses.actions('a', lambda r: r, ('b',)), x, x),
      'costs of 1 actions',
    ),
  ],
)
def test_what_cannot_be_is_refused_in_one_line(call, word):
  with pytest.raises(InputError, match=word) as error:
    call(samples()[0])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('gap', [5.0, 6.0, 8.0, 10.0])
def test_far_rows_have_their_density_in_float32(gap):
  rows = np.zeros((20, 1), np.float32)
  rows[0] = gap
  loss = decision_losses.kde(1.0, rows='leave_one_out')
  weights = jnp.asarray(np.arange(20) == 0, float)

  @jax.jit
  def entropy(rows):
    # Of the far row alone: its 19 neighbours are all at `gap`.
    kernel, constant = loss.prepare(rows)
    others = decision_losses._leave_one_out(kernel, jnp.ones(20))
    return constant - weights @ jnp.log(others)

  found = entropy(rows)
  expected = gap**2 / 2 + np.log(2 * np.pi) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-5)
