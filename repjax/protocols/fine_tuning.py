"""Starts of fine-tuning, side by side: random heads, exact probes.

The protocol of Kumar et al., 'Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution', ICLR 2022 (https://arxiv.org/abs/2202.10054):
from each start, rates are swept and chosen on held-out rows of the training
distribution, never on others (`rate_search.tune`).
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from repjax import start
from repjax import trees
from repjax import types
from repjax.methods import lp_ft
from repjax.protocols import linear_probe
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
  for seed, backbone in zip(seeds, trees.unstack(backbones), strict=True):
    state = method.init(jax.random.key(seed), batch)
    states.append(
      start.with_params(state, backbone, keep=lambda path: path[0] == 'head')
    )
  return trees.stack(states)


def probe(
  model: nn.Module,
  states: types.TrainState,
  train: Columns,
  val: Columns,
  **settings: Any,
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
    trees.unstack(states), seen, val_seen, strict=True
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
  return trees.stack(found)


def predict_fn(model: nn.Module):
  """(states with a seed axis, columns) -> 'features' and 'logits'."""
  return side_by_side.predict_fn(types.Predictor(lp_ft.features(model)))
