"""Searches over a table of private runs, which are trained once.

What Papernot and Steinke (ICLR 2022, figure 7,
https://arxiv.org/abs/2110.03620) measure: whatever the law of the number of
trials, a search draws runs from the same table, so that expectations over
searches are sums over its runs.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.experiments import private
from repjax.privacy.search import laws
from repjax.protocols import private_runs
from repjax.protocols import side_by_side


def table(
  name: str,
  method: types.Method,
  rows: Mapping[str, np.ndarray],
  held_out: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  plan: private.Plan,
  learning_rates: Sequence[float],
  repeats: int,
  score_noise: float,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains all candidates, each several times, side by side.

  Args:
    name: For the progress lines.
    method: Over 'image' and 'label'; `predict` gives 'logits'. Its optimizer
      begins with `plan.link()`, and is `side_by_side.swept` behind it.
    rows: Training rows, name -> [N, ...].
    held_out: Rows that score the runs.
    test: Rows that judge them.
    plan: Of each run.
    learning_rates: R candidates.
    repeats: Runs of each, with initial values, batches and noise of their own.
    score_noise: Standard deviation of the noise on the number of held-out rows
      that are right, which makes that score private.
    seed: Of everything; below 1000 runs a table share nothing.

  Returns:
    (noisy number of held-out rows that are right, test accuracy), each
    [R, repeats].
  """
  first = 1000 * seed
  runs = range(first, first + len(learning_rates) * repeats)
  trained = private_runs.train(
    name,
    method,
    side_by_side.per_seed(rows, runs),
    test,
    plan=plan,
    seeds=runs,
    rates=np.repeat(learning_rates, repeats).tolist(),
    points=1,
  )
  outputs = side_by_side.predict_fn(method)(trained.states, held_out)
  scores = len(held_out['label']) * side_by_side.accuracy(outputs, held_out)
  noise = np.random.default_rng([seed, 1]).standard_normal(len(scores))
  shape = (len(learning_rates), repeats)
  scores = scores + score_noise * noise
  return scores.reshape(shape), trained.score.reshape(shape)


def chosen(law: laws.Law, scores: np.ndarray, values: np.ndarray) -> float:
  """Expected value of the run that a search over the table publishes.

  Args:
    law: Of the number of trials, each a run of the table with replacement.
    scores: What runs are chosen by, [R, repeats]; without ties.
    values: What is averaged, [R, repeats].
  """
  by_score = values.ravel()[np.argsort(scores, axis=None)]
  ends = law.generating(np.linspace(0, 1, len(by_score) + 1))
  # Without any trial, the first candidate stands in.
  return float(np.diff(ends) @ by_score + ends[0] * values[0].mean())


def simulated_rank(
  law: laws.Law, scores: np.ndarray, *, searches: int, seed: int
) -> float:
  """Mean rank, in [0, 1], of the winners of searches that are carried out.

  Args:
    law: Of the number of trials, at least 1.
    scores: What runs are chosen by, of any shape.
    searches: How many.
    seed: Of the numbers of trials and the draws.
  """
  rng = np.random.default_rng([seed, 2])
  counts = laws.sample(law, rng, searches)
  ranks = np.empty(scores.size)
  ranks[np.argsort(scores, axis=None)] = np.arange(scores.size) + 0.5
  drawn = ranks[rng.integers(scores.size, size=counts.sum())] / scores.size
  starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
  return float(np.maximum.reduceat(drawn, starts).mean())
