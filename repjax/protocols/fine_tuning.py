"""Compares starts of fine-tuning, each at the rate that is best for it.

The protocol of Kumar et al., 'Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution', ICLR 2022: learning rates are swept for every
way of fine-tuning alike, and chosen on held-out rows of the training
distribution, never on others. For models that fit one device with their data:
all starts, rates and seeds go side by side.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax import start
from repjax import types
from repjax.methods import lp_ft
from repjax.metrics import averages
from repjax.protocols import linear_probe
from repjax.protocols import side_by_side
from repjax.types import InputError

Columns = Mapping[str, np.ndarray]


class Tuned(NamedTuple):
  """S networks, fine-tuned from one kind of start.

  Attributes:
    states: At the chosen rate, with a leading seed axis.
    rate: The chosen one, the same for all seeds.
    scores: Accuracy on the held-out rows at each of R rates, [R, S].
  """

  states: types.TrainState
  rate: float
  scores: np.ndarray


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
  batch = {name: x[:1] for name, x in columns.items()}
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
  """The same states with exact linear probes as heads.

  Args:
    model: Of the states; its head is called 'head' and has a bias.
    states: With a leading seed axis.
    train: Rows that the heads are fitted to.
    val: Held-out rows of the same distribution.
    **settings: Of `linear_probe.fit`.
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
) -> dict[str, Tuned]:
  """Fine-tunes from every start at every rate, and keeps the best rate.

  Args:
    method: From `lp_ft.make`, with a `side_by_side.swept` optimizer.
    starts: Name -> states with a leading seed axis.
    train: Rows that are trained on.
    val: Held-out rows of the same distribution. A start's rate is the smallest
      one whose mean accuracy over seeds is within one standard error of the
      highest, so that noise in the choice never makes it larger.
    seeds: S seeds of the order of rows.
    rates: In rising order.
    batch_size: Rows of a step.
    steps: Number of updates.
  """
  if not rates or list(rates) != sorted(set(rates)):
    raise InputError(f'rates must rise; got {rates=}')
  shape = (len(starts), len(rates), len(seeds))
  tiled = tuple(seeds) * (shape[0] * shape[1])
  trained = side_by_side.train(
    ', '.join(starts),
    method,
    side_by_side.per_seed(train, tiled),
    val,
    seeds=tiled,
    batch_size=batch_size,
    steps=steps,
    points=3,
    states=_joined(
      [
        side_by_side.with_rate(x, rate)
        for x in starts.values()
        for rate in rates
      ]
    ),
  )
  scores = trained.score.reshape(shape)
  found = {}
  for place, name in enumerate(starts):
    chosen = _chosen(scores[place])
    first = (place * shape[1] + chosen) * shape[2]
    states = jax.tree.map(
      lambda x, i=first: x[i : i + shape[2]], trained.states
    )
    found[name] = Tuned(states, rates[chosen], scores[place])
    logging.info(
      '%s: rate %g, validation accuracy at each rate %s',
      name,
      rates[chosen],
      ' '.join(f'{x:.3f}' for x in scores[place].mean(-1)),
    )
  return found


def _chosen(scores):
  """The one-standard-error rule of Breiman et al., CART, 1984."""
  means = scores.mean(-1)
  _, error = averages.mean_and_error(scores[means.argmax()])
  return int((means >= means.max() - error).argmax())


def predict_fn(model: nn.Module):
  """(states with a seed axis, columns) -> 'features' and 'logits'."""
  return side_by_side.predict_fn(
    types.Method(None, None, lp_ft.features(model))
  )


def _stacked(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _joined(trees):
  return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def _unstacked(tree):
  count = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]
