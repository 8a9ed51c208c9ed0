"""Two sides of one discrepancy, each of which gets its own gradient."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import trees
from repjax import types
from repjax.layers import association
from repjax.methods import anomaly_transformer
from repjax.methods import model_inputs
from repjax.models import anomaly_transformer as models

MODEL = models.AnomalyTransformer(
  hidden_dim=16, num_heads=2, num_layers=2, mlp_dim=24
)


def batch_of(rows=4, length=12, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'series': jnp.asarray(
      rng.normal(size=(rows, length, channels)), jnp.float32
    ),
    'mask': jnp.ones(rows),
  }


@pytest.fixture(scope='module')
def params():
  init = functools.partial(model_inputs.init, MODEL, model_inputs.series)
  return jax.jit(init)(jax.random.key(0), batch_of())['params']


def output_of(params, batch):
  return MODEL.apply({'params': params}, batch['series'], train=False)


def kl(p, q):
  """The authors' `my_kl_loss`, in jnp."""
  return (p * (jnp.log(p + 1e-4) - jnp.log(q + 1e-4))).sum(-1).mean(1)


def two_losses(params, batch, weight):
  """The two losses as the paper writes them, each with its own fixed side."""
  output = output_of(params, batch)
  error = jnp.square(output.series - batch['series']).mean()
  fixed = jax.lax.stop_gradient
  series_loss = prior_loss = 0.0
  for prior, series, _ in output.associations:
    series_loss += (kl(series, fixed(prior)) + kl(fixed(prior), series)).mean()
    prior_loss += (kl(prior, fixed(series)) + kl(fixed(series), prior)).mean()
  layers = len(output.associations)
  return (
    error - weight * series_loss / layers,
    error + weight * prior_loss / layers,
  )


def sgd_step(params, batch, weight=3.0):
  """(gradient, sums) of the method, by one step of plain SGD."""
  method = anomaly_transformer.make(MODEL, optax.sgd(1.0), weight=weight)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  state = state.replace(params=params)
  after, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  moved = jax.jit(lambda: jax.tree.map(jnp.subtract, params, after.params))
  return moved(), sums


def test_one_backward_pass_is_the_sum_of_two(params):
  batch = batch_of()

  @jax.jit
  def expected_of(params):
    grads = [
      jax.grad(lambda p, i=i: two_losses(p, batch, 3.0)[i])(params)
      for i in range(2)
    ]
    return jax.tree.map(jnp.add, *grads), two_losses(params, batch, 3.0)

  gradient, (maximized, minimized) = expected_of(params)
  found, sums = sgd_step(params, batch)
  chex.assert_trees_all_close(found, gradient, atol=1e-6, rtol=1e-4)
  for name, expected in (('maximize', maximized), ('minimize', minimized)):
    total, weight = sums[name]
    np.testing.assert_allclose(total / weight, expected, rtol=1e-5)


def test_the_value_of_the_sum_is_twice_the_error(params):
  _, sums = sgd_step(params, batch_of(), weight=3.0)
  mean = {name: float(x / y) for name, (x, y) in sums.items()}
  assert mean['discrepancy'] > 0.1
  total = mean['minimize'] + mean['maximize']
  np.testing.assert_allclose(total, 2 * mean['loss'], rtol=1e-5)


@pytest.mark.parametrize('phase', ['prior_moves', 'series_moves'])
def test_each_phase_reaches_its_own_side_alone(phase):
  batch = batch_of()
  # Of one layer: deeper widths depend on the attention of those before.
  model = MODEL.clone(num_layers=1)
  init = jax.jit(functools.partial(model.init, train=False))
  params = init(jax.random.key(0), batch['series'])['params']

  def of_phase(params):
    output = model.apply({'params': params}, batch['series'], train=False)
    found = anomaly_transformer.phases(output.associations)
    return getattr(found, phase).mean()

  grads = jax.device_get(jax.jit(jax.grad(of_phase))(params)['attention_0'])
  moved = {
    name: max(float(abs(x).max()) for x in jax.tree.leaves(grads[name]))
    for name in ('sigma', 'query', 'key')
  }
  own, other = ('sigma',), ('query', 'key')
  if phase == 'series_moves':
    own, other = other, own
  assert all(moved[name] > 0 for name in own)
  assert all(moved[name] == 0 for name in other)


def test_associations_move_as_the_game_says(params):
  # With the error out of the game the series association flees; the prior
  # alone, that the series association does not answer, comes closer.
  batch = batch_of()

  def descend(loss_fn, params):
    grads = jax.grad(loss_fn)
    return jax.lax.fori_loop(
      0,
      100,
      lambda _, p: jax.tree.map(lambda x, g: x - 0.05 * g, p, grads(p)),
      params,
    )

  def phase(name, sign):
    return lambda p: (
      sign
      * getattr(
        anomaly_transformer.phases(output_of(p, batch).associations), name
      ).mean()
    )

  series, prior = (
    jax.jit(phase(name, 1)) for name in ('series_moves', 'prior_moves')
  )
  before = series(params)
  apart = jax.jit(lambda p: descend(phase('series_moves', -1), p))(params)
  closer = jax.jit(lambda p: descend(phase('prior_moves', 1), p))(params)
  assert series(apart) > before + 0.1
  assert prior(closer) < before - 0.1


