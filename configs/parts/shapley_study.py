"""Models that are explained, and measures of explanations."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn import ensemble

from configs import shapley as recipe
from repjax.analysis import games
from repjax.analysis import masking_curves
from repjax.analysis import redundancy
from repjax.analysis import shapley
from repjax.data.sets import tables
from repjax.experiments import wiring
from repjax.protocols import side_by_side

# Of `forests`.
ORDERS = (100, 200, 400, 800)


class Networks(NamedTuple):
  """Networks on one table, one a seed.

  Attributes:
    predict: Of each seed: rows [N, C] -> probabilities [N, classes].
    accuracy: On test rows, [S].
    test: Columns of the test rows.
    table: The whole table.
    scale: What features are brought to.
  """

  predict: list[Callable[[Any], jax.Array]]
  accuracy: np.ndarray
  test: Mapping[str, np.ndarray]
  table: tables.Table
  scale: tables.Scale

  @property
  def mean(self) -> np.ndarray:
    """Mean of the training rows, [C], as they are in the table."""
    return tables.split(self.table, 'train').features.mean(0)

  def players(self, raw: Any) -> games.Players:
    """The table's players; absent ones have a number of the raw table."""
    features = np.broadcast_to(raw, self.table.features.shape[1:])
    return games.columns(
      self.table.owner, self.scale(features), names=self.table.names
    )


def train(config: Any, seeds: Sequence[int]) -> Networks:
  """Trains the recipe's network, all seeds side by side."""
  table, scale = recipe.read(config)
  rows, test = (
    recipe.rows(config, table, scale, split)
    for split in (config.data.train_split, 'test')
  )
  steps = wiring.steps_of(config, len(rows))
  method = recipe.method(config, rows.num_classes, steps)
  trained = side_by_side.train(
    config.data.name,
    method,
    side_by_side.per_seed(rows.columns(), seeds),
    test.columns(),
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
  )

  def predict_fn(seed):
    state = jax.tree.map(lambda x: x[seed], trained.states)

    def predict(features):
      batch = {'features': features, 'mask': jnp.ones(len(features))}
      return jax.nn.softmax(method.predict(state, batch)['logits'])

    return predict

  return Networks(
    [predict_fn(i) for i in range(len(seeds))],
    trained.score,
    test.columns(),
    table,
    scale,
  )


class Planted(NamedTuple):
  """What explanations of networks on bits of a formula have shown.

  Attributes:
    accuracy: On test rows, [S].
    right: Whether the explanation is the formula's, [S] 0 or 1.
    gain: Post-hoc accuracy of rows of class 1 with the players that the graph
      keeps, minus with as many of the largest Shapley values, [S].
    interactions: E of all ten bits by the first network, [10, 10].
    names: Of the bits.
  """

  accuracy: np.ndarray
  right: np.ndarray
  gain: np.ndarray
  interactions: np.ndarray
  names: tuple[str, ...]


def planted(seeds: Sequence[int], num_rows: int, most_steps: int) -> Planted:
  """Trains networks on `tables.planted` and explains them exactly.

  Args:
    seeds: One a network.
    num_rows: Rows of class 1 for the gain.
    most_steps: Of training, where that is less than the recipe's.
  """
  config = recipe.get_config('planted')
  config.min_steps = min(config.min_steps, most_steps)
  network = train(config, seeds)
  rows = network.test['features'][network.test['label'] == 1][:num_rows]
  maps, right, gain = [], [], []
  for seed, predict in zip(seeds, network.predict, strict=True):
    masking = games.masking(predict, network.players(0.0))
    whole = np.ones(len(network.table.names), np.float32)
    told = shapley.exact(masking.game(whole))
    maps.append(told.interactions)
    right.append(float(_as_planted(told, threshold=1e-2)))
    each = [shapley.exact(masking.game(x, output=1)) for x in rows]
    at = masked(masking, rows, each, 1e-2, seed=seed)
    gain.append(at['redundant'] - at['lowest'])
  return Planted(
    network.accuracy,
    np.asarray(right),
    np.asarray(gain),
    maps[0],
    network.table.names,
  )


def forests(seeds: Sequence[int], num_rows: int):
  """Random forests on eight columns of breast cancers and copies of two.

  Absent columns are at their mean.

  Args:
    seeds: One a forest.
    num_rows: Rows that are explained, exactly.

  Returns:
    (what `masked` says, what `convergence` says of the first row; name -> one a
    seed).
  """
  features, label = datasets.load_breast_cancer(return_X_y=True)
  features = np.concatenate([features[:, :8], features[:, :2]], 1)
  test = np.arange(len(label)) % 4 == 3
  players = games.columns(features.shape[1], features[~test].mean(0))
  rows, made, errors = features[test][:num_rows], [], []
  for seed in seeds:
    model = ensemble.RandomForestClassifier(60, random_state=seed)
    model.fit(features[~test], label[~test])
    masking = games.masking(model.predict_proba, players, compiled=False)
    told = [shapley.exact(masking.game(x)) for x in rows]
    made.append(masked(masking, rows, told, 1e-2, seed=seed))
    errors.append(convergence(masking.game(rows[0]), ORDERS, seed))
  return stacked(made), stacked(errors)


