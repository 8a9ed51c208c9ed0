"""Protocol: private runs side by side, of seeds and of rates.

Each has a key of the noise of its own; batches are Poisson samples.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from repjax import types
from repjax.experiments import private
from repjax.protocols import side_by_side


def train(
  name: str,
  method: types.Method,
  columns: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  plan: private.Plan,
  seeds: Sequence[int],
  rates: Sequence[float] | None = None,
  states: types.TrainState | None = None,
  points: int = 20,
  vectorize: bool = True,
) -> side_by_side.Trained:
  """Trains one private model a seed, or a pair of a seed and a rate.

  Args:
    name: For the progress lines.
    method: What is trained; its optimizer begins with `plan.link()` and, with
      `rates`, is `side_by_side.swept` behind it.
    columns: Training rows a run, [S, N, ...], as `side_by_side.per_seed` makes
      them.
    test: Test rows, shared by the runs.
    plan: Of each run.
    seeds: S seeds of initialization and batches; without `rates` all distinct.
    rates: S rates, one each; pairs of a seed and a rate are distinct.
    states: States to start from; new ones if None.
    points: How often the test score is measured.
    vectorize: Whether runs go side by side, or one after the other.

  Returns:
    What `side_by_side.train` does, with an axis of S runs.

  Raises:
    InputError: If a run occurs twice, or the method is not private.
  """
  if states is None:
    states = side_by_side.begin(method, columns, seeds)
  runs: Sequence[Any] = seeds
  if rates is not None:
    states = side_by_side.with_rate(states, np.asarray(rates))
    runs = [
      f'{seed} at rate {rate}' for seed, rate in zip(seeds, rates, strict=True)
    ]
  return side_by_side.train(
    name,
    method,
    columns,
    test,
    seeds=seeds,
    batch_size=plan.capacity,
    steps=plan.steps,
    points=points,
    vectorize=vectorize,
    states=plan.with_keys(states, runs),
    order=plan.order(seeds),
  )
