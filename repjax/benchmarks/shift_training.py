"""Trains one method on all shifts and seeds of a benchmark, side by side.

For networks that are tiny and sets that fit into memory: a cell of the grid is
one of the models that are trained at once. `launch.grid` makes of each cell a
run of its own.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import start
from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.benchmarks import shift_rows
from repjax.data.batches import mixtures
from repjax.data.images import transforms
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]


class Cells(NamedTuple):
  """The training sets of K shifts and S seeds; shifts come first: K * S cells.

  Attributes:
    columns: Rows that any of them has, name -> [M, ...]; images as they are.
    seeds: Of each cell, [K * S].
    rows: Places in `columns` of each cell's own training set.
    order: Rows of each step, [K * S, T, B].
  """

  columns: Columns
  seeds: tuple[int, ...]
  rows: tuple[np.ndarray, ...]
  order: np.ndarray

  def some(self, which: Sequence[int] | np.ndarray) -> 'Cells':
    """A part of the cells, by their places."""
    return self._replace(
      seeds=tuple(self.seeds[x] for x in which),
      rows=tuple(self.rows[x] for x in which),
      order=self.order[np.asarray(which)],
    )


def cells(
  train: Columns,
  conditions: Mapping[str, Sequence[shifts.Condition]],
  *,
  seeds: Sequence[int],
  num_labels: int,
  num_values: int,
  steps: int,
  batch_size: int,
) -> Cells:
  """Realises every shift once a seed.

  Args:
    train: 'image', 'label' and 'group' of the rows to choose from.
    conditions: Name of a shift -> what it is composed of.
    seeds: Of the choice of rows, their labels' noise and their order.
    num_labels: C.
    num_values: A.
    steps: Number of updates.
    batch_size: Rows of a step.
  """
  available = shift_rows.counts(
    train['label'], train['group'], num_labels, num_values
  )
  made = []
  for shift in conditions.values():
    for seed in seeds:
      plan = shift_rows.make_plan(shift, available, seed=seed)
      if plan.redrawn:
        raise types.InputError(
          'Cells that are trained side by side have labels of their own once '
          'for all: LabelNoise(fixed=True).'
        )
      made.append(
        shift_rows.realise(plan, train['label'], train['group'], seed=seed)
      )
  # A row with a wrong label is another row.
  codes = [x.rows * num_labels + x.label for x in made]
  known = np.unique(np.concatenate(codes))
  source, label = np.divmod(known, num_labels)
  rows = [np.searchsorted(known, code) for code in codes]
  own_seeds = tuple(seeds) * len(conditions)
  order = []
  for realised, places, seed in zip(made, rows, own_seeds, strict=True):
    draws = np.random.default_rng([seed, steps]).random((steps * batch_size, 2))
    chosen = mixtures.drawn_rows(
      draws, rates=realised.weights, sizes=realised.sizes
    )
    order.append(places[chosen].reshape(steps, batch_size))
  return Cells(
    {
      'image': train['image'][source],
      'label': label.astype(np.int32),
      'group': train['group'][source],
    },
    own_seeds,
    tuple(rows),
    np.stack(order),
  )


def augmented(
  made: Cells, transform: transforms.Transform, *, copies: int, seed: int
) -> Cells:
  """Cells that draw one of several augmented copies of a row, made beforehand.

  Args:
    made: With images as they are.
    transform: What an image goes through, with what scales it at the end.
    copies: How many of each row; 1 where nothing is random.
    seed: Of the copies.
  """
  rng = np.random.default_rng([seed, copies])
  number = len(made.columns['label'])
  images = []
  for _ in range(copies):
    draws = rng.random((number, transform.num_draws))
    images.append(transform.apply(dict(made.columns), draws)['image'])
  which = rng.integers(copies, size=made.order.shape)
  return made._replace(
    columns={
      'image': np.concatenate(images),
      'label': np.tile(made.columns['label'], copies),
      'group': np.tile(made.columns['group'], copies),
    },
    order=made.order + number * which,
  )


def train(
  name: str,
  method: types.Method,
  made: Cells,
  held_out: Columns,
  *,
  network: types.PyTree | None = None,
) -> side_by_side.Trained:
  """Trains all cells; `outputs` are those of the held-out rows.

  Args:
    name: For the progress lines.
    method: What is trained.
    made: The cells.
    held_out: Rows that are predicted, name -> [N, ...].
    network: Variables of a network for each cell to start from, but for its
      head.

  Raises:
    InputError: If the method does not predict in evaluation mode.
  """
  states = side_by_side.begin(method, {}, made.seeds, shared=made.columns)
  if network is not None:
    states = start.with_network(states, network)
  trained = side_by_side.train(
    name,
    method,
    {},
    held_out,
    states=states,
    seeds=made.seeds,
    batch_size=made.order.shape[2],
    steps=made.order.shape[1],
    points=1,
    shared=made.columns,
    order=made.order,
  )
  check_evaluation(method, trained.states, held_out)
  return trained


def upweighted(made: Cells, logits: np.ndarray, upweight: float) -> Cells:
  """Cells of the second training of JTT: what was wrong is drawn more often.

  A cell whose first model has no error, which no second training can learn
  from, stays as it is.

  Args:
    made: Cells of the first training.
    logits: Of the first models, on all rows of `made.columns`, [K * S, M, C];
      a row with one that is not finite is an error, whatever its label.
    upweight: How many times an error counts; others count once.
  """
  types.check_range('[1, inf)', upweight=upweight)
  label = made.columns['label']
  # NaN would be the largest logit, and so say class 0.
  finite = np.isfinite(logits).all(-1)
  wrong = (logits.argmax(-1) != label[None]) | ~finite
  order = np.empty_like(made.order)
  for cell, (rows, seed) in enumerate(zip(made.order, made.seeds, strict=True)):
    if not wrong[cell][rows].any():
      order[cell] = rows
      continue
    # As often as rows are drawn, whatever part they are of.
    number = np.bincount(rows.ravel(), minlength=len(label)).astype(np.float64)
    weight = number * np.where(wrong[cell], upweight, 1.0)
    rng = np.random.default_rng([seed, 2, len(label)])
    drawn = rng.choice(len(label), size=rows.size, p=weight / weight.sum())
    order[cell] = drawn.reshape(rows.shape)
  return made._replace(order=order)


def check_evaluation(
  method: types.Method | types.Predictor,
  states: types.TrainState,
  rows: Columns,
  *,
  num_rows: int = 16,
) -> None:
  """Refuses predictions that depend on the other rows of a batch.

  They do where a network is run in training mode: batch statistics are then
  those of the test batch, an adaptation to the test that nobody asked for, and
  styles are mixed. (The authors' evaluation does so.)

  Args:
    method: That predicts.
    states: With a leading axis of models; the first one is looked at.
    rows: Name -> [N, ...].
    num_rows: How many are predicted alone and among others.

  Raises:
    InputError: If they differ.
  """
  state = jax.tree.map(lambda x: x[0], states)
  some = {k: jnp.asarray(x[:num_rows]) for k, x in rows.items()}
  predict = jax.jit(method.predict)

  def logits(columns):
    mask = jnp.ones(len(columns['image']))
    return predict(state, {**columns, 'mask': mask})['logits']

  together = logits(some)
  # The same shape, so that nothing is compiled anew: the first row alone is
  # left as it was.
  others = {**some, 'image': some['image'].at[1:].multiply(-3.0)}
  if not np.allclose(together[0], logits(others)[0], rtol=1e-4, atol=1e-5):
    raise types.InputError(
      'What the method predicts of a row depends on the other rows: it must '
      'predict in evaluation mode (train=False, running statistics).'
    )
