"""Shapley values of a network's prediction, and shap's of the same."""

import time
from typing import Any

import numpy as np

from launch.lib import timing

_DIM, _WIDTH, _ORDERS = 30, 64, 1000


def shapley_values(rounds: int) -> dict[str, Any]:
  """1,000 orders of the 30 features of one row of an MLP.

  Ours are seconds a row, for values and all interactions with their standard
  errors; beside them, where the extra `parity` is installed, shap's two
  explainers of any model with the same compiled network, which have values
  alone: PermutationExplainer with as many orders (500, each there and back),
  and KernelExplainer with as many rows.
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
  found: dict[str, Any] = {}

  def ours(row=rows[0]):
    start = time.perf_counter()
    game = masking.game(row, output=1)
    found['repjax'] = shapley.permutations(game, num=_ORDERS)
    return time.perf_counter() - start

  ours()
  seconds = float(np.median([ours() for _ in range(rounds)]))
  result: dict[str, Any] = {
    'seconds a row': seconds,
    'rows that the network saw': found['repjax'].calls,
  }
  try:
    import shap
  except ImportError:
    return {**result, 'shap': 'needs pip install -e ".[parity]"'}

  compiled = jax.jit(lambda x: predict(x)[:, 1])

  def network(x):
    return np.asarray(compiled(jnp.asarray(x, jnp.float32)))

  def timed(name, fn):
    start = time.perf_counter()
    found[name] = np.asarray(fn())
    return time.perf_counter() - start

  by_orders = shap.explainers.Permutation(network, baseline[None], seed=0)
  by_kernel = shap.KernelExplainer(network, baseline[None])

  def orders():
    evals = _ORDERS // 2 * (2 * _DIM + 1)
    return by_orders(rows[:1], max_evals=evals, silent=True).values[0]

  def kernel():
    num = found['repjax'].calls
    return by_kernel.shap_values(
      rows[0], nsamples=num, l1_reg=False, silent=True
    )

  def against(name, fn):
    return timing.alternate(rounds, lambda: timed(name, fn), ours)

  peers = {'PermutationExplainer': orders, 'KernelExplainer': kernel}
  result['over ours, time'] = {x: against(x, fn) for x, fn in peers.items()}
  told = found['repjax']
  result['root mean square of the gap, in our standard errors'] = {
    name: float(
      np.sqrt(np.square((found[name] - told.values) / told.values_error).mean())
    )
    for name in peers
  }
  return result
