"""Penalties over groups equal their formulas, written in NumPy row by row."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.methods import coral
from repjax.methods import group_dro
from repjax.methods import grouped
from repjax.methods import irm
from repjax.methods import reweighting
from repjax.methods import vrex

GROUPS, CLASSES, DIM = 4, 3, 5


@pytest.fixture(scope='module', params=[0, 1])
def rows(request):
  """Rows of four groups, one of which is empty, and padding."""
  rng = np.random.default_rng(request.param)
  number = 23
  mask = np.ones(number, np.float32)
  mask[-4:] = 0
  return dict(
    features=rng.normal(size=(number, DIM)).astype(np.float32) * 2 + 1,
    logits=rng.normal(size=(number, CLASSES)).astype(np.float32) * 2,
    nll=rng.exponential(size=number).astype(np.float32),
    label=rng.integers(0, CLASSES, number),
    group=rng.choice([0, 1, 3], number),
    mask=mask,
  )


def _by_group(rows):
  """Group -> indices of its real rows, of those that have any."""
  real = rows['mask'] > 0
  found = {
    g: np.flatnonzero(real & (rows['group'] == g)) for g in range(GROUPS)
  }
  return {g: at for g, at in found.items() if len(at)}


def _jitted(function, *args, **static):
  return jax.jit(functools.partial(function, **static))(*args)


def _scaled_loss(logits, label, scale):
  logits = logits.astype(np.float64) * scale
  shifted = logits - logits.max(-1, keepdims=True)
  log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  return -log_probs[np.arange(len(label)), label].mean()


def _slope(logits, label):
  """Derivative by the scale at 1, by central differences in float64."""
  step = 1e-5
  above, below = (_scaled_loss(logits, label, 1 + x) for x in (step, -step))
  return (above - below) / (2 * step)


@pytest.mark.parametrize('form', ['plain', 'unbiased'])
def test_irm_is_the_squared_slope_of_a_scale(rows, form):
  expected = []
  for at in _by_group(rows).values():
    halves = (at, at) if form == 'plain' else (at[::2], at[1::2])
    slopes = [_slope(rows['logits'][x], rows['label'][x]) for x in halves]
    expected.append(slopes[0] * slopes[1])
  found = _jitted(
    irm.penalty,
    *(rows[x] for x in ('logits', 'label', 'group', 'mask')),
    num_groups=GROUPS,
    form=form,
  )
  np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5, atol=1e-6)


def test_irm_with_a_scale_for_each_class(rows):
  expected = []
  for at in _by_group(rows).values():
    slopes = []
    for index in range(CLASSES):
      step = 1e-5 * np.eye(CLASSES)[index]
      above, below = (
        _scaled_loss(rows['logits'][at], rows['label'][at], 1 + x)
        for x in (step, -step)
      )
      slopes.append((above - below) / 2e-5)
    expected.append(np.square(slopes).sum())
  found = _jitted(
    irm.penalty,
    *(rows[x] for x in ('logits', 'label', 'group', 'mask')),
    num_groups=GROUPS,
    form='vector',
  )
  np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5, atol=1e-6)


def test_the_unbiased_form_may_be_negative_and_is_right_on_average():
  # One group; slopes are what they are, halves are drawn again and again.
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(6, CLASSES)), jnp.float32)
  label = jnp.asarray(rng.integers(0, CLASSES, 6))
  mask, group = np.ones(6), np.zeros(6, int)
  pairs = []
  for order in itertools.permutations(range(6)):
    if order[0] < order[2] < order[4] and order[1] < order[3] < order[5]:
      pairs.append(list(order))
  values = _jitted(
    jax.vmap(
      lambda at: irm.penalty(logits[at], label[at], group, mask, num_groups=1)
    ),
    jnp.asarray(pairs),
  )
  assert values.min() < 0
  # Over all halves: the mean over pairs of different rows, by enumeration.
  slopes = np.asarray(_jitted(irm.scale_gradients, logits, label)).sum(-1)
  products = [a * b for a, b in itertools.permutations(slopes, 2)]
  np.testing.assert_allclose(values.mean(), np.mean(products), atol=1e-6)


def test_vrex_is_the_variance_of_the_groups_losses(rows):
  losses = [rows['nll'][at].mean() for at in _by_group(rows).values()]
  found = _jitted(
    vrex.penalty,
    *(rows[x] for x in ('nll', 'group', 'mask')),
    num_groups=GROUPS,
  )
  np.testing.assert_allclose(found, np.var(losses), rtol=1e-5)


@pytest.mark.parametrize('form', ['mean_and_covariance', 'covariance'])
def test_coral_compares_the_moments_of_pairs(rows, form):
  expected = []
  for a, b in itertools.combinations(_by_group(rows).values(), 2):
    x, y = (rows['features'][at].astype(np.float64) for at in (a, b))
    covariance = np.cov(x.T) - np.cov(y.T)
    if form == 'covariance':
      expected.append(np.sum(covariance**2) / (4 * DIM**2))
    else:
      mean = x.mean(0) - y.mean(0)
      expected.append(np.mean(mean**2) + np.mean(covariance**2))
  found = _jitted(
    coral.penalty,
    *(rows[x] for x in ('features', 'group', 'mask')),
    num_groups=GROUPS,
    form=form,
  )
  np.testing.assert_allclose(found, np.mean(expected), rtol=2e-6)


def test_coral_skips_groups_of_one_row_and_is_zero_without_a_pair():
  features = np.arange(10, dtype=np.float32).reshape(5, 2) ** 2
  one = _jitted(
    coral.penalty,
    *(features, np.array([0, 0, 0, 0, 1]), np.ones(5)),
    num_groups=2,
  )
  assert float(one) == 0.0
  grads = _jitted(
    jax.grad(
      lambda x: coral.penalty(x, np.zeros(5, int), np.ones(5), num_groups=2)
    ),
    features,
  )
  np.testing.assert_array_equal(grads, np.zeros_like(features))


def test_equal_groups_have_no_penalty(rows):
  twice = {k: np.concatenate([x, x]) for k, x in rows.items()}
  twice['group'] = np.repeat([0, 1], len(rows['mask']))
  at = twice['group'], twice['mask']
  size = float(np.square(np.cov(rows['features'].T)).mean())
  found = _jitted(coral.penalty, twice['features'], *at, num_groups=2)
  assert abs(float(found)) < 1e-6 * size
  found = _jitted(vrex.penalty, twice['nll'], *at, num_groups=2)
  assert float(found) < 1e-12


def test_group_dro_multiplies_by_exponentials_of_losses():
  weights = np.array([0.1, 0.6, 0.3], np.float32)
  losses = np.array([2.0, 0.0, 500.0], np.float32)
  counts = np.array([4.0, 9.0, 1.0])
  grown = weights * np.exp(0.1 * (losses + 3 / np.sqrt(counts)))
  found = group_dro.updated(
    weights, losses, step_size=0.1, adjustment=3 / np.sqrt(counts)
  )
  np.testing.assert_allclose(found, grown / grown.sum(), rtol=1e-5)
  # What has no weight never gets any, and no exponent overflows.
  found = group_dro.updated(
    np.array([0.0, 1.0]), np.array([1e4, 1.0]), step_size=1.0
  )
  np.testing.assert_array_equal(found, [0.0, 1.0])


def test_reweighted_rows_are_a_mean_over_groups(rows):
  group = np.array([0, 0, 0, 2, 2, 1, 0, 0])
  values = rows['nll'][:8]
  weights = reweighting.row_weights(group, 3)
  expected = np.mean([values[group == g].mean() for g in range(3)])
  np.testing.assert_allclose((weights * values).mean(), expected, rtol=1e-6)
  with pytest.raises(types.InputError, match='Group 3 of 4 has no row'):
    reweighting.row_weights(group, 4)
  with pytest.raises(types.InputError, match=r'in \[0, 2\)'):
    reweighting.row_weights(group, 2)


def test_sets_from_which_groups_cannot_be_learnt_are_refused():
  check = grouped.check
  check(np.array([0, 1]), np.array([1, 0]), num_classes=2, num_groups=2)
  for label, group, message in (
    ([0, 1], [0, 0], 'Group 1 of 2 has no training row'),
    ([1, 1], [0, 1], 'All 2 training rows have the label 1'),
    ([0, 2], [0, 1], "'label' holds 2"),
    ([0, 1], [-1, 1], "'group' holds -1"),
  ):
    with pytest.raises(types.InputError, match=message):
      check(np.array(label), np.array(group), num_classes=2, num_groups=2)
