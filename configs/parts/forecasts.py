"""Forecasts of series: their data, the network of a config, its method."""

from absl import logging
from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import attention
from repjax import types
from repjax.experiments import of_series
from repjax.layers import pyramid_graph
from repjax.methods import forecasting
from repjax.models import linear_forecaster
from repjax.models import pyraformer

_ETTH1 = dict(file='ETTh1.csv', split='ett_hours', length=168, horizon=168)

SERIES = dict(
  paper=dict(
    data=dict(
      name='sines',
      value='value',
      columns='',
      # What is known ahead, such as holidays; see models/pyraformer.py.
      covariates='',
      # Which series of a TFDS set; all if none is named.
      channels=(),
      time_column='',
      gaps='refuse',
      shares=(0.7, 0.1, 0.2),
      stride=1,
      period=24,
      eval_splits=('validation', 'test'),
      sines=dict(num_series=60, length=14_400, periods=(24, 168, 720), seed=0),
      eval_stride=1,
      **_ETTH1,
    ),
    # fitted: the series.json of another run, whose splits and scales count.
    run=dict(best='validation/mse', best_mode='min', fitted=''),
  ),
  small=dict(
    data=dict(
      file='',
      split='shares',
      eval_stride=24,
      sines=dict(num_series=8, length=2400, periods=(24, 168)),
    ),
  ),
  etth1=dict(data=dict(**_ETTH1, eval_stride=12)),
  smoke=dict(
    data=dict(length=24, horizon=8, sines=dict(num_series=2, length=400))
  ),
)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One training run."""
  data = of_series.read(config)
  made = network(config, len(data.series))
  graph = None
  if config.network == 'pyraformer':
    graph = made.pyramid
    if config.attention.kind == 'pyramid':  # Else all nodes see each other.
      found = pyramid_graph.inspect(graph, num_layers=made.num_layers)
      logging.info('%s', found)
  method_ = method(config, data, optimizer)
  return of_series.forecaster(config, data, method_, pyramid=graph)


def network(config, num_series: int):
  """What forecasts: Pyraformer, or a linear map."""
  sizes = dict(horizon=config.data.horizon)
  kinds = dict(
    pyraformer=pyraformer.Pyraformer, linear=linear_forecaster.LinearForecaster
  )
  made = presets.choose('network', config.network, kinds)
  if config.data.covariates:
    _check_covariates(config)
  if config.network == 'linear':
    return made(**sizes, **config.linear)
  kind = config.attention.kind
  return made(
    **sizes,
    **config.model,
    length=config.data.length,
    num_series=num_series if num_series > 1 else 0,
    attention_fn=None
    if kind == 'pyramid'
    else attention.attention_fn(config.attention, causal=False),
  )


def _check_covariates(config):
  if config.network == 'linear':
    raise types.InputError(
      'config.network=linear reads no covariates: set config.data.covariates='
      "'', or config.network=pyraformer."
    )
  if config.model.predictor == 'all_at_once':
    logging.warning(
      'Of the rows to come config.model.predictor=all_at_once reads covariates '
      'of the first alone; decoder reads those of all.'
    )


def method(
  config, data: of_series.Data, optimizer: types.Optimizer = optax.adam
) -> types.Method:
  """The network, its optimizer and its loss."""
  tx = config.tx
  types.check_range('(0, 1]', **{'config.tx.drop': tx.drop})
  types.check_range('[1, inf)', **{'config.tx.drops': tx.drops})
  part = max(1, data.steps // tx.drops)
  rate = optax.exponential_decay(
    tx.learning_rate, part, tx.drop, staircase=True
  )
  return forecasting.make(
    network(config, len(data.series)),
    optimizer(rate),
    squared_weight=config.squared_weight,
    inputs=data.inputs,
    **config.step,
  )
