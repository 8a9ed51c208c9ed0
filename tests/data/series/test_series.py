"""Series from files and arrays: what is read, and what is refused."""

import csv
import zipfile

import numpy as np
import pytest

from repjax import types
from repjax.data.series import reading
from repjax.data.series import series as seriess
from repjax.data.series import splits
from repjax.data.series import stream
from repjax.data.series import time_features
from repjax.data.series import windows
from repjax.data.sets import sines


@pytest.fixture
def write(tmp_path):
  def call(rows, name='my.csv'):
    path = tmp_path / name
    with path.open('w', newline='') as file:
      csv.writer(file).writerows(rows)
    return path

  return call


def _hours(count, skip=()):
  start = np.datetime64('2016-07-01T00:00:00')
  return [
    str(start + 3600 * i).replace('T', ' ')
    for i in range(count)
    if i not in skip
  ]


def test_a_csv_file_becomes_its_numbers(write):
  rows = [['date', 'load', 'temp'], *zip(_hours(3), '123', '456', strict=True)]
  rows[2] = (*rows[2][:2], '')
  made = reading.read_csv(write(rows))
  assert made.columns == ('load', 'temp')
  np.testing.assert_array_equal(made.values, [[1, 4], [2, np.nan], [3, 6]])
  np.testing.assert_array_equal(made.times, np.array(_hours(3), 'M8[s]'))
  np.testing.assert_array_equal(made.filled(), [[1, 4], [2, 4], [3, 6]])
  chosen = reading.read_csv(write(rows), columns=('temp',))
  np.testing.assert_array_equal(chosen.values[:, 0], [4, np.nan, 6])


def test_time_zones_are_brought_to_utc(write):
  stamps = ['2020-01-01T00:00:00+02:00', '2020-01-01T01:00:00+02:00']
  made = reading.read_csv(
    write([['when', 'x'], *zip(stamps, '12', strict=True)]), time_column='when'
  )
  assert str(made.times[0]) == '2019-12-31T22:00:00'


@pytest.mark.parametrize(
  'rows, options, message',
  [
    (
      [['date', 'a', 'b'], *zip(_hours(2), '12', 'xy', strict=True)],
      {},
      r"column 'b' holds text \('x' in line 2\): name the columns of numbers",
    ),
    (
      [['date', 'a'], *zip(_hours(3)[::-1], '123', strict=True)],
      {},
      r'row 1 .* is before row 0 .*: sort the rows by time',
    ),
    (
      [['date', 'a'], *zip([_hours(1)[0]] * 2, '12', strict=True)],
      {},
      r'row 1 .* repeats row 0 .*: drop one of them',
    ),
    (
      [['date', 'a'], *zip(_hours(6, skip=(3,)), '12345', strict=True)],
      {},
      r'row 3\) it is 7200 seconds, and 1 row\(s\) are missing .*gaps=fill',
    ),
    ([['date', 'a'], ['soon', '1']], {}, r"'soon' in line 2 .* is no time"),
    ([['a'], ['inf']], {}, r"column 'a' is infinite in row 0"),
    ([['a'], ['1']], {'columns': ('z',)}, r"no column 'z'; it has a"),
    ([['a', 'b'], ['1']], {}, r'line 2 has 1 cells, the header 2'),
    ([['a', 'a'], ['1', '2']], {}, r'two columns have one name'),
    ([['a']], {}, r'needs a header line and rows below it'),
    ([['date;a'], ['2016;1']], {}, r'has semicolons between its cells'),
    ([['date\ta'], ['2016\t1']], {}, r'has tabs between its cells'),
    ([['a', '-1.5'], ['1', '2']], {}, r"first line holds '-1.5', which is no"),
    (
      list(zip(_hours(2), '12', strict=True)),
      {},
      r"first line holds '2016-07-01 00:00:00', which is no name",
    ),
    ([['a'], ['1e39']], {}, r"column 'a' is infinite in row 0"),
    (
      [['a'], *([f'{120_000_000 + 3 * i}'] for i in range(9))],
      {},
      r"column 'a' changes by about 3 .* around 1\.2e\+08, which float32",
    ),
    (
      [['date', 'a'], ['2016-07-01 00:00:00.5', '1']],
      {},
      r'fractions of a second, .*: round them',
    ),
    (
      [['a', 'l'], ['1', '2']],
      {'label_column': 'l'},
      r'labels must be 0 or 1',
    ),
    (
      [['a', 'l'], ['1', '0'], ['2', '1']],
      {'columns': ('a', 'l'), 'label_column': 'l'},
      r"column 'l' has two roles: .* take it out of --config\.data\.columns",
    ),
    (
      [['date', 'a'], *zip(_hours(2), '12', strict=True)],
      {'columns': ('date', 'a')},
      r"column 'date' has two roles",
    ),
  ],
)
def test_a_bad_file_is_one_clear_line(write, rows, options, message):
  with pytest.raises(types.InputError, match=message) as caught:
    reading.read_csv(write(rows), **options)
  assert '\n' not in str(caught.value)


