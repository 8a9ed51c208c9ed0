"""Host side: Shapley values and the explanation map by a weighted regression.

KernelSHAP (Lundberg and Lee, 'A Unified Approach to Interpreting Model
Predictions', 2017, https://arxiv.org/abs/1705.07874) fits an additive game to
values of coalitions; with all of them it is exact. Row i of the explanation map
(`repjax.analysis.shapley`) is the Shapley vector of the game that is v where i
is present and 0 elsewhere, so d + 1 regressions with one matrix, and with the
same values of v, give the whole map (Masoomi et al., ICLR 2022, the paper's
BivShap-K, https://arxiv.org/abs/2304.07670).
"""

import itertools
import math

import numpy as np

from repjax import types
from repjax.analysis import games
from repjax.analysis import shapley


def kernel(
  game: games.Game,
  *,
  num: int | None = None,
  resamples: int = 50,
  seed: int = 0,
) -> shapley.Explanation:
  """Fits values of coalitions, the smallest and the largest ones first.

  Sizes s and d - s are taken whole while `num` allows it, as in the package
  `shap`; those in the middle are drawn, each with its complement. Standard
  errors are of bootstrap samples of what was drawn, 0 if nothing was, NaN if a
  single pair was.

  Args:
    game: Of any number of players.
    num: Coalitions, at least 2 d; by default 2 (2 d + 2^11), twice that of
      `shap`, as in the authors' code. From 2^d - 2 on it is exact.
    resamples: Bootstrap samples, at least 2.
    seed: Of coalitions and bootstrap samples.
  """
  games.check_players(game)
  dim = game.num_players
  num = 2 * (2 * dim + 2**11) if num is None else num
  types.check_range(f'[{2 * dim}, inf)', num=num)
  types.check_range('[2, inf)', resamples=resamples)
  rng = np.random.default_rng(seed)
  whole, weight, drawn, left = _coalitions(dim, num, rng)
  ends = np.stack([np.zeros(dim, bool), np.ones(dim, bool)])
  present = np.concatenate([ends, whole, drawn])
  values, calls = games.evaluate(game, present)
  empty, full = values[:2]
  seen = present[2:].astype(float)
  # Of v itself, its empty value taken off, and of v where i is present.
  target = np.concatenate(
    [values[2:, None] - empty, values[2:, None] * seen], 1
  )  # [N, 1 + d]
  total = np.asarray([full - empty] + [full] * dim)

  def fit(counts):
    """Numbers of times that each pair was drawn -> (phi [d], E [d, d])."""
    each = np.repeat(counts, 2) * (left / max(2 * counts.sum(), 1))
    return _solve(seen, np.concatenate([weight, each]), target, total)

  pairs = len(drawn) // 2
  phi, given = fit(np.ones(pairs))
  errors: tuple[np.ndarray, ...] = np.zeros(dim), np.zeros((dim, dim))
  if pairs:
    again = rng.multinomial(pairs, np.full(pairs, 1 / pairs), resamples)
    found = [fit(counts) for counts in again]
    errors = tuple(np.std(x, 0, ddof=1) for x in zip(*found, strict=True))
  if pairs == 1:  # All samples are that pair, whatever its error.
    errors = tuple(np.full_like(x, np.nan) for x in errors)
  return shapley.Explanation(
    phi,
    given,
    values_error=errors[0],
    interactions_error=errors[1],
    empty=empty,
    full=full,
    calls=calls,
  )


def _coalitions(dim, num, rng):
  """(whole [N, d], their weights [N], drawn [2 P, d], weight of all drawn).

  Weights of the kernel, (d - 1) / (C(d, s) s (d - s)), summed over a size s are
  (d - 1) / (s (d - s)); they add up to 1 here.
  """
  sizes = np.arange(1, dim)
  share = 1 / (sizes * (dim - sizes))
  share = share / share.sum() if dim > 1 else share
  whole, weight, level = [], [], 1
  while level <= dim // 2:
    both = sorted({level, dim - level})
    count = sum(math.comb(dim, s) for s in both)
    rest = share[level - 1 : dim - level].sum()
    mass = share[[s - 1 for s in both]].sum()
    # Whole where as many would be drawn; size 1 always, for a solution.
    if level > 1 and (num - len(whole)) * mass / rest < count * (1 - 1e-9):
      break
    for size in both:
      for who in itertools.combinations(range(dim), size):
        whole.append(np.isin(np.arange(dim), who))
      weight += [share[size - 1] / math.comb(dim, size)] * math.comb(dim, size)
    level += 1
  inner = np.arange(level, dim - level + 1)
  drawn = []
  if inner.size:
    mass = share[inner - 1] / share[inner - 1].sum()
    for size in rng.choice(inner, max(1, (num - len(whole)) // 2), p=mass):
      one = rng.permutation(dim) < size
      drawn += [one, ~one]
  left = share[inner - 1].sum()
  return (
    np.asarray(whole, bool).reshape(-1, dim),
    np.asarray(weight),
    np.asarray(drawn, bool).reshape(-1, dim),
    left,
  )


def _solve(seen, weight, target, total):
  """Weighted least squares whose solutions add up to `total`, [1 + d]."""
  dim = seen.shape[1]
  if dim == 1:  # Nothing lies between nobody and everybody.
    return total[:1], np.zeros((1, 1))
  weighted = seen * weight[:, None]
  solved = np.linalg.solve(
    weighted.T @ seen,
    np.concatenate([weighted.T @ target, np.ones((dim, 1))], 1),
  )
  free, ones = solved[:, :-1], solved[:, -1:]
  fitted = free + ones * (total - free.sum(0)) / ones.sum()
  given = fitted[:, 1:].T.copy()  # Row i: of the game in which i must be.
  np.fill_diagonal(given, 0.0)
  return fitted[:, 0], given
