"""Other networks and attentions of the recipe, each by one field."""

import jax
import pytest

from configs import pyraformer
from configs.studies import pyraformer as study
from launch.lib import building
from repjax import types


def _experiment(**fields):
  config = pyraformer.get_config('smoke')
  config.update_from_flattened_dict(fields)
  return building.build(pyraformer, config, 'smoke')


@pytest.mark.parametrize(
  'fields',
  [
    {'attention.kind': 'exact'},
    {'attention.kind': 'performer'},
    {'attention.kind': 'rfa'},
    {'network': 'linear'},
    {'model.predictor': 'decoder'},
    {'model.output': 'gaussian', 'squared_weight': 100.0, 'data.horizon': 1},
    {'model.leftover': 'own_parent'},
    {'step.compute_dtype': 'bfloat16'},
  ],
  ids=str,
)
def test_an_update_has_the_shapes_of_the_state(fields):
  made = _experiment(**fields)
  batch = made.train.batch(0)
  rows = {name: x[:1] for name, x in batch.items()}
  state = jax.eval_shape(made.method.init, jax.random.key(0), rows)
  after, sums = jax.eval_shape(
    made.method.update, state, batch, jax.random.key(1)
  )
  assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(
    lambda x: x.shape, state
  )
  assert {'loss', 'mse'} <= set(sums)
  outputs = jax.eval_shape(made.method.predict, state, batch)
  names = ('forecast', 'last forecast', 'seasonal forecast', 'linear forecast')
  shape = batch['target'].shape
  assert {name: outputs[name].shape for name in names} == dict.fromkeys(
    names, shape
  )


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'attention.kind': 'dense'}, 'config.attention.kind'),
    ({'network': 'arima'}, 'config.network is one of pyraformer, linear'),
    ({'data.period': 25}, 'config.data.period=25 must be in'),
    ({'data.horizon': 400}, 'no window of length=24 and horizon=400'),
    ({'data.split': 'months'}, 'config.data.split must be one of'),
    ({'data.shares': (0.9, 0.2, 0.1)}, 'config.data.shares are three numbers'),
    ({'data.file': 'none.csv'}, 'There is no file none.csv'),
    ({'data.eval_splits': ('valid',)}, "'valid' is no split of a series"),
  ],
  ids=str,
)
def test_what_cannot_be_is_one_line(fields, says):
  with pytest.raises(types.InputError) as error:
    _experiment(**fields)
  assert says in str(error.value)
  assert '\n' not in str(error.value)


def test_the_published_settings():
  config = study.get_config('paper')
  assert config.model.num_heads * config.model.head_dim == 768
  assert (config.data.length, config.data.horizon) == (168, 168)
  assert (config.batch_size, config.epochs, config.tx.drop) == (32, 5.0, 0.1)
  assert config.study.rates == (1e-4,)
  assert study.get_config('etth1').data.split == 'ett_hours'


@pytest.mark.parametrize('preset', ['paper', 'gpu', 'etth1', 'small'])
def test_the_published_error_is_compared_on_its_own_windows(preset):
  data = study.get_config(preset).data
  assert study.is_published(data) == (preset != 'small')
  data.horizon = 336
  assert not study.is_published(data)