def test_no_row_is_swallowed_by_a_quote_that_is_not_closed(tmp_path):
  path = tmp_path / 'my.csv'
  lines = [f'{hour},{i},' for i, hour in enumerate(_hours(6))]
  lines[3] += '"open'
  path.write_text('\n'.join(['date,load,comment', *lines]) + '\n')
  with pytest.raises(types.InputError, match='from row 5 on'):
    reading.read_csv(path, columns=('load',))


def test_a_column_without_a_name_is_no_series_unless_it_is_named(write):
  rows = [['', 'date', 'a'], *zip('01', _hours(2), '34', strict=True)]
  with pytest.raises(types.InputError, match='column 1 has no name'):
    reading.read_csv(write(rows))
  assert reading.read_csv(write(rows), columns=('a',)).columns == ('a',)


@pytest.mark.parametrize(
  'values',
  [
    np.ones(3, complex),
    np.arange(3).astype('M8[s]'),
    np.arange(3).astype('m8[s]'),
    np.array(['1', '2']),
  ],
  ids=lambda x: str(x.dtype),
)
def test_what_is_no_real_number_is_refused(values):
  with pytest.raises(types.InputError, match='real numbers'):
    seriess.from_arrays('x', values)


def test_an_empty_line_of_one_column_is_a_missing_value(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('\nload\n1\n2\n\n4\n\n\n')
  found = reading.read_csv(path)
  np.testing.assert_array_equal(found.values[:, 0], [1, 2, np.nan, 4])
  path.write_text('load,heat\n1,2\n\n4,5\n')
  assert len(reading.read_csv(path)) == 2
  path.write_bytes(b'load\r\r\n1\r\r\n2\r\r\n3\r\r\n')
  np.testing.assert_array_equal(reading.read_csv(path).values[:, 0], [1, 2, 3])


def test_a_wrong_time_fills_no_memory(write):
  times = ['1970-01-01 00:00:00', *_hours(5)]
  path = write([['date', 'a'], *zip(times, '123456', strict=True)])
  with pytest.raises(types.InputError, match=r'before row 1, from 1970-01-01'):
    reading.read_csv(path, gaps='fill')


def test_what_float32_keeps_is_no_staircase():
  rows = np.arange(9.0)
  for kept in (1e5 + rows, 3e9 + 2e9 * rows, np.full(9, 1e9), rows / 1e9):
    seriess.from_arrays('a', kept)
  with pytest.raises(types.InputError, match='take its differences'):
    seriess.from_arrays('a', np.arange(9) + 2**40)
  fine = np.datetime64('2024-01-01', 'ms') + np.arange(9) * 100
  with pytest.raises(types.InputError, match='fractions of a second'):
    seriess.from_arrays('a', rows, times=fine)
  seriess.from_arrays('a', rows, times=fine[:1] + 1000 * np.arange(9))
  with pytest.raises(types.InputError, match='fractions of a second'):
    seriess.from_arrays('a', rows, times=fine.astype('datetime64[us]').tolist())
  # Rounding is no step, and None no number.
  jitter = np.where(np.arange(9) % 2, 0.3, np.nextafter(0.3, 1))
  seriess.from_arrays('a', jitter)
  found = seriess.from_arrays('a', np.array([1.0, None, 2.0], object))
  np.testing.assert_array_equal(found.values[:, 0], [1, np.nan, 2])


def test_a_series_that_is_named_twice_is_there_once():
  parts = [seriess.from_arrays(x, np.arange(3.0)) for x in ('a/b', 'a/c', 'd')]
  found = reading.named(parts, ('a', 'a/c', 'd', 'd'), of='set')
  assert [x.name for x in found] == ['a/b', 'a/c', 'd']


def test_a_member_that_is_no_array_is_refused(tmp_path):
  path = tmp_path / 'x.npz'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('test', b'hello')
  with pytest.raises(types.InputError):
    reading.read_npz(path, 'test')


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(types.InputError, match=r'There is no file .* --data_dir'):
    reading.read_csv(tmp_path / 'none.csv')
  with pytest.raises(types.InputError, match='cannot be read'):
    reading.read_npz(tmp_path / 'none.npz', 'x')


def test_a_file_in_another_encoding(tmp_path):
  path = tmp_path / 'my.csv'
  path.write_text('a\n1\n', encoding='utf-16')
  with pytest.raises(
    types.InputError, match=r'no text in UTF-8 .*: save it in'
  ):
    reading.read_csv(path)


def test_whole_numbers_are_names_as_pandas_writes_them(write):
  rows = [['date', '0', '20160701'], [_hours(1)[0], '1', '2']]
  made = reading.read_csv(write(rows))
  assert made.columns == ('0', '20160701')


def test_gaps_are_filled_with_missing_rows(write):
  hours = _hours(6, skip=(2, 3))
  path = write([['date', 'a', 'l'], *zip(hours, '1234', '0101', strict=True)])
  made = reading.read_csv(path, gaps='fill', label_column='l')
  np.testing.assert_array_equal(made.values[:, 0], [1, 2, np.nan, np.nan, 3, 4])
  np.testing.assert_array_equal(made.labels, [0, 1, 0, 0, 0, 1])
  np.testing.assert_array_equal(made.times, np.array(_hours(6), 'M8[s]'))


def test_arrays_of_npz_files(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, test=np.arange(6.0).reshape(3, 2), label=np.array([0, 1, 0]))
  made = reading.read_npz(path, 'test', label_key='label')
  assert made.values.shape == (3, 2)
  assert made.labels.tolist() == [0, 1, 0]
  with pytest.raises(types.InputError, match="no array 'tset'; it has test"):
    reading.read_npz(path, 'tset')


def test_series_of_a_prepared_set(real_data):
  found = reading.read_tfds('nab', 'train', data_dir=real_data, label='label')
  assert len(found) == 58
  assert sum(map(len, found)) == 365_558
  assert all(x.labels.shape == (len(x),) for x in found)
  with pytest.raises(types.InputError, match="nab has no column 'load'"):
    reading.read_tfds('nab', 'train', data_dir=real_data, value='load')


def test_labels_of_another_length_are_refused():
  with pytest.raises(types.InputError, match='series has 3 rows'):
    seriess.from_arrays('x', np.arange(3.0), labels=[0, 1])


def test_the_scale_is_that_of_training_rows_alone():
  values = np.array([[1.0], [3.0], [np.nan], [100.0]])
  made = seriess.from_arrays('x', values)
  scaled = splits.scaled(made, (0, 3))
  np.testing.assert_allclose(scaled.values[:, 0], [-1, 1, np.nan, 98])
  np.testing.assert_allclose(scaled.in_units(scaled.values), values)
  # Before the first measured value stands the mean.
  late = seriess.from_arrays('x', [np.nan, 1.0, 3.0])
  assert splits.scaled(late, (0, 3)).filled()[0, 0] == 0


def test_a_constant_column_is_named():
  made = seriess.from_arrays(
    'x', np.stack([np.arange(4.0), np.full(4, 7.0)], -1), columns=('a', 'b')
  )
  with pytest.raises(types.InputError, match=r"'b' is constant .*\(7\)"):
    splits.fit_scale(made, (0, 4))
  _, scale = splits.fit_scale(made, (0, 4), constant='keep')
  assert scale[1] == 1


@pytest.mark.parametrize(
  ('low', 'high', 'scale'),
  # Rounding is a millionth of the mean, and of a millionth near 0.
  [
    (7.0, 7.000004, 1),
    (7.0, 7.00004, 2e-5),
    (0.0, 1e-12, 1),
    (0.0, 1e-11, 5e-12),
  ],
)
def test_what_only_rounding_changes_is_constant(low, high, scale):
  values = np.array([low, high] * 3)
  made = seriess.from_arrays('x', values)
  _, found = splits.fit_scale(made, (0, 6), constant='keep')
  np.testing.assert_allclose(found, scale, rtol=0.05)
  np.testing.assert_allclose(splits.fit_column(values)[1], scale, rtol=0.05)


def test_months_of_ett_are_those_published():
  borders = splits.by_rows(17_420, splits.ETT_HOURS)
  assert borders == {
    'train': (0, 8640),
    'validation': (8640, 11520),
    'test': (11520, 14400),
  }
  with pytest.raises(types.InputError, match='test split is rows'):
    splits.by_rows(14_000, splits.ETT_HOURS)
  with pytest.raises(types.InputError, match='three splits'):
    splits.by_rows(14_000, (10, 10))
  # Rows of 15 minutes end at the same times.
  minutes = splits.by_rows(69_680, splits.ETT_MINUTES)
  assert minutes == {
    name: (4 * first, 4 * last) for name, (first, last) in borders.items()
  }


def _counting(num_series=1, length=20):
  return [
    seriess.from_arrays(f's{i}', 100.0 * i + np.arange(length))
    for i in range(num_series)
  ]


def test_windows_are_cut_by_position():
  several = [
    x.with_covariates({'twice': 2 * x.values[:, 0]}) for x in _counting(2)
  ]
  source = windows.windows(several, length=4, horizon=2, stride=3)
  # Oracle: a loop over positions.
  expected = [(i, start) for i in range(2) for start in range(0, 20 - 6 + 1, 3)]
  assert len(source) == len(expected)
  read = source.read(np.arange(len(source)))
  for row, (entity, start) in enumerate(expected):
    first = 100 * entity + start
    assert read['series'][row, :, 0].tolist() == [first + i for i in range(4)]
    assert read['target'][row, :, 0].tolist() == [first + 4, first + 5]
    assert read['covariates'][row, :, 0].tolist() == [
      2 * (first + i) for i in range(6)
    ]
    assert (read['entity'][row], read['position'][row]) == (entity, start)


def test_what_is_forecast_lies_in_the_split_and_no_row_is_left_out():
  (one,) = _counting()
  borders = splits.by_share(20, (0.5, 0.25, 0.25))
  targets = {}
  for split, rows in borders.items():
    source = windows.windows(one, length=3, horizon=2, rows=rows)
    read = source.read(np.arange(len(source)))
    targets[split] = set(read['target'].ravel().astype(int).tolist())
    assert read['series'].min() >= max(0, rows[0] - 3)
  assert targets['train'] == set(range(3, 10))
  assert targets['validation'] == set(range(10, 15))
  assert targets['test'] == set(range(15, 20))


def test_windows_without_forecasts_stay_in_their_rows():
  (one,) = _counting()
  source = windows.windows(one, length=4, rows=(10, 20))
  assert source.read([0])['series'][0, 0, 0] == 10
  assert len(source) == 7


@pytest.mark.parametrize('horizon', [0, 2])
def test_rows_before_the_first_one_are_refused(horizon):
  with pytest.raises(types.InputError, match=r'from 0 on; got rows=\(-3, 20\)'):
    windows.windows(_counting(), length=2, horizon=horizon, rows=(-3, 20))


def test_missing_values_are_marked():
  one = seriess.from_arrays('x', [1.0, np.nan, 3.0, np.nan])
  read = windows.windows(one, length=2, horizon=2).read([0])
  assert read['series'][0, :, 0].tolist() == [1, 1]
  assert read['observed'][0, :, 0].tolist() == [1, 0]
  assert read['target_observed'][0, :, 0].tolist() == [1, 0]


@pytest.mark.parametrize('length, horizon', [(21, 0), (15, 6)])
def test_windows_longer_than_the_series_are_refused(length, horizon):
  with pytest.raises(types.InputError, match=r'no window of length='):
    windows.windows(_counting(), length=length, horizon=horizon)


def test_a_horizon_beyond_the_split_is_refused():
  with pytest.raises(types.InputError, match='rows 18 to 20 of a series of 20'):
    windows.windows(
      _counting(), length=4, horizon=3, rows=(18, 20), name='test'
    )


def test_windows_take_no_memory_of_their_own():
  one = seriess.from_arrays('x', np.zeros(50_000, np.float32))
  source = windows.windows(one, length=1000)  # 200 MB if they were copied.
  held = [x for x in vars(source.reader).values() if isinstance(x, np.ndarray)]
  assert sum(x.nbytes for x in held) < 2e6


def test_a_part_begins_with_what_was_measured_before_it():
  values = np.arange(12, dtype=np.float32).reshape(6, 2)
  values[2:4, 0] = np.nan
  values[:4, 1] = np.nan
  whole = seriess.from_arrays('a', values, columns=('x', 'y'))
  for centre, scale in (([0.0, 0.0], [1.0, 1.0]), ([3.0, 3.0], [2.0, 2.0])):
    scaled = whole.scaled(np.array(centre), np.array(scale))
    for cut in range(5):
      part = scaled.part(cut, 6)
      np.testing.assert_array_equal(part.filled(), scaled.filled()[cut:])
      # Of a part's part, and of some columns.
      np.testing.assert_array_equal(
        part.part(1, 6 - cut).select(['x']).filled(),
        scaled.filled()[cut + 1 :, :1],
      )
    np.testing.assert_array_equal(
      whole.part(3, 6).scaled(np.array(centre), np.array(scale)).filled(),
      scaled.filled()[3:],
    )


def test_a_stream_gives_the_windows_of_the_file():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(30, 2))
  values[rng.random((30, 2)) < 0.2] = np.nan
  made = splits.scaled(seriess.from_arrays('x', values), (0, 20))
  source = windows.windows(made, length=7)
  arriving = stream.Stream(length=7, centre=made.centre, scale=made.scale)
  found = [arriving.push(row) for row in values]
  assert found[:6] == [None] * 6
  # `push` overwrites: what is compared is each window at its time.
  arriving = stream.Stream(length=7, centre=made.centre, scale=made.scale)
  for step, row in enumerate(values):
    window = arriving.push(row)
    if window is not None:
      read = source.read([step - 6])
      for name in ('series', 'observed'):
        np.testing.assert_allclose(window[name], read[name][0], atol=1e-6)
  with pytest.raises(types.InputError, match='2 finite numbers'):
    arriving.push(np.array([1.0]))


