"""Host side: games that features of one row play, for Shapley values.

A coalition is a set of players, [d] of which True is present; a game gives it a
number. What a model says of a row of which only some players are seen is one:

    masking = games.masking(predict, games.columns(30, baseline=mean))
    game = masking.game(row)      # the probability of what is predicted on row
    values, calls = games.evaluate(game, coalitions)

`predict` is a function of JAX, compiled once for all rows, or any other one (an
estimator of scikit-learn: `predict_proba`). A player is a column or several, a
part of an image (`grid`, `superpixels`) or a token.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types

_NO_PLAYERS = (
  'The game has no players: at least one place of the row needs an owner.'
)


class Game(NamedTuple):
  """A number for each coalition.

  Attributes:
    values: Coalitions [N, d], bool -> values [N].
    num_players: d.
    rows_per_value: Rows that a model sees for one value.
  """

  values: Callable[[np.ndarray], Any]
  num_players: int
  rows_per_value: int = 1


class Players(NamedTuple):
  """Who owns what of a row, and what stands there while a player is absent.

  Attributes:
    owner: Player of each place, of the row's shape or of its first axes (one
      player for all channels of a pixel); -1 for what is always there.
    baseline: Rows [K, *row's shape], of which a value is the mean; mostly one.
    names: One a player.
  """

  owner: np.ndarray
  baseline: np.ndarray
  names: tuple[str, ...]


class Masking(NamedTuple):
  """A model on rows of which some players are seen.

  Attributes:
    outputs: (row, coalitions [N, d]) -> outputs [N, C], means over baselines.
    num_players: d.
    rows_per_value: Number of baselines, K.
  """

  outputs: Callable[[Any, np.ndarray], np.ndarray]
  num_players: int
  rows_per_value: int

  def game(self, row: Any, output: int | None = None) -> Game:
    """The game of one output of one row.

    Args:
      row: What is explained.
      output: Column of the outputs; by default the largest one of the whole
        row, as in the paper: the probability of the class that is predicted.

    Raises:
      InputError: By the game: there is no such output.
    """
    if output is None:
      whole = np.ones((1, self.num_players), bool)
      output = int(self.outputs(row, whole)[0].argmax())

    def values(coalitions):
      made = self.outputs(row, coalitions)
      types.check_range(f'[0, {made.shape[1] - 1}]', output=output)
      return made[:, output]

    return Game(values, self.num_players, self.rows_per_value)


def columns(
  owner: int | Sequence[int],
  baseline: Any,
  *,
  names: Sequence[str] | None = None,
) -> Players:
  """Players of a table's row.

  Args:
    owner: Number of columns, each of which is a player; or the player of each
      column, as several columns of one word have.
    baseline: [C] or [K, C]: zeros, the mean of the training rows, some of
      these rows (their marginal distribution).
    names: One a player; their numbers by default.
  """
  if isinstance(owner, int | np.integer):
    of_each = np.arange(int(owner))
  else:
    of_each = np.asarray(owner)
  return _players(of_each, np.atleast_2d(baseline), names)


def tokens(ids: Any, *, absent: int, always: Sequence[int] = ()) -> Players:
  """Players of a text's row: its tokens.

  Args:
    ids: The row, [L].
    absent: Id that stands for an absent token (unknown, mask, padding).
    always: Ids that are no players: padding, the ends of the text.
  """
  ids = np.asarray(ids)
  player = ~np.isin(ids, [*always, absent])
  owner = np.where(player, np.cumsum(player) - 1, -1)
  names = [str(x) for x in ids[player]]
  return _players(owner, np.full((1, *ids.shape), absent, ids.dtype), names)


def grid(
  shape: Sequence[int], *, rows: int, columns: int, baseline: Any = 0.0
) -> Players:
  """Players of an image: rectangles, row by row.

  Args:
    shape: (H, W, C).
    rows: Rectangles from top to bottom.
    columns: From left to right.
    baseline: Value of an absent pixel, or of each channel, [C].
  """
  types.check_range(f'[1, {shape[0]}]', rows=rows)
  types.check_range(f'[1, {shape[1]}]', columns=columns)
  down = np.arange(shape[0]) * rows // shape[0]
  right = np.arange(shape[1]) * columns // shape[1]
  owner = down[:, None] * columns + right
  return _players(owner, _filled(shape, baseline), None)


def superpixels(
  image: Any,
  count: int,
  *,
  compactness: float = 0.1,
  baseline: Any = 0.0,
) -> Players:
  """Players of an image: parts of one place and colour.

  k-means of place and colour from centres on a grid (SLIC, Achanta et al.,
  2012, https://doi.org/10.1109/TPAMI.2012.120), without its window and without
  making parts connected.

  Args:
    image: [H, W, C].
    count: Parts, about; fewer where the grid does not divide so.
    compactness: Weight of the place against the colour, above 0: how far a
      colour may differ over one grid step. In units of the image.
    baseline: Value of an absent pixel, or of each channel, [C].
  """
  from sklearn import cluster

  types.check_range('(0, inf)', compactness=compactness)
  image = np.asarray(image, np.float64)
  height, width, channels = image.shape
  types.check_range(f'[1, {height * width}]', count=count)
  step = np.sqrt(height * width / count)
  nearness = compactness / step
  place = np.moveaxis(np.mgrid[:height, :width], 0, -1) * nearness
  pixels = np.concatenate([place, image], -1)
  down = min(max(1, round(height / step)), count)
  sides = [down, min(max(1, round(count / down)), width)]
  # Middles of a grid, and the colours there.
  middles = [
    (np.arange(n) + 0.5) * side / n - 0.5
    for n, side in zip(sides, (height, width), strict=True)
  ]
  start = pixels[np.ix_(*(np.rint(x).astype(int) for x in middles))].copy()
  start[..., :2] = np.stack(np.meshgrid(*middles, indexing='ij'), -1) * nearness
  start = start.reshape(-1, channels + 2)
  means = cluster.KMeans(len(start), init=start, n_init=1, max_iter=20)
  found = means.fit(pixels.reshape(-1, channels + 2)).labels_
  _, owner = np.unique(found, return_inverse=True)
  owner = owner.reshape(height, width)
  return _players(owner, _filled(image.shape, baseline), None)


def masking(
  predict: Callable[[Any], Any],
  players: Players,
  *,
  compiled: bool = True,
  at_once: int = 4096,
) -> Masking:
  """A model on rows of which some players are seen.

  Args:
    predict: Rows [N, ...] -> outputs [N, C] (probabilities), or [N].
    players: Of all rows that are explained.
    compiled: Whether `predict` is a function of JAX, which is compiled once
      here; False for one of NumPy.
    at_once: Rows that the model sees in a call.

  Raises:
    InputError: There are no players; or, by `outputs`, the row has another
      shape than the baseline.
  """
  baseline = players.baseline
  shape, count = baseline.shape[1:], len(baseline)
  num_players = _count(players.owner)
  if not num_players:
    raise types.InputError(_NO_PLAYERS)
  per_call = max(1, at_once // count)
  # What nobody owns has a place of its own behind the players, always True.
  owner = np.where(players.owner < 0, num_players, players.owner)
  owner = owner.reshape(owner.shape + (1,) * (len(shape) - owner.ndim))

  def outputs_of(xp, row, coalitions):
    present = xp.concatenate(
      [coalitions, xp.ones((len(coalitions), 1), bool)], 1
    )[:, owner]  # [N, *row's axes]
    rows = xp.where(present[:, None], row, baseline)  # [N, K, ...]
    made = predict(rows.reshape((-1, *shape)))
    return made.reshape((len(coalitions), count, -1)).mean(1)

  def on_device(row, coalitions):
    return outputs_of(jnp, row, coalitions)

  call = jax.jit(on_device) if compiled else None

  def outputs(row, coalitions):
    row = np.asarray(row)
    if row.shape != shape:
      raise types.InputError(
        f'The row has the shape {row.shape} and its baseline {shape}: give a '
        'baseline of the shape of one row, or [K, ...] of several.'
      )
    coalitions = np.asarray(coalitions, bool)
    parts = []
    for start in range(0, len(coalitions), per_call):
      part = coalitions[start : start + per_call]
      if call is None:
        parts.append(np.asarray(outputs_of(np, row, part)))
        continue
      # One shape, so that there is one program.
      padding = _padding(len(part), per_call)
      padded = np.concatenate([part, np.ones((padding, num_players), bool)])
      parts.append(np.asarray(call(row, padded))[: len(part)])
    return np.concatenate(parts)

  return Masking(outputs, num_players, count)


def check_players(game: Game) -> None:
  """Raises InputError unless somebody plays."""
  if game.num_players < 1:
    raise types.InputError(_NO_PLAYERS)


def evaluate(game: Game, coalitions: Any) -> tuple[np.ndarray, int]:
  """Values of coalitions; equal ones are asked for once.

  Args:
    game: Asked in one call.
    coalitions: [N, d], bool.

  Returns:
    (values [N] float64, rows that the model has seen).

  Raises:
    InputError: The game has no players.
    NonFiniteError: A value is NaN or infinite; names who is present.
  """
  check_players(game)
  coalitions = np.asarray(coalitions, bool)
  packed = np.packbits(coalitions, axis=1)
  width = packed.shape[1]
  if width <= 8:  # Whole numbers are sorted several times faster.
    packed = np.pad(packed, ((0, 0), (0, 8 - width)))
  kind = np.uint64 if width <= 8 else f'V{width}'
  keys = np.ascontiguousarray(packed).view(kind)[:, 0]
  _, first, back = np.unique(keys, return_index=True, return_inverse=True)
  values = np.asarray(game.values(coalitions[first]), np.float64)
  if values.shape != first.shape:
    raise types.InputError(
      f'A game gives one value a coalition, [{len(first)}]; got {values.shape}.'
    )
  wrong = np.flatnonzero(~np.isfinite(values))
  if wrong.size:
    who = np.flatnonzero(coalitions[first[wrong[0]]]).tolist()
    raise types.NonFiniteError(
      f'The model gives {values[wrong[0]]} where of {game.num_players} players '
      f'{who} are present: is the baseline a row that it can read?'
    )
  return values[back], len(first) * game.rows_per_value


def _players(owner, baseline, names) -> Players:
  owner, baseline = np.asarray(owner), np.asarray(baseline)
  if not len(baseline):
    raise types.InputError(
      'There is no baseline: values are means over one row or more.'
    )
  count = _count(owner)
  missing = np.setdiff1d(np.arange(count), owner)
  if missing.size:
    raise types.InputError(
      f'Players {missing.tolist()} own nothing: number those that do from 0 on.'
    )
  if names is None:
    names = [str(i) for i in range(count)]
  if len(names) != count:
    raise types.InputError(f'{count} players need so many names: {len(names)}.')
  if baseline.shape[1 : 1 + owner.ndim] != owner.shape:
    raise types.InputError(
      f'The baseline has rows of shape {baseline.shape[1:]} and players own '
      f'places of {owner.shape}: give one of the shape of a row, or [K, ...].'
    )
  return Players(owner, baseline, tuple(names))


def _filled(shape, value):
  return np.broadcast_to(np.asarray(value, np.float32), (1, *shape))


def _count(owner):
  return int(owner.max(initial=-1)) + 1


def _padding(count, most):
  """Rows to add, so that calls have few shapes: powers of 4 up to `most`."""
  size = 64
  while size < count:
    size *= 4
  return min(size, max(most, count)) - count