def test_the_score_is_a_softmax_of_the_window_times_the_error():
  rng = np.random.default_rng(0)
  error, gap = rng.uniform(size=(2, 3, 5))
  for temperature in (0.02, 1.0, 10.0):
    weights = np.exp(-gap / temperature)
    weights /= weights.sum(1, keepdims=True)
    found = anomaly_transformer.score(error, gap, temperature=temperature)
    np.testing.assert_allclose(found, weights * error, rtol=1e-5)
  flat = anomaly_transformer.score(error, gap, temperature=1e9)
  np.testing.assert_allclose(flat, error / 5, rtol=1e-5)


def test_predictions_are_those_of_the_formulas(params):
  batch = batch_of()
  method = anomaly_transformer.make(MODEL, optax.sgd(1.0), temperature=0.5)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  state = state.replace(params=params)
  found = jax.jit(method.predict)(state, batch)

  @jax.jit
  def parts(params):
    output = output_of(params, batch)
    gaps = [
      kl(x.prior, x.series) + kl(x.series, x.prior) for x in output.associations
    ]
    return output.series, gaps

  series, gaps = jax.device_get(parts(params))
  error = np.square(series - np.asarray(batch['series'])).mean(-1)
  gap = np.mean(gaps, 0)
  np.testing.assert_allclose(found['error'], error, rtol=1e-5)
  np.testing.assert_allclose(found['discrepancy'], gap, rtol=1e-4)
  weights = np.exp(-gap / 0.5)
  weights /= weights.sum(1, keepdims=True)
  np.testing.assert_allclose(found['score'], weights * error, rtol=1e-4)


def test_weight_zero_is_an_autoencoder(params):
  batch = batch_of()
  found, _ = sgd_step(params, batch, weight=0.0)
  plain = jax.jit(
    jax.grad(
      lambda p: (
        2 * jnp.square(output_of(p, batch).series - batch['series']).mean()
      )
    )
  )(params)
  chex.assert_trees_all_close(found, plain, atol=1e-6, rtol=1e-4)
  is_sigma = trees.mask(params, lambda path: 'sigma' in path)
  jax.tree.map(
    lambda x, chosen: chosen and np.testing.assert_array_equal(x, 0.0),
    found,
    is_sigma,
  )


def test_what_was_not_observed_counts_for_no_error(params):
  batch = batch_of()
  observed = np.random.default_rng(1).integers(0, 2, batch['series'].shape)
  observed[0, 0] = 0  # A position of which nothing is known.
  batch['observed'] = jnp.asarray(observed, jnp.float32)
  method = anomaly_transformer.make(MODEL, optax.sgd(1.0))
  state = jax.jit(method.init)(jax.random.key(0), batch)
  state = state.replace(params=params)
  series = jax.jit(output_of)(params, batch).series
  squares = np.square(np.asarray(series) - np.asarray(batch['series']))
  expected = [
    [x[o > 0].mean() if o.any() else 0.0 for x, o in zip(*row, strict=True)]
    for row in zip(squares, observed, strict=True)
  ]
  found = jax.jit(method.predict)(state, batch)['error']
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wider_priors_are_a_setting():
  wide = MODEL.clone(scaling=association.Scaling(base=31.0))
  batch = batch_of()
  init, apply = (
    jax.jit(functools.partial(x, train=False)) for x in (wide.init, wide.apply)
  )
  variables = init(jax.random.key(0), batch['series'])
  output = jax.device_get(apply(variables, batch['series']))
  assert max(x.sigma.max() for x in output.associations) > 2.01


def test_settings_out_of_range_are_refused():
  for field, value in (('temperature', 0.0), ('weight', -1.0)):
    with pytest.raises(types.InputError, match=field):
      anomaly_transformer.make(MODEL, optax.sgd(1.0), **{field: value})
  with pytest.raises(types.InputError, match='dropout_rate'):
    models.AnomalyTransformer(dropout_rate=1.0)
  with pytest.raises(types.InputError, match='num_layers'):
    models.AnomalyTransformer(num_layers=0)
  # Widths of 0, or below: the prior would be NaN.
  for field, value in (('base', 1.0), ('offset', 0.0), ('sharpness', -1.0)):
    scaling = association.Scaling(**{field: value})
    with pytest.raises(types.InputError, match=f'scaling.{field}'):
      models.AnomalyTransformer(scaling=scaling)


class Echo(nn.Module):
  """Gives the windows again, in the type that they have."""

  @nn.compact
  def __call__(self, series, *, train, mask=None):
    del train, mask
    scale = self.param('scale', nn.initializers.ones, ())
    length = series.shape[1]
    even = jnp.full((len(series), 1, length, length), 1 / length)
    found = association.Associations(even, even, even[..., 0])
    return models.Reconstruction(series * scale, (found,))


@pytest.mark.parametrize('shift', [0.0, 1.0])
def test_bfloat16_rounds_what_the_network_sees_and_not_its_target(shift):
  method = anomaly_transformer.make(
    Echo(),
    optax.sgd(0.0),
    weight=0.0,
    compute_dtype='bfloat16',
    transform=lambda batch, rng: {**batch, 'series': batch['series'] + shift},
  )
  batch = batch_of()
  state = jax.jit(method.init)(jax.random.key(0), batch)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  series = np.asarray(batch['series'] + shift)
  rounded = np.asarray(jnp.asarray(series, jnp.bfloat16), np.float32)
  total, weight = sums['loss']
  expected = np.square(rounded - series).mean()
  assert expected > 0
  np.testing.assert_allclose(total / weight, expected, rtol=1e-4)
