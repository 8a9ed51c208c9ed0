"""Host side: detectors of anomalies, trained side by side and judged alike.

No label is seen but by the final measures: models are trained on training rows,
thresholds are set on validation rows, and which rate is best is told by the
reconstruction of validation rows.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.reading import source
from repjax.experiments import anomaly_data
from repjax.experiments import of_anomalies
from repjax.metrics import anomaly
from repjax.metrics import averages
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Trained(NamedTuple):
  """S models of one method, one a seed.

  Attributes:
    states: With a leading seed axis.
    outputs: Of each seed, name -> [N, L] of its validation and test windows.
    columns: Of each seed, 'entity' and 'position' of these windows, [N].
  """

  states: types.TrainState
  outputs: list[dict[str, np.ndarray]]
  columns: list[dict[str, np.ndarray]]


# Outputs of `predict` [N, L] -> scores [N, L].
Score = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def train(
  name: str,
  method: types.Method,
  data: Sequence[anomaly_data.Data],
  *,
  windows: Mapping[str, int],
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  points: int = 5,
) -> Trained:
  """Trains one model a seed on the series of that seed.

  Args:
    name: For progress lines.
    method: What is trained; `predict` gives arrays [B, L].
    data: Of each seed, of equal sizes.
    windows: How they are cut, arguments of `anomaly_data.eval_windows`.
    seeds: S seeds of initialization and of the order of windows.
    batch_size: Windows of a step.
    steps: Number of updates.
    points: Progress lines.
  """
  columns = _stacked(
    [anomaly_data.training_windows(x, **windows) for x in data]
  )
  order = seed_loop.epochs(
    columns['series'].shape[1], seeds, steps=steps, batch_size=batch_size
  )
  current = side_by_side.begin(method, columns, seeds)
  stretches = seed_loop.fit(
    method, current, columns, order, seeds=seeds, every=max(1, steps // points)
  )
  for step, current, means in stretches:  # noqa: B007
    line = averages.summary({k: float(x.mean()) for k, x in means.items()})
    logging.info('%s: step %s/%s  %s', name, f'{step:,}', f'{steps:,}', line)
  seen = [anomaly_data.eval_windows(x, 'test', **windows) for x in data]
  test = _stacked(seen)
  outputs = _predict(method, current, test)
  return Trained(
    current,
    [{k: x[i] for k, x in outputs.items()} for i in range(len(seeds))],
    [
      {k: test[k][i] for k in ('entity', 'position')} for i in range(len(seeds))
    ],
  )


def score(
  trained: Trained,
  data: Sequence[anomaly_data.Data],
  scores: Mapping[str, Score],
  *,
  seeds: Sequence[int],
) -> list[tuple[of_anomalies.Points, of_anomalies.Points]]:
  """(validation points, test points) of each seed, in the scores of detectors.

  'input_norm' and 'random' come with them.

  Args:
    trained: Models of `train`.
    data: Of each seed.
    scores: Name of a detector -> its scores of windows.
    seeds: S seeds, also of the random scores.
  """
  made = []
  for seed, one, outputs, columns in zip(
    seeds, data, trained.outputs, trained.columns, strict=True
  ):
    of_windows = {name: np.asarray(fn(outputs)) for name, fn in scores.items()}
    known, test = (
      of_anomalies.points(one, of_windows, columns, part, seed=seed)
      for part in ('validation', 'test')
    )
    made.append((known, test))
  return made


def judge(
  scored: Sequence[tuple[of_anomalies.Points, of_anomalies.Points]],
  *,
  rate: float,
) -> dict[str, dict[str, np.ndarray]]:
  """Detector -> measure (`metrics.anomaly.measure`) -> one number a seed, [S].

  Args:
    scored: Of each seed, by `score`.
    rate: Share of validation points that is above a threshold.
  """
  tables = [
    of_anomalies.table(known, test, rate=rate) for known, test in scored
  ]
  return {
    name: {
      measure: np.array([table[name][measure] for table in tables])
      for measure in values
    }
    for name, values in tables[0].items()
  }


def adjusted_at_random(
  scored: Sequence[tuple[of_anomalies.Points, of_anomalies.Points]],
  *,
  rate: float,
  draws: int = 100,
) -> np.ndarray:
  """F1 after point adjustment of uniform random scores, [S].

  One draw may miss a long segment by luck; this is the mean of many, each with
  a threshold of its own, as those of `judge`, which counts no gaps either.

  Args:
    scored: Of each seed, by `score`.
    rate: Share of validation points that is above a threshold.
    draws: Of random scores of each series.
  """

  def drawn(rng, known, test):
    limit = anomaly.threshold(rng.random(len(known.position)), rate)
    alarms = rng.random(len(test.labels)) > limit
    filled = anomaly.point_adjusted(alarms, test.labels, series=test.entity)
    return anomaly.precision_recall_f1(filled, test.labels)[2]

  means = []
  for place, pair in enumerate(scored):
    known, test = (x.judged() for x in pair)
    rng = np.random.default_rng(place)
    means.append(np.mean([drawn(rng, known, test) for _ in range(draws)]))
  return np.array(means)


def _stacked(sources: Sequence[source.Source]) -> dict[str, np.ndarray]:
  """Columns that methods and `points` read, [S, N, ...]."""
  read = [x.read(np.arange(len(x))) for x in sources]
  return {
    name: np.stack([columns[name] for columns in read])
    for name in ('series', 'observed', 'entity', 'position')
  }


def _predict(method, states, columns):
  """Name -> [S, N, L]; one seed and some windows at a time, for the memory."""
  num_rows, at_once = columns['series'].shape[1], 128
  padded = {
    name: jnp.pad(
      columns[name], [(0, 0), (0, -num_rows % at_once), (0, 0), (0, 0)]
    )
    for name in ('series', 'observed')
  }

  @jax.jit
  def predict(args):
    state, rows = args

    def some(rows):
      return method.predict(state, {**rows, 'mask': jnp.ones(at_once)})

    parts = jax.tree.map(lambda x: x.reshape((-1, at_once, *x.shape[1:])), rows)
    return jax.tree.map(
      lambda x: x.reshape((-1, *x.shape[2:])), jax.lax.map(some, parts)
    )

  found = jax.device_get(jax.lax.map(predict, (states, padded)))
  return {name: x[:, :num_rows] for name, x in found.items()}
