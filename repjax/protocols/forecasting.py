"""Trains forecasters over seeds and rates; validation alone chooses.

The epoch and the rate are those with the least error on validation windows,
for every network alike, and errors are reported of test windows. (The public
code of Pyraformer and of others keeps the epoch that is best on the test set.)
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.methods import naive_forecasts
from repjax.metrics import forecasting as metrics
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]

# Windows that are predicted at a time, of each seed.
_CHUNK = 64


class Chosen(NamedTuple):
  """S networks as they were best on validation.

  Attributes:
    rate: Of all seeds: with the least mean error on validation.
    step: Of each seed, [S].
    validation: Mean squared errors there, [S].
    outputs: Of the test windows, name -> [S, N, ...].
    curve: (steps [T], errors on validation [T, S]) at that rate.
    by_rate: Rate -> least errors on validation, [S].
  """

  rate: float
  step: np.ndarray
  validation: np.ndarray
  outputs: dict[str, np.ndarray]
  curve: tuple[np.ndarray, np.ndarray]
  by_rate: dict[float, np.ndarray]

  def scores(self, test: Columns) -> dict[str, np.ndarray]:
    """'mse' and 'mae' of the test windows, [S]."""
    return {
      'mse': metrics.mse(self.outputs, test),
      'mae': metrics.mae(self.outputs, test),
    }


def train(
  name: str,
  method: types.Method,
  rows: Mapping[str, Columns],
  *,
  seeds: Sequence[int],
  rates: Sequence[float],
  batch_size: int,
  steps: int,
  points: int = 10,
) -> Chosen:
  """Trains one network a seed at each of the rates.

  Args:
    name: For the progress lines.
    method: Of `methods.forecasting`, with a `side_by_side.swept` optimizer.
    rows: 'train', 'validation' and 'test' windows, column by column.
    seeds: S seeds of initialization, data order and dropout.
    rates: What updates are multiplied with.
    batch_size: Windows of a step.
    steps: Number of updates.
    points: How often validation is looked at.

  Raises:
    InputError: There is no rate.
    NonFiniteError: All of them diverge; one that does is not chosen.
  """
  fresh = side_by_side.begin(method, {}, seeds, shared=rows['train'])
  predict = side_by_side.predict_fn(method)
  best: tuple[float, Chosen, types.TrainState] | None = None
  by_rate = {}
  if not rates:
    raise types.InputError('rates must name one at least')
  for rate in rates:
    try:
      step, least, kept, curve = _fit(
        f'{name}, rate {rate:g}',
        method,
        side_by_side.with_rate(fresh, rate),
        rows,
        predict,
        seeds=seeds,
        batch_size=batch_size,
        steps=steps,
        points=points,
      )
    except types.NonFiniteError as error:
      logging.info('%s: rate %g is not chosen: %s', name, rate, error)
      by_rate[rate] = np.full(len(seeds), np.inf)
      continue
    by_rate[rate] = least
    if best is None or least.mean() < best[0]:
      best = (least.mean(), Chosen(rate, step, least, {}, curve, {}), kept)
  if best is None:
    raise types.NonFiniteError(
      f'{name} diverges at every rate of {list(rates)}: add lower ones'
    )
  _, chosen, kept = best
  outputs = in_chunks(predict, kept, rows['test'])
  return chosen._replace(outputs=outputs, by_rate=by_rate)


def _fit(
  name, method, states, rows, predict, *, seeds, batch_size, steps, points
):
  """(best steps [S], their errors [S], their states, curve)."""
  order = seed_loop.epochs(
    len(rows['train']['series']), seeds, steps=steps, batch_size=batch_size
  )
  kept, best_step = states, np.zeros(len(seeds), int)
  least = np.full(len(seeds), np.inf)
  at, errors = [], []
  for step, current, means in seed_loop.fit(
    method,
    states,
    {},
    order,
    seeds=seeds,
    every=max(1, steps // points),
    shared=rows['train'],
  ):
    validation = rows['validation']
    error = metrics.mse(in_chunks(predict, current, validation), validation)
    better = error < least
    kept = _choose(better, current, kept)
    best_step, least = (
      np.where(better, new, old)
      for new, old in ((step, best_step), (error, least))
    )
    at.append(step)
    errors.append(error)
    logging.info(
      '%s: step %d/%d  loss %.4f  validation/mse %.4f',
      name,
      step,
      steps,
      means['loss'].mean(),
      error.mean(),
    )
  if not np.isfinite(least).all():
    raise types.NonFiniteError('its error on validation rows is never finite')
  return best_step, least, kept, (np.asarray(at), np.stack(errors))


def _choose(better, new, old):
  """States of the seeds that are better, and the old ones of the others."""

  def one(x, y):
    where = better.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(where, x, y)

  # Copies: the loop gives its own states away.
  return jax.tree.map(one, new, old)


def in_chunks(predict, states, columns: Columns) -> dict[str, np.ndarray]:
  """What `side_by_side.predict_fn` gives, of so many windows at a time.

  Only what forecasts are: what they are judged by is the same for all seeds.
  """
  total = len(columns['series'])
  parts = []
  for start in range(0, total, _CHUNK):
    # One shape for all, so that it compiles once.
    places = np.minimum(np.arange(start, start + _CHUNK), total - 1)
    outputs = predict(states, {k: x[places] for k, x in columns.items()})
    count = min(_CHUNK, total - start)
    parts.append(
      {
        name: x[:, :count]
        for name, x in outputs.items()
        if name in ('forecast', 'deviation')
      }
    )
  return {
    name: np.concatenate([x[name] for x in parts], axis=1) for name in parts[0]
  }


def naive(
  train_windows: sources.Source,
  validation: sources.Source,
  test: Columns,
  *,
  period: int,
) -> dict[str, dict[str, float]]:
  """'mse' and 'mae' on test windows of what needs no training.

  Args:
    train_windows: What the linear map is fitted to.
    validation: What chooses its ridge.
    test: Windows, column by column.
    period: Rows of a season.

  Returns:
    'last', 'seasonal' and 'linear' -> its errors.
  """
  horizon, length = test['target'].shape[1], test['series'].shape[1]
  made = {
    'last': naive_forecasts.last_value(horizon),
    'seasonal': naive_forecasts.seasonal(horizon, period, length),
    'linear': naive_forecasts.linear(
      naive_forecasts.fit_linear(train_windows, validation)
    ),
  }
  batch = jax.tree.map(jnp.asarray, dict(test))
  found = {}
  for name, forecaster in made.items():
    outputs = {'forecast': np.asarray(forecaster(batch))[None]}
    found[name] = {
      'mse': float(metrics.mse(outputs, test)[0]),
      'mae': float(metrics.mae(outputs, test)[0]),
    }
  return found
