"""Generators of pairs of distributions have the moments that they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.data.reading import source
from repjax.data.sets import climates
from repjax.data.sets import gaussian_fakes
from repjax.data.sets import two_samples
from repjax.types import InputError

MANY = 40_000


def drawn(draw, key, num_rows):
  return jax.device_get(jax.jit(draw, static_argnums=1)(key, num_rows))


def test_blobs_are_round_and_slanted():
  p, q = drawn(two_samples.blobs, jax.random.key(0), MANY)
  for rows, slants in (
    (p, np.zeros(9)),
    (q, [-0.02, -0.022, -0.024, -0.026, 0, 0.02, 0.022, 0.024, 0.026]),
  ):
    blob = np.rint(rows.clip(0, 2)) @ [3, 1]
    for i in range(9):
      own = rows[blob == i]
      assert abs(len(own) / MANY - 1 / 9) < 0.01
      # Few rows are nearer to another blob, which takes a little off.
      covariance = np.cov(own.T)
      np.testing.assert_allclose(np.diag(covariance), 0.03, atol=0.002)
      np.testing.assert_allclose(covariance[0, 1], slants[i], atol=0.0025)


def test_clusters_differ_in_nothing_but_correlation():
  p, q = drawn(two_samples.gaussian_mixtures(4), jax.random.key(0), MANY)
  # The mixture of both clusters: +.5 and -.5 cancel, centres add 1/16.
  expected = np.eye(4) + np.full((4, 4), 0.0625)
  for rows in (p, q):
    np.testing.assert_allclose(rows.mean(0), 0.25, atol=0.03)
    np.testing.assert_allclose(np.cov(rows.T), expected, atol=0.04)

  def moment(x):
    x = x - 0.25
    return (x[:, 0] * x[:, 1] * x[:, 2:].sum(-1)).mean()

  # In Q the first two go with each other where the others are low.
  assert moment(q) < moment(p) - 0.1
  with pytest.raises(InputError, match='dim'):
    two_samples.gaussian_mixtures(1)


def test_samples_of_one_set_share_no_row():
  x, y = two_samples.disjoint(np.arange(10.0))(jax.random.key(0), 5)
  assert sorted([*x.tolist(), *y.tolist()]) == list(range(10))
  with pytest.raises(InputError, match='disjoint samples of 6'):
    two_samples.disjoint(np.arange(10.0))(jax.random.key(0), 6)


def test_subsets_repeat_no_row():
  draw = two_samples.subsets(np.arange(6.0), np.arange(10.0, 20))
  x, y = draw(jax.random.key(0), 6)
  assert set(x.tolist()) == set(range(6)) and len(set(y.tolist())) == 6
  assert min(y) >= 10
  with pytest.raises(InputError, match='not 7'):
    draw(jax.random.key(0), 7)


def test_fakes_have_the_moments_of_their_class():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(4, 4)) * 5
  labels = rng.integers(0, 2, 500)
  images = 90 + 70 * labels[:, None] + rng.normal(size=(500, 4)) @ root
  real = source.from_arrays(
    'real',
    {'image': images.astype(np.uint8).reshape(-1, 2, 2, 1), 'label': labels},
    num_classes=2,
  )
  fakes = gaussian_fakes.make(real, 20_000, seed=1).columns()
  assert abs(fakes['label'].mean() - labels.mean()) < 0.02
  for label in (0, 1):
    found, wanted = (
      x['image'][x['label'] == label].reshape(-1, 4).astype(float)
      for x in (fakes, real.columns())
    )
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=0.5)
    np.testing.assert_allclose(
      np.cov(found.T), np.cov(wanted.T), rtol=0.06, atol=6
    )


def test_fakes_of_images_that_are_no_bytes_are_refused():
  rows = {'image': np.ones((4, 2, 2, 1), np.float32), 'label': np.arange(4)}
  with pytest.raises(InputError, match='must be uint8; got float32'):
    gaussian_fakes.make(source.from_arrays('real', rows), 10, seed=0)


def test_climates_change_in_one_way_each():
  means = climates.means(jax.random.key(0), 200)
  changed = np.asarray(means.before != means.after)
  expected = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
  np.testing.assert_array_equal(changed, expected[np.asarray(means.change)])
  draw = functools.partial(climates.years, num_years=MANY)
  years = np.asarray(jax.jit(draw)(jax.random.key(1), means.before[:3]))
  np.testing.assert_allclose(years.mean(1), means.before[:3], rtol=0.01)
  spread = jax.jit(lambda x: climates.standardised(x).std(1))(years)
  np.testing.assert_allclose(spread, 1.0, atol=0.02)


def test_costs_of_a_year_by_hand():
  year = jnp.array([[18.0, 300.0, 5.0], [8.0, 2000.0, 5.0]])
  crop = np.asarray(jax.jit(climates.crop_costs)(year))
  assert crop[0, 2] == pytest.approx(-1.2 * 300 / 600)  # Maize, half the rain.
  assert crop[1, 0] == pytest.approx(-0.8 * np.exp(-1 / 32))
  heating = np.asarray(jax.jit(climates.heating_costs)(year))
  np.testing.assert_allclose(heating[0], np.arange(19))
  assert heating[1, 10] == 10 and heating[1, 9] == 9 + 4
