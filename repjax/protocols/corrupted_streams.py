"""Several trained networks, each adapting to streams in an order of its own."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal

import numpy as np
import optax

from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import source as sources
from repjax.protocols import adaptation
from repjax.protocols import side_by_side

Errors = dict[str, np.ndarray]


class Streams:
  """Errors of all forms of adaptation, by Adam, on corrupted rows of one set.

  Rows are corrupted alike for all networks; the order is a network's own.
  """

  def __init__(
    self,
    method: types.Method,
    states: types.TrainState,
    source: sources.Source,
    evaluate: transforms.Transform,
    *,
    seeds: Sequence[int],
    severity: int,
    scale: Literal['cifar', 'imagenet'],
    batch_size: int,
    blend: float,
  ):
    """Takes what was trained, and what streams by.

    Args:
      method: That was trained.
      states: Trained states, with a leading seed axis.
      source: Rows of the streams.
      evaluate: What images go through after their corruption.
      seeds: Of the orders, one a network.
      severity: Of the corruptions, 1 to 5.
      scale: Their constants.
      batch_size: Rows of a batch.
      blend: Rows that the trained statistics count as in 'blended'.
    """
    self._method, self._states = method, states
    self._source, self._evaluate = source, evaluate
    self._seeds, self._batch_size, self._blend = seeds, batch_size, blend
    self._corruption: dict[str, Any] = dict(severity=severity, scale=scale)
    self._program = functools.cache(self._compile)

  def errors(
    self,
    *names: str,
    rate: float,
    forms: tuple[str, ...] = adaptation.NAMES,
    order: Literal['shuffled', 'sorted'] = 'shuffled',
    batch_size: int = 0,
  ) -> Errors:
    """Errors on one stream: form -> one number a network, [S].

    Args:
      *names: Corruptions, one after the other; 'none' for none.
      rate: Learning rate of 'Tent'.
      forms: Which are run.
      order: 'shuffled', or 'sorted' by label.
      batch_size: Rows of a batch; the usual one if 0.
    """
    source = self._source
    for name in names:
      source = adaptation.shifted(
        source, name, order='as it is', **self._corruption
      )
    rows = side_by_side.rows(source, self._evaluate)
    orders = [self._order(rows['label'], seed, order) for seed in self._seeds]
    streams = [
      adaptation.batched(
        {name: x[chosen] for name, x in rows.items()},
        batch_size or self._batch_size,
      )
      for chosen in orders
    ]
    logits = self._program(forms)(self._states, streams, rate)
    labels = np.stack([rows['label'][chosen] for chosen in orders])
    return {
      # NaN predicts no class: all rows of one that diverged are wrong.
      form: (
        (logits[form].argmax(-1) != labels) | ~np.isfinite(logits[form]).all(-1)
      ).mean(-1)
      for form in adaptation.NAMES  # A tree's keys are sorted.
      if form in logits
    }

  def mean_errors(self, names: Iterable[str], **settings: Any) -> Errors:
    """Mean over streams of one corruption each; settings as of `errors`."""
    return mean([self.errors(name, **settings) for name in names])

  def _order(self, labels, seed, order):
    shuffled = np.random.default_rng([seed, 1]).permutation(len(labels))
    if order == 'shuffled':
      return shuffled
    return shuffled[np.argsort(labels[shuffled], kind='stable')]

  def _compile(self, forms):
    def forms_fn(rate, state, batch):
      return adaptation.forms(
        self._method.predict,
        state,
        batch,
        optax.adam(rate),
        blend=self._blend,
        names=forms,
      )

    return adaptation.stream_fn(forms_fn)


def mean(tables: Sequence[Mapping[str, np.ndarray]]) -> Errors:
  """Mean over streams: form -> one number a network, [S]."""
  return {
    form: np.mean([x[form] for x in tables], axis=0) for form in tables[0]
  }
