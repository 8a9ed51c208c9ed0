"""Tunes learning rates: starts x rates x seeds, all trained side by side.

Rates are chosen on held-out rows of the training distribution, for every start
alike, and reported on others.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.metrics import averages
from repjax.protocols import side_by_side

Columns = Mapping[str, np.ndarray]

# Scores on held-out rows [R, S], of rates in rising order -> place of one.
Rule = Callable[[np.ndarray], int]


def best_mean(scores: np.ndarray) -> int:
  """The rate with the highest mean over seeds; of equal ones the first."""
  return int(scores.mean(-1).argmax())


def one_standard_error(scores: np.ndarray) -> int:
  """The first rate within a standard error of the highest mean.

  Breiman, Friedman, Olshen and Stone, 'Classification and Regression Trees',
  1984, sec. 3.4.3 (https://doi.org/10.1201/9781315139470): noise in the choice
  never makes the rate larger.
  """
  means = scores.mean(-1)
  _, error = averages.mean_and_error(scores[means.argmax()])
  return int((means >= means.max() - error).argmax())


class Tuned(NamedTuple):
  """S models, trained from one start at the chosen one of R rates.

  Attributes:
    rate: The chosen one, the same for all seeds.
    scores: Of the held-out rows at each rate, [R, S].
    states: With a leading seed axis.
    score: Of the reported rows, [S].
    outputs: Of `predict` on them, name -> [S, N, ...].
    curve: (steps [T], their scores [T, S]).
  """

  rate: float
  scores: np.ndarray
  states: types.TrainState
  score: np.ndarray
  outputs: dict[str, np.ndarray]
  curve: tuple[np.ndarray, np.ndarray]


def tune(
  name: str,
  method: types.Method,
  starts: Mapping[str, types.TrainState],
  train: Columns,
  held_out: Columns,
  *,
  seeds: Sequence[int],
  rates: Sequence[float],
  batch_size: int,
  steps: int,
  rule: Rule,
  test: Columns | None = None,
  per_seed: Columns | None = None,
  score: side_by_side.Score = side_by_side.accuracy,
  points: int,
  vectorize: bool = True,
) -> dict[str, Tuned]:
  """Trains from every start at every rate, and keeps a rate for each start.

  Args:
    name: For the progress lines.
    method: With a `side_by_side.swept` optimizer.
    starts: Name -> states with a leading seed axis.
    train: Rows that are trained on, shared by all; {} for none.
    held_out: Rows that choose the rates.
    seeds: S seeds of the order of rows.
    rates: R learning rates, in rising order.
    batch_size: Rows of a step.
    steps: Number of updates.
    rule: What chooses a rate.
    test: Rows that are reported; the held-out ones if None.
    per_seed: Rows of each seed's own that are trained on, too, [S, N, ...].
    score: What chooses and is reported, the higher the better.
    points: How often it is measured.
    vectorize: Whether seeds go side by side, or one after the other.

  Returns:
    Name of each start -> what came of it.

  Raises:
    InputError: If the rates do not rise.
    NonFiniteError: If every rate spoils a seed's parameters or score; one at
      which some diverge is not chosen.
  """
  if not rates or list(rates) != sorted(set(rates)):
    raise types.InputError(f'rates must rise; got {rates=}')
  shape = (len(starts), len(rates), len(seeds))
  rows, choosing, reported = held_out, slice(None), slice(None)
  if test is None:
    test = held_out
  else:
    count = len(next(iter(held_out.values())))
    choosing, reported = slice(count), slice(count, None)
    rows = {
      name: np.concatenate([x, test[name]]) for name, x in held_out.items()
    }

  def part(outputs, places):
    return {name: x[:, places] for name, x in outputs.items()}

  def measure(outputs, _):
    return score(part(outputs, reported), test)

  measure.__name__ = score.__name__  # What the progress lines say.
  trained = side_by_side.train(
    name,
    method,
    {
      name: np.concatenate([x] * (shape[0] * shape[1]))
      for name, x in (per_seed or {}).items()
    },
    rows,
    seeds=tuple(seeds) * (shape[0] * shape[1]),
    batch_size=batch_size,
    steps=steps,
    points=points,
    shared=train or None,
    vectorize=vectorize,
    score=measure,
    stops=False,
    states=jax.tree.map(
      lambda *x: jnp.concatenate(x),
      *(
        side_by_side.with_rate(states, rate)
        for states in starts.values()
        for rate in rates
      ),
    ),
  )
  scores = score(part(trained.outputs, choosing), held_out).reshape(shape)
  # Parameters may be numbers where what is measured of them is NaN.
  finite = _are_finite(trained.states.params).reshape(shape) & ~np.isnan(scores)
  found = {}
  for place, start in enumerate(starts):
    usable = finite[place].all(-1, keepdims=True)
    if not usable.any():
      raise types.NonFiniteError(
        f'{name}: {start} diverges at every rate of {list(rates)}: add lower '
        'ones.'
      )
    chosen = rule(np.where(usable, scores[place], -np.inf))
    first = (place * shape[1] + chosen) * shape[2]
    own = slice(first, first + shape[2])
    found[start] = Tuned(
      rate=rates[chosen],
      scores=scores[place],
      states=jax.tree.map(lambda x, own=own: x[own], trained.states),
      score=trained.score[own],
      outputs={name: x[own, reported] for name, x in trained.outputs.items()},
      curve=(trained.curve[0], trained.curve[1][:, own]),
    )
    logging.info(
      '%s: held-out %s; at %g reported %.4f',
      start,
      ', '.join(
        f'{mean:.4f} at {rate:g}' if ok else f'diverged at {rate:g}'
        for rate, mean, ok in zip(
          rates, scores[place].mean(-1), usable[:, 0], strict=True
        )
      ),
      rates[chosen],
      found[start].score.mean(),
    )
  return found


def _are_finite(params: types.PyTree) -> np.ndarray:
  """Whether all parameters of a model are numbers, [S]."""
  return np.all(_finite_leaves(jax.tree.leaves(params)), 0)


@jax.jit
def _finite_leaves(leaves):
  return [jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]
