"""Protocol: encoders learn on public text, then privately on other text."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from repjax import start
from repjax import types
from repjax.data.sets import topic_tasks
from repjax.experiments import private
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.protocols import finetuned_text
from repjax.protocols import pretraining
from repjax.protocols import private_runs
from repjax.protocols import rate_search
from repjax.protocols import side_by_side


class Scores(NamedTuple):
  """How S models do.

  Attributes:
    held_out: Final accuracy on the training rows that were held out, [S].
    score: Final test accuracy, [S].
    curve: (share of all steps [T], test accuracy [T, S]) along the way.
  """

  held_out: np.ndarray
  score: np.ndarray
  curve: tuple[np.ndarray, np.ndarray]


def best_rate(scores: Mapping[float, Scores]) -> float:
  """The rate with the highest mean over seeds on the held-out rows."""
  rates = list(scores)
  held_out = np.stack([scores[rate].held_out for rate in rates])
  return rates[rate_search.best_mean(held_out)]


def pretrain(
  task: topic_tasks.Task,
  encoder: Mapping[str, Any],
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
) -> types.PyTree:
  """Fills gaps of the public text (BERT, https://arxiv.org/abs/1810.04805).

  Args:
    task: Its `public` part is read.
    encoder: Fields of `transformer.Encoder`.
    steps: Number of updates.
    batch_size: Windows of a step.
    learning_rate: Of AdamW, at its peak.
    seed: Of everything random.

  Returns:
    The parameters of the encoder.
  """
  params = pretraining.run(
    pretraining.masked_language_model(
      task.vocab_size, encoder, steps=steps, learning_rate=learning_rate
    ),
    task.public,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    vectorize=True,
  )
  return {name: params[name] for name in ('token_embedding', 'encoder')}


def trainer(
  name: str,
  base: nn.Module,
  pretrained: Callable[[types.PyTree], types.PyTree],
  rows: finetuned_text.Rows,
  *,
  plan: private.Plan,
  tx: optax.GradientTransformation,
  adapter: Mapping[str, Any],
  points: int = 8,
  vectorize: bool = True,
) -> Callable[[Sequence[int], Sequence[float]], dict[float, Scores]]:
  """What learns to tell classes of texts, privately, at several rates.

  Args:
    name: For the progress lines.
    base: A classifier of texts.
    pretrained: Parameters of `base` as drawn for a seed -> with pretrained
      ones, which are equal for all runs.
    rows: What is learned; those for validation choose the rate (`best_rate`).
    plan: For the rows that train.
    tx: What makes updates of private gradients, at rate 1.
    adapter: What trains: arguments of `finetuning.adapt`.
    points: How often the test score is measured.
    vectorize: Whether runs go side by side, or one after the other.

  Returns:
    (S seeds, rates that updates are multiplied with) -> rate -> how its S
    models do. Heads and batches are each seed's own, noise is each run's own.
    Calls share compiled steps.
  """
  model = finetuning.adapt(base, **adapter)
  method = supervised.make(
    model,
    optax.chain(plan.link(), side_by_side.swept(tx)),
    inputs=model_inputs.text,
  )
  predict = side_by_side.predict_fn(method, vectorize=vectorize)

  @jax.jit
  @jax.vmap
  def begin(state):
    return start.fill(state, pretrained, keep=adapters.added(model))

  def finetune(seeds, rates):
    of_runs = [(rate, seed) for rate in rates for seed in seeds]
    run_rates, run_seeds = zip(*of_runs, strict=True)
    columns = side_by_side.per_seed(rows.train, run_seeds)
    trained = private_runs.train(
      name,
      method,
      columns,
      rows.test,
      plan=plan,
      seeds=run_seeds,
      rates=run_rates,
      states=begin(side_by_side.begin(method, columns, run_seeds)),
      points=points,
      vectorize=vectorize,
    )
    steps, curve = trained.curve  # [T], [T, R * S]
    curves = np.moveaxis(curve.reshape((len(steps), len(rates), -1)), 1, 0)
    chosen = side_by_side.accuracy(
      predict(trained.states, rows.validation), rows.validation
    ).reshape((len(rates), -1))
    return {
      rate: Scores(held, curve[-1], (steps / steps[-1], curve))
      for rate, held, curve in zip(rates, chosen, curves, strict=True)
    }

  return finetune
