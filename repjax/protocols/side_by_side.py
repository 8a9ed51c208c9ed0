"""Compares variants of a method over seeds and rates, trained side by side.

What the papers' claims at `small` are measured with: tiny models, whole sets
in memory, one row of results a seed.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import loop
from repjax import types
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.data.reading import decode as decoding
from repjax.data.reading import source as sources
from repjax.metrics import averages
from repjax.protocols import seed_loop


class Trained(NamedTuple):
  """S models of one method.

  Attributes:
    states: Their states, with a leading seed axis.
    outputs: What `predict` says of the test rows after the last step, name ->
      [S, N, ...].
    score: Final test score, [S].
    curve: (steps [T], test score [T, S]) along the way.
  """

  states: types.TrainState
  outputs: dict[str, np.ndarray]
  score: np.ndarray
  curve: tuple[np.ndarray, np.ndarray]


# (outputs of `predict` [S, N, ...], test rows) -> one number a seed, [S].
Score = Callable[
  [Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray
]


def accuracy(
  outputs: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Share of rows whose largest logit is the label's, [S].

  A row with a logit that is not finite is wrong, whatever its label: NaN would
  be the largest, and so count as class 0.
  """
  logits = outputs['logits']
  finite = (abs(logits) < np.inf).all(-1)
  return ((logits.argmax(-1) == test['label']) & finite).mean(-1)


def rows(
  source: sources.Source,
  transform: transforms.Transform | None,
  *,
  decode: decoding.Decode | None = None,
) -> dict[str, np.ndarray]:
  """All rows of a small source, in order, as the network sees them.

  Args:
    source: The set.
    transform: Of the whole set at once; draws nothing. None for none.
    decode: Of images that are brought to one size.

  Returns:
    Name -> [N, ...].
  """
  everything = in_order.eval_batches(
    source,
    batch_size=len(source),
    transform=transform,
    decode=decode,
    process_index=0,
    process_count=1,
  ).batch(0)
  return {k: x for k, x in everything.items() if k not in ('mask', 'index')}


def per_seed(
  columns: Mapping[str, np.ndarray],
  seeds: Sequence[int],
  *,
  num_rows: int | None = None,
) -> dict[str, np.ndarray]:
  """One copy of the rows a seed, or a random subset of them of its own.

  Args:
    columns: Name -> [N, ...].
    seeds: S seeds.
    num_rows: Size n of the subsets; all rows if None.

  Returns:
    Name -> [S, n, ...].

  Raises:
    InputError: If there are not so many rows, or none are asked for.
  """
  total = len(next(iter(columns.values())))
  if num_rows is not None:
    types.check_range(f'[1, {total}]', num_rows=num_rows)
  rows = np.stack(
    [
      np.arange(total)
      if num_rows is None
      else np.random.default_rng([seed, total]).permutation(total)[:num_rows]
      for seed in seeds
    ]
  )
  return {name: x[rows] for name, x in columns.items()}


class RateState(NamedTuple):
  """State of `swept`.

  Attributes:
    rate: What updates are multiplied with, a scalar.
  """

  rate: jax.Array


