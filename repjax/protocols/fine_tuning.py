"""Compares starts of fine-tuning, each at the rate that is best for it.

The protocol of Kumar et al., 'Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution', ICLR 2022 (https://arxiv.org/abs/2202.10054):
rates are swept for every way of fine-tuning alike, and chosen on held-out rows
of the training distribution, never on others (`rate_search.tune`).
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax import start
from repjax import types
from repjax.methods import lp_ft
from repjax.protocols import linear_probe
from repjax.protocols import rate_search
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]


def starts(
  method: types.Method,
  backbones: types.PyTree,
  columns: Columns,
  *,
  seeds: Sequence[int],
) -> types.TrainState:
  """Pretrained backbones with random heads.

  Args:
    method: From `lp_ft.make`.
    backbones: Parameters with a leading seed axis; their heads are left out.
    columns: Rows as the network sees them.
    seeds: S seeds, of the heads.

  Returns:
    States with a leading seed axis.
  """
  batch: dict[str, Any] = {name: x[:1] for name, x in columns.items()}
  batch['mask'] = np.ones(1, np.float32)
  states = []
  for seed, backbone in zip(seeds, _unstacked(backbones), strict=True):
    state = method.init(jax.random.key(seed), batch)
    states.append(
      start.with_params(state, backbone, keep=lambda path: path[0] == 'head')
    )
  return _stacked(states)


def probe(
  model: nn.Module,
  states: types.TrainState,
  train: Columns,
  val: Columns,
  **settings,
) -> types.TrainState:
  """States with exact linear probes as heads.

  Args:
    model: Of the states; its head is called 'head' and has a bias.
    states: With a leading seed axis.
    train: Rows that the heads are fitted to.
    val: Held-out rows of the same distribution.
    **settings: Further arguments of `linear_probe.fit`.
  """
  see = predict_fn(model)
  seen, val_seen = (see(states, x)['features'] for x in (train, val))
  found = []
  for state, features, val_features in zip(
    _unstacked(states), seen, val_seen, strict=True
  ):
    head = linear_probe.fit(
      features,
      train['label'],
      val_features=val_features,
      val_labels=val['label'],
      **settings,
    ).head
    params = lp_ft.with_head(state.params, *head)
    found.append(start.with_params(state, params))
  return _stacked(found)


def tune(
  method: types.Method,
  starts: Mapping[str, types.TrainState],
  train: Columns,
  val: Columns,
  *,
  seeds: Sequence[int],
  rates: Sequence[float],
  batch_size: int,
  steps: int,
) -> dict[str, rate_search.Tuned]:
  """Fine-tunes from every start at every rate, and keeps the best rate.

  Args:
    method: From `lp_ft.make`, with a `side_by_side.swept` optimizer.
    starts: Name -> states with a leading seed axis.
    train: Rows that are trained on.
    val: Held-out rows of the same distribution. A start's rate is chosen by the
      accuracy on them and `rate_search.one_standard_error`.
    seeds: S seeds of the order of rows.
    rates: In rising order.
    batch_size: Rows of a step.
    steps: Number of updates.
  """
  return rate_search.tune(
    ', '.join(starts),
    method,
    starts,
    train,
    val,
    seeds=seeds,
    rates=rates,
    batch_size=batch_size,
    steps=steps,
    rule=rate_search.one_standard_error,
    points=3,
  )


def predict_fn(model: nn.Module):
  """(states with a seed axis, columns) -> 'features' and 'logits'."""
  return side_by_side.predict_fn(types.Predictor(lp_ft.features(model)))


def _stacked(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _unstacked(tree):
  count = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]
