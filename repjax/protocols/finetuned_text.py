"""Protocol: one pretrained model, fine-tuned in several ways.

All ways and seeds start from the same pretrained parameters, as papers do from
published ones. A seed's ways see the same rows in the same order; each trains
at each of a few learning rates, of which the one with the best mean validation
score counts. Where training is long, some of the seeds choose the rate for all.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import start
from repjax import types
from repjax.layers import adapters
from repjax.methods import step as steps_of
from repjax.protocols import rate_search
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
  """The last `num_rows` training rows are for validation.

  Raises:
    InputError: That leaves none for validation, or none to learn.
  """
  total = len(next(iter(train.values())))
  types.check_range(f'[1, {total})', num_rows=num_rows)
  return Rows(
    {name: x[:-num_rows] for name, x in train.items()},
    {name: x[-num_rows:] for name, x in train.items()},
    test,
  )


class Tuned(NamedTuple):
  """S models at the chosen rate.

  Attributes:
    rate: The chosen one.
    validation: Validation score of each rate, of the seeds that chose, [R, C].
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
  pretrained: Callable[[types.PyTree], types.PyTree],
  *,
  seeds: Sequence[int],
  rates: Sequence[float],
  batch_size: int,
  steps: int,
  score: Score,
  points: int = 4,
  num_choosing: int | None = None,
) -> Tuned:
  """Fine-tunes one model a seed and learning rate.

  Args:
    name: For the progress lines.
    model: `finetuning.adapt` of a model.
    method: Optax chain -> the method that trains `model`.
    tx: Makes the chain for learning rate 1.
    rows: What is learned.
    pretrained: Parameters as drawn for a seed -> with pretrained ones; what it
      leaves, as a head, differs between seeds. See `start.fill`.
    seeds: S seeds.
    rates: R learning rates, in rising order.
    batch_size: Rows of a step.
    steps: Number of updates.
    score: What chooses the rate, and is reported.
    points: How often it is measured.
    num_choosing: C, how many of the seeds, the first ones, train at all rates;
      the others train at the rate that these chose. None means all.
  """
  made = method(side_by_side.swept(tx()))

  def begin(rng, row):
    return start.fill(
      made.init(rng, {**row, 'mask': jnp.ones(1)}),
      pretrained,
      keep=adapters.added(model),
    )

  def scores(outputs, of):
    return np.array(
      [
        score({name: x[i] for name, x in outputs.items()}, of)
        for i in range(len(next(iter(outputs.values()))))
      ]
    )

  states = jax.jit(jax.vmap(begin, (0, None)))(
    jax.vmap(jax.random.key)(jnp.asarray(seeds)),
    {name: x[:1] for name, x in rows.train.items()},
  )

  def search(some, rates):
    return rate_search.tune(
      name,
      made,
      {name: jax.tree.map(lambda x: x[some], states)},
      rows.train,
      rows.validation,
      seeds=seeds[some],
      rates=rates,
      batch_size=batch_size,
      steps=steps,
      rule=rate_search.best_mean,
      test=rows.test,
      score=scores,
      points=points,
      # Weights a run make products slow on CPUs, and long to compile.
      vectorize=False,
    )[name]

  tuned = search(slice(num_choosing), rates)
  found = [tuned]
  if num_choosing is not None and num_choosing < len(seeds):
    found.append(search(slice(num_choosing, None), (tuned.rate,)))
  return Tuned(
    rate=tuned.rate,
    validation=tuned.scores,
    score=np.concatenate([x.score for x in found]),
    outputs={
      name: np.concatenate([x.outputs[name] for x in found])
      for name in tuned.outputs
    },
    curve=(
      tuned.curve[0],
      np.concatenate([x.curve[1] for x in found], axis=1),
    ),
    percent=adapters.trained_percent(
      model, steps_of.variables(jax.tree.map(lambda x: x[0], tuned.states))
    ),
  )
