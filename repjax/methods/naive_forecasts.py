"""Forecasts that need no training to speak of, for every other to be held to.

Device code, but for `fit_linear`, which solves its equations on the host.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.reading import source as sources

# Rows of the equations, each a window and a column; more tell nothing new.
_MOST_ROWS = 200_000
# Batch -> forecast [B, H, C].
Forecaster = Callable[[types.Batch], jax.Array]


def last_value(horizon: int) -> Forecaster:
  """The last row, H times."""
  return lambda batch: jnp.repeat(batch['series'][:, -1:], horizon, axis=1)


def seasonal(horizon: int, period: int, length: int) -> Forecaster:
  """The last period, again and again.

  Args:
    horizon: H.
    period: Rows of it.
    length: L, rows that are read.

  Raises:
    InputError: If the period is longer than what is read.
  """
  if not 1 <= period <= length:
    raise types.InputError(
      f'config.data.period={period} must be in [1, {length}], the rows that '
      'are read (config.data.length).'
    )
  rows = length - period + np.arange(horizon) % period
  return lambda batch: batch['series'][:, rows]


def linear(kernel: np.ndarray) -> Forecaster:
  """A linear map of the past, taken from its last row; see `fit_linear`.

  Args:
    kernel: [L + 1, H], of the past and of a constant.
  """

  def forecast(batch):
    series = batch['series'].astype(jnp.float32)
    last = series[:, -1:]
    ahead = jnp.einsum(
      'blc,lh->bhc', series - last, kernel[:-1], precision='highest'
    )
    return last + ahead + kernel[-1][None, :, None]

  return forecast


def fit_linear(
  train: sources.Source,
  validation: sources.Source,
  *,
  ridges: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
  most: int = 4000,
) -> np.ndarray:
  """The linear map with the least squared error, shared by all columns.

  What DLinear and NLinear (Zeng et al., AAAI 2023,
  https://arxiv.org/abs/2205.13504) find by steps of Adam, solved for. The last
  row is taken off the past and added to the forecast, as in NLinear.

  Args:
    train: Windows, of which the equations are made.
    validation: Windows that choose the ridge.
    ridges: Weights of the squared kernel, in units of the mean square of the
      past.
    most: Windows that are read of either, evenly spaced.

  Returns:
    float32 [L + 1, H], the last row for a constant.
  """
  past, future = _pairs(train, most)
  gram, right = past.T @ past, past.T @ future
  unit = np.trace(gram) / len(gram) + 1e-12
  judged, truth = _pairs(validation, most)
  best, kernel = np.inf, np.zeros_like(right)
  for ridge in ridges:
    found = np.linalg.solve(gram + ridge * unit * np.eye(len(gram)), right)
    error = np.square(judged @ found - truth).mean()
    if error < best:
      best, kernel = error, found
  return kernel.astype(np.float32)


def _pairs(source, most):
  """(past and 1 [N, L + 1], future [N, H]) of windows and columns, float64."""
  width = source.read([0])['series'].shape[-1]
  most = max(1, min(most, _MOST_ROWS // width))
  rows = np.unique(np.linspace(0, len(source) - 1, most).astype(int))
  read = source.read(rows)
  series = read['series'].astype(np.float64)
  last = series[:, -1:]
  past, future = series - last, read['target'] - last
  past, future = (
    x.swapaxes(1, 2).reshape(-1, x.shape[1]) for x in (past, future)
  )
  # What was not measured is filled with the last number that was.
  return np.concatenate([past, np.ones((len(past), 1))], 1), future


def beside(
  method: types.Method, forecasters: Mapping[str, Forecaster]
) -> types.Method:
  """A method whose `predict` also gives '<name> forecast' of each of these."""

  def predict(state, batch):
    outputs = dict(method.predict(state, batch))
    for name, forecaster in forecasters.items():
      outputs[f'{name} forecast'] = forecaster(batch)
    return outputs

  return method._replace(predict=predict)
