"""What is known ahead, and series of a set that TFDS wrote, are forecast."""

import csv

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import pyraformer
from repjax import types
from repjax.data.series import series as seriess
from repjax.data.series import time_features
from repjax.experiments import kept_series
from repjax.experiments import of_series
from repjax.experiments import series_figures
from repjax.layers import pyramid_graph

_LENGTH, _HORIZON = 24, 8


def holidays(path, measured=240, ahead=_HORIZON, *, empty=None):
  """A file of a load, a price and days off, the last two known ahead."""
  rng = np.random.default_rng(0)
  total = measured + ahead
  times = np.datetime64('2021-03-01T00:00:00') + 3600 * np.arange(total)
  price = 100 + 30 * rng.normal(size=total)
  off = (np.arange(total) >= 200).astype(int)  # None among training rows.
  load = np.where(np.arange(total) < measured, 50 + price / 10, np.nan)
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['time', 'price', 'load', 'off'])
    for i in range(total):
      cells = [f'{price[i]:.3f}', f'{load[i]:.3f}', str(off[i])]
      cells = ['' if x == 'nan' else x for x in cells]
      cells[0] = '' if i == empty else cells[0]
      writer.writerow([times[i], *cells])
  return price, off


def config_of(path, covariates='price,off', **data):
  config = pyraformer.get_config('smoke')
  config.model.predictor = 'decoder'
  config.data.update(file=str(path), covariates=covariates, **data)
  return config


def test_covariates_are_of_their_rows_and_in_units_of_training_rows(tmp_path):
  price, off = holidays(tmp_path / 'my.csv')
  data = of_series.read(config_of(tmp_path / 'my.csv'))
  assert data.series[0].columns == ('load',) and len(data.series[0]) == 240
  train = price[:168].round(3)
  wanted = np.stack([(price - train.mean()) / train.std(), off], -1)
  for split in ('train', 'validation', 'test', 'future'):
    rows = data.sources(split)
    read = rows.read(np.arange(len(rows)))
    for i, start in enumerate(read['position']):
      part = slice(start, start + _LENGTH + _HORIZON)
      np.testing.assert_allclose(
        read['covariates'][i][:, :2], wanted[part], atol=1e-3
      )
    assert read['covariates'].shape[2] == 2 + 4  # And the calendar.
  assert read['position'].tolist() == [240 - _LENGTH]
  assert not read['target_observed'].any()


def test_a_forecast_depends_on_what_is_known_of_its_rows(tmp_path):
  holidays(tmp_path / 'my.csv')
  experiment = pyraformer.build(config_of(tmp_path / 'my.csv'))
  batch = experiment.train.batch(0)
  state = jax.jit(experiment.method.init)(jax.random.key(0), batch)

  def total(covariates):
    batch_ = {**batch, 'covariates': covariates}
    return experiment.method.predict(state, batch_)['forecast'].sum()

  slope = np.asarray(jax.jit(jax.grad(total))(np.asarray(batch['covariates'])))
  assert (abs(slope[:, _LENGTH:, :2]).sum((0, 1)) > 0).all()


def test_scales_of_covariates_are_kept_with_a_run(tmp_path):
  holidays(tmp_path / 'my.csv')
  config = config_of(tmp_path / 'my.csv')
  made = pyraformer.build(config)
  made.companion.begin(tmp_path, 0)
  before = of_series.read(config).sources('test').read([0])['covariates']
  config.run.fitted = str(tmp_path / kept_series.FILE)
  holidays(tmp_path / 'my.csv', 300)
  data = of_series.read(config)
  after = data.sources('test').read([0])['covariates']
  np.testing.assert_array_equal(after, before)
  assert len(data.sources('new'))
  config.data.update(columns='load', covariates='price')
  with pytest.raises(types.InputError, match=r'was trained with .*off'):
    of_series.read(config)


@pytest.mark.parametrize(
  ('covariates', 'changes', 'message'),
  [
    ('prize', {}, r"no column 'prize'; .*config\.data\.covariates"),
    ('price,off,load', {}, 'none is left to forecast'),
    ('price', dict(columns='load,price'), 'name it once'),
    ('load', {}, "covariate 'load' has no value in row 240"),
  ],
)
def test_covariates_that_are_not_known_are_refused(
  covariates, changes, message, tmp_path
):
  holidays(tmp_path / 'my.csv')
  config = config_of(tmp_path / 'my.csv', covariates, **changes)
  with pytest.raises(types.InputError, match=message) as error:
    of_series.read(config)
  assert '\n' not in str(error.value)


def test_a_gap_in_a_covariate_and_a_short_future_are_refused(tmp_path):
  holidays(tmp_path / 'my.csv', empty=7)
  with pytest.raises(types.InputError, match='no value in row 7'):
    of_series.read(config_of(tmp_path / 'my.csv'))
  holidays(tmp_path / 'my.csv', ahead=3)
  data = of_series.read(config_of(tmp_path / 'my.csv'))
  with pytest.raises(types.InputError, match='known for 3: append rows'):
    data.sources('future')
  config = config_of(tmp_path / 'my.csv')
  config.network = 'linear'
  with pytest.raises(types.InputError, match='linear reads no covariates'):
    pyraformer.build(config)


class Meters(tfds.core.GeneratorBasedBuilder):
  """Series of two houses, a row each, as sets of electricity have them."""

  VERSION = tfds.core.Version('1.0.0')
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'name': tfds.features.Text(),
          'value': tfds.features.Tensor(shape=(None,), dtype=np.float32),
          'seconds': tfds.features.Tensor(shape=(None,), dtype=np.int64),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i, name in enumerate(('north/1', 'north/2', 'south/1')):
      length = 300 + 10 * i
      value = np.sin(np.arange(length) / 4) * (
        i != 2
      )  # The south stands still.
      seconds = 1_599_998_400 + 3600 * np.arange(length)
      yield name, dict(name=name, value=value.astype('f4'), seconds=seconds)


