"""Protocol: one pretrained model, fine-tuned in several ways.

All ways and seeds start from the same pretrained parameters, as papers do from
published ones. A seed's ways see the same rows in the same order; each trains
at each of a few learning rates, of which the one with the best mean validation
score counts.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import start
from repjax import types
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.protocols import side_by_side

# (outputs of one model, rows) -> a number, the higher the better.
Score = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], float]


class Rows(NamedTuple):
  """Columns of a task, each name -> [N, ...].

  Attributes:
    train: Rows that are learned.
    validation: Rows that choose the learning rate.
    test: Rows that are reported.
  """

  train: Mapping[str, np.ndarray]
  validation: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]


def hold_out(
  train: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  num_rows: int,
) -> Rows:
  """The last `num_rows` training rows are for validation."""
  return Rows(
    {name: x[:-num_rows] for name, x in train.items()},
    {name: x[-num_rows:] for name, x in train.items()},
    test,
  )


class Tuned(NamedTuple):
  """S models at the chosen rate.

  Attributes:
    rate: The chosen one.
    validation: Validation score of each rate, [R, S].
    score: Test score, [S].
    outputs: Of `predict` on the test rows, name -> [S, N, ...].
    curve: (steps [T], test scores [T, S]).
    percent: Trained parameters in percent of the model's.
  """

  rate: float
  validation: np.ndarray
  score: np.ndarray
  outputs: dict[str, np.ndarray]
  curve: tuple[np.ndarray, np.ndarray]
  percent: float


def tune(
  name: str,
  model: nn.Module,
  method: Callable[[optax.GradientTransformation], types.Method],
  tx: Callable[[], optax.GradientTransformation],
  rows: Rows,
  pretrained: types.PyTree,
  *,
  seeds: Sequence[int],
  rates: Sequence[float],
  batch_size: int,
  steps: int,
  score: Score,
  points: int = 4,
) -> Tuned:
  """Fine-tunes one model a seed and learning rate.

  Args:
    name: For the progress lines.
    model: `finetuning.adapt` of a model.
    method: Optax chain -> the method that trains `model`.
    tx: Makes the chain for learning rate 1.
    rows: What is learned.
    pretrained: Parameters; what the model has beside them, as a head, is drawn
      for each seed.
    seeds: S seeds.
    rates: R learning rates.
    batch_size: Rows of a step.
    steps: Number of updates.
    score: What chooses the rate, and is reported.
    points: How often it is measured.
  """
  # The rate is state, so that all rates are one compiled program.
  made = method(
    optax.chain(tx(), optax.inject_hyperparams(optax.scale)(step_size=1.0))
  )
  runs = [(seed, rate) for rate in rates for seed in seeds]
  of_runs = [seed for seed, _ in runs]
  columns = side_by_side.per_seed(rows.train, of_runs)

  def begin(rng, columns, rate):
    row = {name: x[:1] for name, x in columns.items()}
    state = made.init(rng, {**row, 'mask': jnp.ones(1)})
    state = start.fill(
      state,
      lambda own: {**own, **pretrained},
      keep=adapters.added(model),
    )
    first, last = state.opt_state
    last = last._replace(hyperparams={'step_size': rate})
    return state.replace(opt_state=(first, last))

  states = jax.jit(jax.vmap(begin))(
    jax.vmap(jax.random.key)(jnp.asarray(of_runs)),
    columns,
    jnp.asarray([rate for _, rate in runs]),
  )
  num_validation = len(next(iter(rows.validation.values())))
  both = {
    name: np.concatenate([x, rows.test[name]])
    for name, x in rows.validation.items()
  }

  def scores(outputs, part, of):
    return np.array(
      [
        score({name: x[i][part] for name, x in outputs.items()}, of)
        for i in range(len(runs))
      ]
    )

  on_validation, on_test = (
    slice(None, num_validation),
    slice(num_validation, None),
  )

  def test_score(outputs, both):
    del both  # Half of it is validation.
    return scores(outputs, on_test, rows.test)

  trained = side_by_side.train(
    name,
    made,
    columns,
    both,
    seeds=of_runs,
    batch_size=batch_size,
    steps=steps,
    points=points,
    # Weights a run make products slow on CPUs, and long to compile.
    vectorize=False,
    score=test_score,
    states=states,
  )
  validation = scores(trained.outputs, on_validation, rows.validation)
  validation = validation.reshape((len(rates), -1))
  best = int(validation.mean(1).argmax())
  chosen = slice(best * len(seeds), (best + 1) * len(seeds))
  logging.info(
    '%s: validation %s, test at %g: %.4f',
    name,
    ', '.join(
      f'{mean:.4f} at {rate:g}'
      for rate, mean in zip(rates, validation.mean(1), strict=True)
    ),
    rates[best],
    trained.score[chosen].mean(),
  )
  return Tuned(
    rate=rates[best],
    validation=validation,
    score=trained.score[chosen],
    outputs={
      name: x[chosen][:, on_test] for name, x in trained.outputs.items()
    },
    curve=(trained.curve[0], trained.curve[1][:, chosen]),
    percent=finetuning.trained_percent(
      model, jax.tree.map(lambda x: x[0], trained.states)
    ),
  )
