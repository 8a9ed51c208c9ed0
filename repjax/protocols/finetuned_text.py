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

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import start
from repjax import types
from repjax.layers import adapters
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
  """The last `num_rows` training rows are for validation."""
  return Rows(
    {name: x[:-num_rows] for name, x in train.items()},
    {name: x[-num_rows:] for name, x in train.items()},
    test,
  )


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
) -> rate_search.Tuned:
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
  return rate_search.tune(
    name,
    made,
    {name: states},
    rows.train,
    rows.validation,
    seeds=seeds,
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
