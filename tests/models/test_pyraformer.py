"""Pyraformer: shapes, what a forecast may depend on, and bad input."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import attention
from repjax.layers import series_embedding
from repjax.layers.positions import sequence_positions
from repjax.models import linear_forecaster
from repjax.models import pyraformer

_SMALL = dict(
  horizon=5,
  length=23,
  children=(4, 2),
  hidden_dim=8,
  mlp_dim=8,
  num_heads=2,
  head_dim=3,
  num_layers=1,
  bottleneck=4,
  dropout_rate=0.0,
)


def _inputs(length=23, horizon=5, channels=2, features=3, batch=4):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(batch, length, channels)).astype(np.float32),
    rng.normal(size=(batch, length + horizon, features)).astype(np.float32),
  )


def _model(**fields):
  return pyraformer.Pyraformer(**{**_SMALL, **fields})


def _shapes(model, *inputs, **named):
  return jax.eval_shape(
    lambda *x: model.init(*x, train=False, **named), jax.random.key(0), *inputs
  )


def _drawn(shapes):
  # Nothing is compiled for it. Variances are above 0.
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (
      rng.uniform(0.1, 0.9, x.shape).astype(np.float32)
      - np.float32(0.5 if len(x.shape) > 1 else 0)
    ),
    shapes,
  )


def _forecast(model, series, covariates, **named):
  variables = _drawn(_shapes(model, series, covariates, **named))
  return jax.jit(lambda *x, **y: model.apply(variables, *x, train=False, **y))


@pytest.mark.parametrize('predictor', ['all_at_once', 'decoder'])
@pytest.mark.parametrize('output', ['mean', 'gaussian'])
def test_every_row_to_come_is_forecast(predictor, output):
  series, covariates = _inputs()
  model = _model(predictor=predictor, output=output)
  said, _ = jax.eval_shape(
    lambda *x: model.init_with_output(*x, train=False),
    jax.random.key(0),
    series,
    covariates,
  )
  assert said.mean.shape == (4, 5, 2)
  if output == 'gaussian':
    assert said.deviation.shape == (4, 5, 2)
  else:
    assert said.deviation is None


@pytest.mark.parametrize('predictor', ['all_at_once', 'decoder'])
def test_nothing_is_forecast_of_no_series(predictor):
  model, inputs = _model(predictor=predictor), _inputs(batch=0)
  shapes = _shapes(model, *_inputs())
  found = jax.eval_shape(
    lambda *x: model.apply(*x, train=False), shapes, *inputs
  )
  assert found.mean.shape == (0, 5, 2)


def test_the_decoder_sees_no_later_row_to_come():
  series, covariates = _inputs(batch=1)
  model = _model(predictor='decoder')
  apply = _forecast(model, series, covariates)

  # Of each row's covariates on the forecast of each row, [H, H].
  jacobian = jax.jit(jax.jacobian(lambda x: apply(series, x).mean[0].sum(-1)))(
    covariates
  )
  influence = abs(np.asarray(jacobian))[:, 0, 23:].sum(-1)
  # Zeros go through a convolution of values alone: covariates stay in place.
  assert (influence[np.tril_indices(5)] > 0).all()
  assert (influence[np.triu_indices(5, 1)] == 0).all()


def test_one_layer_hears_from_the_neighbourhood_of_what_is_read_out():
  # The read-out nodes see their neighbours, and coarse nodes hold what is below
  # them: the first steps reach none of these where the pyramid is short of
  # levels. Circular embeddings make the last two tokens see the first step.
  series, covariates = _inputs(batch=1)
  model = _model(children=(4,))
  apply = _forecast(model, series, covariates)
  gradient = jax.jit(jax.grad(lambda x: apply(x, covariates).mean.sum()))(
    series
  )
  heard = np.flatnonzero(abs(np.asarray(gradient))[0].sum(-1))
  # Levels 24 / 6; read out are token 23 and node 5, which see tokens 20 to 23
  # and node 4: tokens 16 to 19. A token sees one more on either side.
  assert heard.tolist() == [0, *range(15, 23)]


def test_it_is_told_which_series_it_is_what_was_missing_and_how_sure():
  series, covariates = _inputs()
  named = dict(
    entity=np.array([0, 1, 2, 0], np.int32), observed=np.ones_like(series)
  )
  model = _model(num_series=3, output='gaussian')
  apply = _forecast(model, series, covariates, **named)
  first = apply(series, covariates, **named)
  assert (first.deviation > 0).all()
  same = apply(
    series, covariates, **{**named, 'entity': np.zeros(4, np.int32)}
  ).mean
  assert (first.mean[0] == same[0]).all()
  assert (first.mean[1] != same[1]).any()
  named['observed'][0, 20] = 0
  fewer = apply(series, covariates, **named).mean
  assert (first.mean[0] != fewer[0]).any()
  assert (first.mean[1:] == fewer[1:]).all()


def test_values_are_embedded_by_a_convolution_over_a_circle():
  values = np.random.default_rng(2).normal(size=(2, 7, 3)).astype(np.float32)
  kernel = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
  bias = jnp.zeros(4)
  embed = series_embedding.SeriesEmbedding(4)
  found = embed.apply(
    {'params': {'value': {'kernel': kernel, 'bias': bias}}},
    *(values, jnp.zeros((2, 7, 0))),
    train=False,
  )
  expected = np.zeros((2, 7, 4))
  for step in range(7):
    for tap in range(3):
      seen = values[:, (step + tap - 1) % 7]
      expected[:, step] += seen @ kernel[3 * tap : 3 * tap + 3]
  places = sequence_positions.sinusoids(jnp.arange(7), 4)
  np.testing.assert_allclose(found - places[None], expected, atol=1e-4)


def test_exact_attention_is_a_network_of_equal_size():
  series, covariates = _inputs()
  sizes = []
  for attention_fn in (None, attention.Softmax()):
    model = _model(attention_fn=attention_fn)
    shapes = _shapes(model, series, covariates)
    sizes.append(jax.tree.map(lambda x: x.shape, shapes))
  assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(length=22), 'this model reads 22 rows'),
    (dict(predictor='fc'), "predictor is 'all_at_once' or 'decoder'"),
    (dict(children=(4, 4, 4)), 'a level of the pyramid has no nodes'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  series, covariates = _inputs()
  with pytest.raises(types.InputError, match=message):
    _forecast(_model(**fields), series, covariates)


def test_the_linear_forecaster_is_two_maps_of_trend_and_rest():
  series, covariates = _inputs()
  model = linear_forecaster.LinearForecaster(horizon=5, window=7)
  variables = _shapes(model, series, covariates)
  # Both maps by themselves: of two equal ones no trend would be seen.
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape), variables['params'])
  apply = jax.jit(functools.partial(model.apply, train=False))
  said = apply({'params': params}, series, covariates).mean
  # Oracle: a loop over rows and columns.
  padded = np.concatenate(
    [series[:, :1]] * 3 + [series] + [series[:, -1:]] * 3, 1
  )
  trend = np.stack([padded[:, i : i + 7].mean(1) for i in range(23)], 1)
  expected = np.zeros((4, 5, 2))
  for part, name in ((trend, 'trend'), (series - trend, 'rest')):
    for c in range(2):
      expected[:, :, c] += (
        part[:, :, c] @ params[name]['kernel'] + params[name]['bias']
      )
  np.testing.assert_allclose(said, expected, atol=1e-4)


def test_counts_are_forecast_as_numbers():
  counts = np.random.default_rng(0).integers(0, 9, (2, 20, 1))
  model = linear_forecaster.LinearForecaster(horizon=2, window=3)
  none = jnp.zeros((2, 22, 0))
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (model.init_with_output, model.apply)
  )
  said, variables = init(jax.random.key(0), counts, none)
  expected = apply(variables, counts.astype(np.float32), none)
  np.testing.assert_allclose(said.mean, expected.mean, rtol=1e-6)


def test_sums_of_half_precision_keep_the_trend():
  series = np.random.default_rng(0).normal(3, 1, (2, 168, 1))
  model = linear_forecaster.LinearForecaster(horizon=4, window=25)

  def trend(dtype):
    seen = []

    def look(call, args, kwargs, context):
      if context.module.name == 'trend' and context.method_name == '__call__':
        seen.append(args[0])
      return call(*args, **kwargs)

    @jax.jit
    def run(rows):
      none = jnp.zeros((2, 172, 0))
      with nn.intercept_methods(look):
        model.init(jax.random.key(0), rows, none, train=False)
      return seen[0]

    return np.asarray(run(series.astype(dtype)), np.float32)

  error = abs(trend(jnp.bfloat16) - trend(jnp.float32)).max()
  assert error < 0.02  # That of rounding once: rows are near 3.


@pytest.mark.parametrize('features', [0, 3])
def test_covariates_change_no_type(features):
  embedding = series_embedding.SeriesEmbedding(8)
  values = jnp.ones((2, 6, 1), jnp.bfloat16)
  rest = jnp.ones((2, 6, features), jnp.float32)

  def run(values, rest):
    variables = embedding.init(jax.random.key(0), values, rest, train=False)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    return embedding.apply(half, values, rest, train=False)

  out = jax.eval_shape(run, values, rest)
  assert out.dtype == jnp.bfloat16


def test_what_its_layers_give_can_be_looked_at():
  series, covariates = _inputs()
  model = _model()
  variables = _drawn(_shapes(model, series, covariates))
  _, seen = jax.eval_shape(
    lambda *x: model.apply(
      variables,
      *x,
      train=False,
      capture_intermediates=True,
      mutable=['intermediates'],
    ),
    series,
    covariates,
  )
  assert seen['intermediates']