def swept(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """An optimizer of rate 1 whose rate is a number in its state.

  `with_rate` sets it, so that one compiled step trains models of all rates.
  """

  def init_fn(params):
    del params  # A scalar for all of them.
    return RateState(jnp.ones(()))

  def update_fn(updates, state, params=None):
    del params  # What counts is how far they move.
    return jax.tree.map(lambda x: state.rate * x, updates), state

  return optax.chain(tx, optax.GradientTransformation(init_fn, update_fn))


def with_rate(
  states: types.TrainState, rate: float | np.ndarray
) -> types.TrainState:
  """States of a `swept` optimizer that train at another rate.

  Args:
    states: With a leading seed axis.
    rate: Of all of them, or one each, [S].
  """

  def change(x):
    if isinstance(x, RateState):
      return RateState(
        jnp.broadcast_to(jnp.asarray(rate, x.rate.dtype), x.rate.shape)
      )
    return x

  return states.replace(
    opt_state=jax.tree.map(
      change, states.opt_state, is_leaf=lambda x: isinstance(x, RateState)
    )
  )


def begin(
  method: types.Method,
  columns: Mapping[str, np.ndarray],
  seeds: Sequence[int],
  *,
  shared: Mapping[str, np.ndarray] | None = None,
) -> types.TrainState:
  """Fresh states, one a seed, as `train` makes them without `states`.

  Args:
    method: What is trained.
    columns: Training rows a seed, [S, N, ...]; one row is used.
    seeds: S seeds.
    shared: Training rows of all seeds, [M, ...].
  """
  if shared:
    row, axis = {name: x[:1] for name, x in shared.items()}, None
  else:
    row, axis = {name: x[:, :1] for name, x in columns.items()}, 0

  def first(rng, row):
    batch = {**row, 'mask': jnp.ones(1)}
    return method.init(jax.random.fold_in(rng, loop.INIT), batch)

  rngs = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  # One operation after the other: methods that differ by their losses share
  # all of these, and a program of each would take seconds to compile. (And
  # several decompositions in one, as of orthogonal kernels, stand still on two
  # cores, jaxlib 0.10.2.)
  return jax.vmap(first, (0, axis))(rngs, row)


def train(
  name: str,
  method: types.Method,
  columns: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  points: int = 20,
  shared: Mapping[str, np.ndarray] | None = None,
  vectorize: bool = True,
  score: Score = accuracy,
  states: types.TrainState | None = None,
  order: np.ndarray | None = None,
  stops: bool = True,
) -> Trained:
  """Trains one model a seed and follows its test score.

  Args:
    name: For the progress lines.
    method: What is trained.
    columns: Training rows a seed, [S, N, ...], as `per_seed` makes them; {} for
      none.
    test: Test rows, shared by the seeds.
    seeds: S seeds of initialization, data order and the method's own draws.
    batch_size: Rows of a step.
    steps: Number of updates.
    points: How often the score is measured.
    shared: Training rows of all seeds, [M, ...], behind which come `columns`.
    vectorize: Whether seeds go side by side, or one after the other.
    score: What is measured; its name is that of the function.
    states: States to start from, as `Trained` has them; new ones if None.
    order: Rows of each step, [S, T, B], -1 for padding; shuffled epochs of all
      rows if None.
    stops: Whether it ends where a mean is not finite, as `seed_loop.fit` does.
  """
  if order is None:
    num_rows = sum(
      next(iter(rows.values())).shape[axis]
      for axis, rows in enumerate((shared, columns))
      if rows
    )
    order = seed_loop.epochs(
      num_rows, seeds, steps=steps, batch_size=batch_size
    )
  predict = predict_fn(method, vectorize=vectorize)
  at, scores = [], []
  if states is None:
    states = begin(method, columns, seeds, shared=shared)
  for step, current, means in seed_loop.fit(
    method,
    states,
    columns,
    order,
    seeds=seeds,
    every=max(1, steps // points),
    shared=shared,
    vectorize=vectorize,
    stops=stops,
  ):
    outputs = predict(current, test)
    scores.append(score(outputs, test))
    at.append(step)
    logging.info(
      '%s: step %s/%s  %s  test/%s %.4f',
      name,
      f'{step:,}',
      f'{steps:,}',
      averages.summary({k: float(v.mean()) for k, v in means.items()}),
      score.__name__,
      scores[-1].mean(),
    )
  return Trained(
    current, outputs, scores[-1], (np.asarray(at), np.stack(scores))
  )


def predict_fn(
  method: types.Method | types.Predictor, *, vectorize: bool = True
):
  """(states with a seed axis, columns) -> name -> [S, N, ...] on the host.

  Columns without a seed axis are shared by all seeds.

  Args:
    method: What predicts.
    vectorize: Whether seeds go side by side, or one after the other, which
      needs memory for one of them.
  """

  def of_one(state, batch):
    return method.predict(state, batch)

  over_seeds = jax.vmap(of_one, in_axes=(0, None))
  predict = jax.jit(over_seeds if vectorize else of_one)

  def call(states, columns):
    mask = jnp.ones(len(next(iter(columns.values()))))
    batch = {**columns, 'mask': mask}
    if vectorize:
      return jax.device_get(predict(states, batch))
    count = len(jax.tree.leaves(states)[0])
    found = [
      jax.device_get(predict(jax.tree.map(lambda x, i=i: x[i], states), batch))
      for i in range(count)
    ]
    return {name: np.stack([x[name] for x in found]) for name in found[0]}

  return call
