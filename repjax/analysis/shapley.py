"""Host side: Shapley values, and how they change where another player is in.

Masoomi, Hill, Xu, Hersh, Silverman, Castaldi, Ioannidis and Dy, 'Explanations
of Black-Box Models Based on Directional Feature Interactions', ICLR 2022.
https://arxiv.org/abs/2304.07670

The Shapley value of a player j is the mean of what it adds to coalitions S,

    phi_j = sum over S without j of w(|S|) (v(S + j) - v(S)),
    w(s) = s! (d - s - 1)! / d!,

and the explanation map E splits that sum by who is in S:

    E[i, j] = the same sum over those S alone that i is in.

Row i is the player that is given, column j the one whose effect is measured;
E is not symmetric, its diagonal is 0, and phi_j - E[i, j] is the part of S
without i. Where E[i, j] is 0, j adds nothing once i is there
(`repjax.analysis.redundancy`). E costs no value of v more than phi does.

Three ways give both, with standard errors: `exact` asks for all 2^d coalitions,
`permutations` walks through random orders, `kernel_shapley.kernel` fits a
weighted regression.
"""

import math
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.analysis import games

# Values of 2^20 coalitions are 8 MB, and a model may well be asked for them.
_MOST_EXACT = 20


class Walks(NamedTuple):
  """What random orders have shown.

  Attributes:
    place: Of each player in each order, [M, d].
    added: What each player has added there, [M, d].
  """

  place: np.ndarray
  added: np.ndarray


class Explanation(NamedTuple):
  """Why a game has the value that it has.

  Attributes:
    values: Shapley values phi, [d].
    interactions: E[given, measured], [d, d].
    values_error: Standard error of `values`, 0 where they are exact.
    interactions_error: That of `interactions`, [d, d].
    empty: Value of the empty coalition.
    full: Value of all players; `values` sum to full - empty.
    calls: Rows that the model has seen for all of this.
    walks: Of `permutations`, for `within`; None of other ways.
  """

  values: np.ndarray
  interactions: np.ndarray
  values_error: np.ndarray
  interactions_error: np.ndarray
  empty: float
  full: float
  calls: int
  walks: Walks | None = None

  @property
  def without(self) -> np.ndarray:
    """phi_j - E[i, j]: what j adds where i is not, [d, d], diagonal 0."""
    rest = self.values - self.interactions
    np.fill_diagonal(rest, 0.0)
    return rest


def exact(game: games.Game) -> Explanation:
  """Asks for all coalitions.

  Args:
    game: Of at most 20 players.

  Raises:
    InputError: There are more players, or none.
  """
  dim = game.num_players
  if dim > _MOST_EXACT:
    raise types.InputError(
      f'{dim} players have 2^{dim} coalitions, too many to ask for each: use '
      'permutations or kernel_shapley.kernel.'
    )
  number = np.arange(2**dim)
  present = (number[:, None] >> np.arange(dim) & 1).astype(bool)
  values, calls = games.evaluate(game, present)
  size = present.sum(1)
  weight = np.asarray(
    [1 / (dim * math.comb(dim - 1, s)) for s in range(dim)] + [0.0]
  )[size]
  phi, given = np.zeros(dim), np.zeros((dim, dim))
  for j in range(dim):
    without = number[~present[:, j]]
    added = weight[without] * (values[without | 1 << j] - values[without])
    phi[j] = added.sum()
    given[:, j] = added @ present[without]
  return Explanation(
    values=phi,
    interactions=given,
    values_error=np.zeros(dim),
    interactions_error=np.zeros((dim, dim)),
    empty=values[0],
    full=values[-1],
    calls=calls,
  )


def permutations(
  game: games.Game, *, num: int = 1000, seed: int = 0
) -> Explanation:
  """Walks through random orders (Shapley sampling; the paper's BivShap-S).

  In each order players come in one after the other, and what one adds counts
  for E[i, j] of all i that are in. One walk of d + 1 values serves all players,
  where the authors' code draws orders for each player anew, 2 d values.

  Args:
    game: Of any number of players.
    num: Orders, at least 2 (standard errors are of their mean).
    seed: Of the orders.
  """
  games.check_players(game)
  types.check_range('[2, inf)', num=num)
  dim = game.num_players
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(dim), (num, 1)), axis=1)
  place = np.argsort(order, 1)
  present = place[:, None] < np.arange(dim + 1)[:, None]  # [M, d + 1, d]
  values, calls = games.evaluate(game, present.reshape(-1, dim))
  values = values.reshape(num, dim + 1)
  added = np.take_along_axis(np.diff(values, axis=1), place, 1)
  mean, square = np.zeros((2, dim, dim))
  for i in range(dim):  # Of one given player, [M, d], to keep memory small.
    counts = np.where(place[:, i, None] < place, added, 0.0)
    mean[i], square[i] = counts.mean(0), np.square(counts).mean(0)
  return Explanation(
    values=added.mean(0),
    interactions=mean,
    values_error=added.std(0, ddof=1) / math.sqrt(num),
    interactions_error=np.sqrt(
      np.maximum(square - np.square(mean), 0) / (num - 1)
    ),
    empty=values[0, 0],
    full=values[0, -1],
    calls=calls,
    walks=Walks(place, added),
  )


def within(
  explanation: Explanation,
  threshold: float,
  *,
  resamples: int = 200,
  seed: int = 0,
) -> np.ndarray:
  """How sure it is that |E[i, j]| is at most a threshold, [d, d] in [0, 1].

  The share of bootstrap samples of the orders for which it is so; 1 or 0 where
  E is exact. With the diagonal, which is 0 by definition, at 1.

  Args:
    explanation: Of `permutations`, or exact.
    threshold: At least 0.
    resamples: Bootstrap samples.
    seed: Of them.

  Raises:
    InputError: It was sampled otherwise.
  """
  types.check_range('[0, inf)', threshold=threshold)
  types.check_range('[1, inf)', resamples=resamples)
  if explanation.walks is None:
    if explanation.interactions_error.any():
      raise types.InputError(
        'Only orders can be drawn again: explain by permutations.'
      )
    return (np.abs(explanation.interactions) <= threshold).astype(float)
  place, added = explanation.walks
  num, dim = place.shape
  rng = np.random.default_rng(seed)
  share = rng.multinomial(num, np.full(num, 1 / num), resamples) / num
  found = np.zeros((dim, dim))
  for i in range(dim):
    means = share @ np.where(place[:, i, None] < place, added, 0.0)
    found[i] = (np.abs(means) <= threshold).mean(0)
  return found
