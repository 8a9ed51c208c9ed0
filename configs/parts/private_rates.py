"""How the study of private fine-tuning tries rates of linear models."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import optax

from configs.parts import private
from repjax.protocols import finetuned_text
from repjax.protocols import private_runs
from repjax.protocols import rate_search
from repjax.protocols import side_by_side


class Chosen(NamedTuple):
  """Test accuracy of S models a rate.

  Attributes:
    rate: That with the best mean on the validation rows.
    scores: At that rate, [S].
    all_scores: At all rates, [R, S].
  """

  rate: float
  scores: np.ndarray
  all_scores: np.ndarray


def choose(
  config: Any,
  name: str,
  rows: finetuned_text.Rows,
  *,
  num_classes: int,
  rates: Sequence[float],
  seeds: Sequence[int],
  **plan: Any,
) -> Chosen:
  """Trains linear models privately; validation rows choose the rate.

  Args:
    config: Of `private.plan_of`, `private.linear` and `private.updates`.
    name: For the progress lines.
    rows: Columns of a task.
    num_classes: Of the labels.
    rates: R learning rates.
    seeds: S seeds.
    **plan: Over the fields of the config: batch_size, epochs, epsilon ...
  """
  planned = private.plan_of(
    config, len(rows.train['label']), sampling_rate=0.0, **plan
  )._replace(method='ghost')  # Runs side by side.
  tx = side_by_side.swept(
    private.updates(config, planned, optax.adamw, rate=1.0)
  )
  method = private.linear(config, num_classes, optax.chain(planned.link(), tx))
  predict = side_by_side.predict_fn(method)
  validated, tested = [], []
  for seed in seeds:
    runs = (seed,) * len(rates)
    trained = private_runs.train(
      f'{name}, seed {seed}',
      method,
      side_by_side.per_seed(rows.train, runs),
      rows.validation,
      plan=planned,
      seeds=runs,
      rates=rates,
      points=4,
    )
    validated.append(trained.score)
    outputs = predict(trained.states, rows.test)
    tested.append(side_by_side.accuracy(outputs, rows.test))
  place = rate_search.best_mean(np.transpose(validated))
  scores = np.transpose(tested)
  return Chosen(rates[place], scores[place], scores)
