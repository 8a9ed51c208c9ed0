"""Shapley values of a network's prediction, and shap's of the same."""

import time
from typing import Any

import numpy as np

from launch.lib import timing

_DIM, _WIDTH, _ORDERS = 30, 64, 1000


def shapley_values(rounds: int) -> dict[str, Any]:
  """1,000 orders of the 30 features of one row of an MLP.

  Ours are seconds a row, for values and all interactions with their standard
  errors; beside them, where the extra `parity` is installed, shap's
  PermutationExplainer with as many orders (500, each there and back) and the
  same compiled network, which has values alone.
  """
  import jax
  import jax.numpy as jnp

  from repjax.analysis import games
  from repjax.analysis import shapley
  from repjax.models import mlp

  rng = np.random.default_rng(0)
  rows = rng.standard_normal((8, _DIM)).astype(np.float32)
  model = mlp.Mlp(2, features=(_WIDTH, _WIDTH))
  variables = model.init(jax.random.key(0), rows, train=False)

  def predict(x):
    return jax.nn.softmax(model.apply(variables, x, train=False))

  baseline = np.zeros(_DIM, np.float32)
  masking = games.masking(predict, games.columns(_DIM, baseline))
  found = {}

  def ours(row=rows[0]):
    start = time.perf_counter()
    game = masking.game(row, output=1)
    found['repjax'] = shapley.permutations(game, num=_ORDERS)
    return time.perf_counter() - start

  ours()
  seconds = float(np.median([ours() for _ in range(rounds)]))
  result = {
    'seconds a row': seconds,
    'rows that the network saw': found['repjax'].calls,
  }
  try:
    import shap
  except ImportError:
    return {**result, 'shap': 'needs pip install -e ".[parity]"'}

  compiled = jax.jit(lambda x: predict(x)[:, 1])

  def theirs():
    explainer = shap.explainers.Permutation(
      lambda x: np.asarray(compiled(jnp.asarray(x, jnp.float32))),
      baseline[None],
      seed=0,
    )
    start = time.perf_counter()
    told = explainer(
      rows[:1], max_evals=_ORDERS // 2 * (2 * _DIM + 1), silent=True
    )
    found['shap'] = told.values[0]
    return time.perf_counter() - start

  ratio = timing.alternate(rounds, theirs, ours)
  gap = np.abs(found['shap'] - found['repjax'].values)
  return {
    **result,
    "shap's time over ours": ratio,
    "largest gap of values, in ours' standard errors": float(
      (gap / found['repjax'].values_error).max()
    ),
  }
