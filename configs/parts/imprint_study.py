"""Rounds of the study of imprints, all seeds side by side.

Fowl et al., ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from configs.parts import imprints
from repjax import float64
from repjax.attacks import imprint as attack
from repjax.attacks import imprint_audit
from repjax.attacks import imprint_bins
from repjax.attacks import imprint_trials as trials
from repjax.experiments import of_images
from repjax.protocols import side_by_side

FEDSGD = trials.Round()


class Bench(NamedTuple):
  """What all rounds are about.

  Attributes:
    config: Of the study.
    data: The private set.
    rows: Its rows as the network sees them.
    seeds: S seeds, each with private rows, a network and a trap of its own.
  """

  config: Any
  data: of_images.Data
  rows: Mapping[str, np.ndarray]
  seeds: Sequence[int]

  def columns(self, num_rows: int) -> dict[str, np.ndarray]:
    """Private rows a seed, [S, n, ...]; few are the first ones of many."""
    return side_by_side.per_seed(self.rows, self.seeds, num_rows=num_rows)

  def traps(self, num_bins: int, **changes: Any) -> list[attack.Trap]:
    """One a seed."""
    return [
      imprints.trap(
        self.config, self.data, num_bins=num_bins, seed=seed, **changes
      )
      for seed in self.seeds
    ]

  def seen(self, traps, columns, protocol=FEDSGD, connection=''):
    """What the server sees in one round, a trap."""
    connection = connection or self.config.imprint.connection
    classes = self.data.train.num_classes
    model = imprints.network(self.config, classes, traps[0], connection)
    return trials.seen(
      model, traps, connection, columns, range(len(traps)), protocol
    )

  def scored(self, updates, traps, images, **how) -> list[trials.Scored]:
    """What is read from that, a trap."""
    scale = {x: np.asarray(self.config.augment[x]) for x in ('mean', 'std')}
    return [
      trials.score(*each, scale=scale, **how)
      for each in zip(updates, traps, images, strict=True)
    ]

  def read(
    self, num_bins, protocol=FEDSGD, *, num_rows=0, kind='cumulative', **how
  ) -> list[trials.Scored]:
    """A round from its beginning to its end, a seed."""
    rows_each = num_rows or self.config.study.num_rows
    columns = self.columns(rows_each * protocol.users)
    traps = self.traps(num_bins, kind=kind)
    seen = self.seen(traps, columns, protocol)
    return self.scored(seen, traps, columns['image'], **how)


def shares(scored: Sequence[trials.Scored], decibels: float) -> np.ndarray:
  """Share of the private images that are above, [S]."""
  return np.asarray([x.above(decibels) for x in scored])


def singles(scored: Sequence[trials.Scored]) -> np.ndarray:
  """Share of the private images that are alone in their bin, [S]."""
  return np.asarray([x.singles for x in scored])


def one_shot(bench: Bench, num_rows: int) -> np.ndarray:
  """Share of wanted images that two rows bring out of a sum over users, [S].

  As many bins as there are rows, of which the two rows keep the wanted one's.
  """
  count = bench.config.study.num_targets
  columns = bench.columns(num_rows)
  wanted = columns['image'][:, :count]
  traps = [
    trap._replace(edges=imprint_bins.around(place, num_rows, trap.edges))
    for trap, images in zip(bench.traps(num_rows), wanted, strict=True)
    for place in trap.scores(images)
  ]
  many = {name: np.repeat(x, count, axis=0) for name, x in columns.items()}
  found = bench.scored(
    bench.seen(traps, many),
    traps,
    wanted.reshape((-1, 1, *wanted.shape[2:])),
  )
  return shares(found, 60.0).reshape((-1, count)).mean(-1)


def beside_formulas(
  scored: Sequence[trials.Scored], num_rows: int, num_bins: int
) -> dict[str, np.ndarray]:
  """Recovered, alone by the oracle, and expected: name -> share, [S]."""
  found = {
    'recovered': shares(scored, 60.0),
    'alone in their bin': singles(scored),
    'independent': imprint_bins.expected(num_rows, num_bins) / num_rows,
    'published formula': imprint_bins.published(num_rows, num_bins) / num_rows,
  }
  return {k: np.broadcast_to(x, (len(scored),)) for k, x in found.items()}


def exactly(bench: Bench, num_rows: int = 0) -> float:
  """Largest gap of a seed between recovery and the oracle, in float64.

  Beyond 150 decibels is no mean of several images, but for rounding.

  Args:
    bench: What it is about.
    num_rows: Of a round; 0 takes the study's.
  """
  with float64.enabled():
    read = bench.read(
      bench.config.imprint.num_bins,
      trials.Round(dtype=np.float64),
      num_rows=num_rows,
    )
  return float(np.abs(shares(read, 150.0) - singles(read)).max())


def averaging(bench: Bench) -> dict[str, np.ndarray]:
  """FedAvg in float64: share above 60 decibels by kind and local rate."""
  study, found = bench.config.study, {}
  for rate in study.local_rates:
    for kind in ('cumulative', 'sparse'):
      protocol = trials.Round(steps=study.steps, rate=rate, dtype=np.float64)
      with float64.enabled():
        read = bench.read(bench.config.imprint.num_bins, protocol, kind=kind)
      found[kind, rate] = shares(read, 60.0)
  # What real protocols send, in the type that they send it in.
  protocol = trials.Round(
    steps=study.steps, rate=study.local_rates[0], what='difference'
  )
  read = bench.read(bench.config.imprint.num_bins, protocol)
  found['difference', study.local_rates[0]] = shares(read, 60.0)
  return found


def audited(
  bench: Bench, honest: Sequence[Sequence[Any]]
) -> tuple[list[float], list[float]]:
  """Share of imprints that are flagged, and of honest networks that are, [S].

  Args:
    bench: Of whose traps both kinds are planted behind two connections, and
      two rows of the one-shot attack.
    honest: Parameters of networks without an imprint, a list a seed.
  """
  num_bins = bench.config.imprint.num_bins // 8
  planted: list[list[Any]] = [[] for _ in bench.seeds]
  for kind in ('cumulative', 'sparse'):
    for trees, trap in zip(
      planted, bench.traps(num_bins, kind=kind), strict=True
    ):
      two = trap._replace(edges=imprint_bins.around(0.0, num_bins, trap.edges))
      for connection in ('linear', 'addition'):
        trees += [attack.params(x, connection) for x in (trap, two)]

  def flagged(trees):
    return float(np.mean([bool(imprint_audit.audit(x)) for x in trees]))

  return [flagged(x) for x in planted], [flagged(x) for x in honest]