def stacked(results: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Name -> one value a seed, of one mapping a seed."""
  return {name: np.asarray([x[name] for x in results]) for name in results[0]}


def _as_planted(told: shapley.Explanation, *, threshold: float) -> bool:
  """Whether the explanation of all ten bits of `tables.planted` is right."""
  edges = redundancy.graph(told, threshold)
  found = redundancy.structure(edges, told.interactions)
  groups = [x.tolist() for x in found.groups]
  kept = np.flatnonzero(redundancy.kept(found, told.values))
  one_of_each = [len(np.intersect1d(kept, x)) for x in ([0, 1], [2, 3, 4], [5])]
  return (
    groups == [[0, 1], [2, 3, 4], [8, 9]]
    and one_of_each == [1, 1, 1]
    and len(kept) == 3
  )


def masked(
  masking: games.Masking,
  rows: np.ndarray,
  explanations: Sequence[shapley.Explanation],
  threshold: float,
  *,
  confidence: float = 0.0,
  seed: int = 0,
) -> dict[str, float]:
  """Post-hoc accuracy after masking what is redundant, or others instead.

  Args:
    masking: The model.
    rows: [N, C].
    explanations: One a row.
    threshold: Of the redundancy graph.
    confidence: Share of bootstrap samples that an edge needs.
    seed: Of all draws.

  Returns:
    'masked' (share of players) and the accuracy after masking the redundant
    ones, and as many others: those of the 'highest' and of the 'lowest' Shapley
    values, and 'random' ones; after masking all 'sinks', all 'sources', and a
    random 'half of groups'.
  """
  rng = np.random.default_rng([seed, len(rows)])
  present: dict[str, list[np.ndarray]] = {}

  def add(**seen):
    for name, players in seen.items():
      present.setdefault(name, []).append(players)

  for told in explanations:
    dim = len(told.values)
    found = redundancy.structure(
      redundancy.graph(told, threshold, confidence=confidence, seed=seed),
      told.interactions,
    )
    kept = redundancy.kept(found, told.values)
    place = np.argsort(np.argsort(-told.values))
    gone = dim - kept.sum()
    everybody = np.arange(dim)
    add(
      redundant=kept,
      highest=place >= gone,
      lowest=place < dim - gone,
      random=rng.permutation(dim) >= gone,
      sinks=~np.isin(everybody, found.sinks),
      sources=~np.isin(everybody, found.sources),
      groups=masking_curves.groups_masked(found, 0.5, rng=rng),
    )
  names = list(present)
  seen = np.stack([np.stack(present[name]) for name in names], 1)
  same = masking_curves.agreement(masking, rows, seen).mean(0)
  return {
    'masked': float(1 - seen[:, names.index('redundant')].mean()),
    'half of groups': float(same[names.index('groups')]),
    **{
      name: float(x)
      for name, x in zip(names, same, strict=True)
      if name != 'groups'
    },
  }


def ranked(
  masking: games.Masking,
  rows: np.ndarray,
  explanations: Sequence[shapley.Explanation],
) -> dict[str, float]:
  """Mean areas of insertion and deletion, by Shapley values and by PageRank."""
  rankings = dict(
    Shapley=[-x.values for x in explanations],
    PageRank=[-redundancy.influence(x) for x in explanations],
  )
  return {
    f'{kind} by {name}': float(
      np.mean(
        [
          masking_curves.along(masking.game(row), np.argsort(score), kind)[1]
          for row, score in zip(rows, scores, strict=True)
        ]
      )
    )
    for name, scores in rankings.items()
    for kind in ('insertion', 'deletion')
  }


def decreasing(dim: int = 8) -> float:
  """Share of players that PageRank puts where a chain has them.

  In v(S) = the largest 2^-j of the players j in S, each makes all later ones
  redundant and no earlier one.
  """
  weights = 2.0 ** -np.arange(dim)
  game = games.Game(lambda x: (x * weights).max(1), dim)
  order = np.argsort(-redundancy.influence(shapley.exact(game)))
  return float((order == np.arange(dim)).mean())


def convergence(
  game: games.Game, nums: Sequence[int], seed: int
) -> dict[str, Any]:
  """Errors of `permutations` against `exact`.

  Args:
    game: Small enough for `exact`.
    nums: Numbers of orders, [T].
    seed: Of the orders.

  Returns:
    'errors' (root mean square over E's entries, [T]), the 'slope' of their
    logarithm, which is -1/2 by the law of large numbers, 'in errors': the last
    one in standard errors, and 'residual': how far phi is from adding up.
  """
  # All values once: a forest is slow, and is asked for them again and again.
  bits = 1 << np.arange(game.num_players)
  every = np.arange(2**game.num_players)[:, None] & bits > 0
  values, _ = games.evaluate(game, every)
  known = games.Game(lambda x: values[x @ bits], game.num_players)
  true = shapley.exact(known)
  off = ~np.eye(game.num_players, dtype=bool)
  draws = 8  # A single draw's slope would say little.
  errors = np.zeros(len(nums))
  for index, num in enumerate(nums):
    squares = []
    for draw in range(draws):
      told = shapley.permutations(known, num=num, seed=seed * draws + draw)
      gap = (told.interactions - true.interactions)[off]
      squares.append(np.square(gap).mean())
    errors[index] = np.sqrt(np.mean(squares))
  return dict(
    errors=errors,
    slope=float(np.polyfit(np.log(nums), np.log(errors), 1)[0]),
    in_errors=float(
      errors[-1] / np.sqrt(np.square(told.interactions_error[off]).mean())
    ),
    residual=float(abs(true.values.sum() - (true.full - true.empty))),
  )