@pytest.fixture(scope='module')
def meters(tmp_path_factory):
  folder = tmp_path_factory.mktemp('meters')
  Meters(data_dir=folder).download_and_prepare(file_format='array_record')
  return folder


def test_series_of_a_set_of_tfds_are_forecast(meters):
  config = pyraformer.get_config('smoke')
  config.data.update(
    name='meters', dir=str(meters), channels=('north',), time_column='seconds'
  )
  data = of_series.read(config)
  assert [x.name for x in data.series] == ['north/1', 'north/2']
  assert [len(x) for x in data.series] == [300, 310]
  assert str(data.series[0].times[1]) == '2020-09-13T13:00:00'
  rows = data.train.read([0, len(data.train) - 1])
  assert rows['entity'].tolist() == [0, 1]
  assert rows['covariates'].shape == (2, _LENGTH + _HORIZON, 4)
  pyraformer.build(config)


def test_what_a_set_of_tfds_has_not_is_named(meters):
  config = pyraformer.get_config('smoke')
  config.data.update(name='meters', dir=str(meters))
  with pytest.raises(
    types.InputError, match=r'south/1.*config\.data\.channels'
  ):
    of_series.read(config)
  config.data.channels = ('east',)
  with pytest.raises(types.InputError, match='it has north, south'):
    of_series.read(config)
  config.data.update(channels=('north',), time_column='hours')
  with pytest.raises(types.InputError, match="no column 'hours'"):
    of_series.read(config)


@pytest.mark.parametrize('name', ['load_forecast', 'row', 'load_deviation'])
def test_a_column_called_as_one_of_the_table_is_refused(name):
  made = ['row', 'load_forecast', 'load_deviation']
  with pytest.raises(types.InputError, match=f'called {name!r}'):
    seriess.check_names(['load', name], made)
  seriess.check_names(['load', 'wind'], made)


def test_a_file_whose_forecasts_would_hide_a_column_is_refused(tmp_path):
  path = tmp_path / 'my.csv'
  holidays(path)
  path.write_text(path.read_text().replace('price', 'load_forecast', 1))
  with pytest.raises(types.InputError, match='rename it in the file'):
    pyraformer.build(config_of(path, covariates='off'))


def _table(folder, *, stride, **values):
  """(data, columns, lines of a table) of outputs that are the same all over."""
  holidays(folder / 'my.csv')
  config = config_of(folder / 'my.csv')
  config.data.eval_stride = stride
  data = of_series.read(config)
  rows = data.sources('test')
  columns = rows.read(np.arange(len(rows)))
  columns['index'] = np.arange(len(rows))
  values = {'target': 0.0, 'target_observed': 1.0, **values}
  outputs = {k: np.full((len(rows), _HORIZON, 1), x) for k, x in values.items()}
  return data, columns, list(of_series._table(data, 'test', outputs, columns))


@pytest.mark.parametrize('stride', [1, 3, 5])
def test_every_row_that_is_forecast_stands_in_the_table(tmp_path, stride):
  _, columns, lines = _table(tmp_path, stride=stride, forecast=0.0)
  begins = columns['position'] + _LENGTH
  forecast = np.unique(begins[:, None] + np.arange(_HORIZON))
  np.testing.assert_array_equal([x[1] for x in lines], forecast)


def test_numbers_of_the_table_are_in_units_of_the_file(tmp_path):
  data, columns, lines = _table(tmp_path, stride=1, forecast=1.0, deviation=2.0)
  centre, scale = (
    float(x[0]) for x in (data.series[0].centre, data.series[0].scale)
  )
  assert abs(scale - 1) > 0.1
  for line in lines:
    np.testing.assert_allclose(
      np.asarray(line[4:], float),
      [centre, centre + scale, 2 * scale],
      rtol=1e-5,
    )
  # The first window tells all of its rows, each later one its last.
  ahead = [*range(1, _HORIZON + 1), *[_HORIZON] * (len(columns['index']) - 1)]
  assert [x[3] for x in lines] == ahead


def test_the_calendar_goes_on_behind_the_last_row(tmp_path):
  holidays(tmp_path / 'my.csv', ahead=0)
  data = of_series.read(config_of(tmp_path / 'my.csv', '', columns='load'))
  found = data.sources('future').read([0])['covariates'][0]
  hours = np.arange(240 - _LENGTH, 240 + _HORIZON)
  start = np.datetime64('2021-03-01T00:00:00')
  wanted = time_features.calendar(start + 3600 * hours)
  np.testing.assert_allclose(found, np.stack([*wanted.values()], -1))


def test_a_covariate_called_as_one_of_the_calendar_is_refused(tmp_path):
  path = tmp_path / 'my.csv'
  holidays(path)
  path.write_text(path.read_text().replace('off', 'weekday', 1))
  with pytest.raises(types.InputError, match=r"'weekday'.*rename"):
    of_series.read(config_of(path, 'price,weekday'))


@pytest.mark.parametrize('leftover', ['last_parent', 'own_parent'])
@pytest.mark.parametrize('children', [(), (4, 4, 4), (5, 5, 5), (4, 4, 4, 4)])
def test_a_long_pyramid_is_drawn_with_all_of_its_levels(children, leftover):
  graph = pyramid_graph.Pyramid(
    length=600, children=children, leftover=leftover
  )
  (axes,) = series_figures.graph(graph).axes
  assert len(axes.get_yticks()) == 1 + len(children)
