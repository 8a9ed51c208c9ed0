"""Host side: what becomes of a prediction when players are masked.

The measures of Masoomi et al., ICLR 2022 (https://arxiv.org/abs/2304.07670), as
in the authors' code: insertion and deletion along a ranking, post-hoc accuracy
(agreement of masked rows with the model's own prediction of whole ones), and
the tests of redundancy.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal

import numpy as np

from repjax import types
from repjax.analysis import games
from repjax.analysis import redundancy

# So that .29 of 100 players are 29: the product is below.
_ROUNDING = 1e-9


def along(
  game: games.Game,
  ranking: np.ndarray,
  kind: Literal['insertion', 'deletion'],
) -> tuple[np.ndarray, float]:
  """Values while players come in, or go, from the top of a ranking down.

  Args:
    game: Of one row.
    ranking: Players, the most important first, [d].
    kind: 'insertion': only the first n are present; 'deletion': all others.

  Returns:
    (values for n = 0 ... d [d + 1], the area: the mean over n = 0 ... d - 1 of
    what is above the empty coalition's value, 0 where nothing is; a plain mean,
    no trapezoids, as in the authors' code).
  """
  types.check_choice('kind', kind, ('insertion', 'deletion'))
  dim = game.num_players
  place = _places(ranking, dim)
  first = place < np.arange(dim + 1)[:, None]
  asked = np.concatenate([first if kind == 'insertion' else ~first, first[:1]])
  values, _ = games.evaluate(game, asked)
  area = np.maximum(values[:dim] - values[-1], 0).mean()
  return values[:-1], float(area)


def agreement(
  masking: games.Masking, rows: Any, present: np.ndarray
) -> np.ndarray:
  """Whether masked rows are predicted as whole ones, [N, M] bool.

  The mean over rows is the post-hoc accuracy.

  Args:
    masking: A classifier, of two outputs or more.
    rows: [N, ...].
    present: Who is seen of each row, [N, d] or [N, M, d].

  Raises:
    InputError: There is one output.
    NonFiniteError: An output is NaN, and nothing is predicted.
  """
  present = np.asarray(present, bool)
  if present.ndim == 2:
    present = present[:, None]
  same = []
  for number, (row, seen) in enumerate(zip(rows, present, strict=True)):
    whole = np.ones((1, masking.num_players), bool)
    outputs = masking.outputs(row, np.concatenate([whole, seen]))
    if outputs.shape[1] < 2:
      raise types.InputError(
        'Post-hoc accuracy is of classes: predict must give two outputs or '
        'more, probabilities of each.'
      )
    if np.isnan(outputs).any():
      raise types.NonFiniteError(
        f'The model gives NaN for row {number}, whole or masked: are the row '
        'and its baseline what it can read?'
      )
    said = outputs.argmax(1)
    same.append(said[1:] == said[0])
  return np.stack(same)


def lowest_masked(rankings: np.ndarray, shares: Sequence[float]) -> np.ndarray:
  """Who stays while a share of the lowest ranked goes, [N, M, d].

  Args:
    rankings: Players of each row, the most important first, [N, d].
    shares: M shares that go, in [0, 1]; the paper has 0, .04, ..., 1. Of d
      players floor(share * d) do.
  """
  for share in shares:
    types.check_range('[0, 1]', shares=float(share))
  rankings = np.asarray(rankings)
  dim = rankings.shape[1]
  places = np.stack([_places(x, dim) for x in rankings])
  counts = dim - np.floor(np.asarray(shares) * dim + _ROUNDING).astype(int)
  return places[:, None] < counts[:, None]


def groups_masked(
  found: redundancy.Structure,
  share: float,
  *,
  rng: np.random.Generator,
) -> np.ndarray:
  """Who stays where a share of each mutually redundant group does, [d].

  Of each group floor(share * size) players stay, drawn at random, and all that
  are in no group (the paper's test of mutual redundancy).

  Args:
    found: The structure of a row.
    share: In [0, 1]; 0 takes whole groups away, which no redundancy allows.
    rng: Of the draws.
  """
  types.check_range('[0, 1]', share=share)
  stays = np.ones(len(found.component), bool)
  for group in found.groups:
    count = int(np.floor(share * len(group) + _ROUNDING))
    stays[rng.permutation(group)[count:]] = False
  return stays


def _places(ranking, dim):
  ranking = np.asarray(ranking)
  if not np.array_equal(np.sort(ranking), np.arange(dim)):
    raise types.InputError(
      f'A ranking names each of the {dim} players once; got {ranking}.'
    )
  return np.argsort(ranking)