def test_the_calendar_of_a_known_day():
  # 2016-07-01 was a Friday, day 182 of a leap year.
  made = time_features.calendar(np.array(['2016-07-01T23:00'], 'M8[s]'))
  assert list(made) == ['hour', 'weekday', 'month_day', 'year_day']
  np.testing.assert_allclose(
    [x[0] for x in made.values()],
    [0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5],
    atol=1e-6,
  )


def test_sines_have_their_periods_and_their_noise():
  (one,) = sines.sines(num_series=1, length=2000, periods=(24,), seed=3)
  spectrum = abs(np.fft.rfft(one.values[:1992, 0]))
  assert spectrum[1:].argmax() + 1 == 1992 // 24
  rng = np.random.default_rng(0)
  noise = np.stack([sines.correlated_noise(8, rng) for _ in range(20_000)])
  lags = abs(np.arange(8)[:, None] - np.arange(8))
  np.testing.assert_allclose(
    noise.T @ noise / 20_000, 1 / (lags + 1), atol=0.04
  )


def test_the_calendar_goes_from_end_to_end():
  # The last minute of a Friday and of a year, and half past twelve of a Sunday.
  times = np.array(['2021-12-31T23:59', '2022-01-02T00:30'], 'M8[s]')
  made = time_features.calendar(times)
  assert list(made) == ['hour', 'weekday', 'month_day', 'year_day', 'minute']
  expected = [
    [0.5, -0.5],
    [4 / 6 - 0.5, 0.5],
    [0.5, 1 / 30 - 0.5],
    [364 / 365 - 0.5, 1 / 365 - 0.5],
    [0.5, 30 / 59 - 0.5],
  ]
  np.testing.assert_allclose(list(made.values()), expected, atol=1e-6)
