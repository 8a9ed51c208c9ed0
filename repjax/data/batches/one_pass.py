"""Host side: one pass over a source in its own order, as training batches.

For methods that learn after deployment: rows come as a stream, each once. The
batch of a step is a function of the step, as everywhere, so a run goes on from
any step of the stream.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np

from repjax.data.batches import in_order
from repjax.data.reading import source as sources


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OnePassBatches(in_order.TrainBatches):
  """Each row once, in order, see `one_pass_batches`."""

  @property
  def num_steps(self) -> int:
    """Steps until every row has been seen."""
    return -(-len(self.source) // self.batch_size)

  @property
  def expected_rows(self) -> float:
    """Rows of a step on average: the last one may be short of some."""
    return len(self.source) / self.num_steps

  def batch(self, step: int) -> in_order.Batch:
    """The batch of one step; padding alone from `num_steps` on."""
    rows = step * self.batch_size + np.arange(self.batch_size)
    mask = (rows < len(self.source)).astype(np.float32)
    return self._read(np.where(mask > 0, rows, 0), mask, self._draws(step))

  def iterate(self, start_step: int = 0) -> Iterator[in_order.Batch]:
    """batch(start_step), ..., batch(num_steps - 1), read ahead."""
    return self._stream(self.batch, start_step, self.num_steps)


def one_pass_batches(
  source: sources.Source, *, batch_size: int, seed: int = 0, **reading: Any
) -> OnePassBatches:
  """Every row once, in the order of the source; then the stream ends.

  Batches are like those of `in_order.train_batches`, transforms that draw
  included. The last one is filled up with row 0 and mask 0.

  Args:
    source: The rows, in the order in which they come.
    batch_size: Rows of a global batch.
    seed: >= 0. Of what `transform` and `decode` draw, together with the step.
    **reading: transform, decode and the others of `in_order.train_batches`.

  Raises:
    InputError: If `batch_size` does not divide over the processes.
  """
  base = in_order.train_batches(
    source, batch_size=batch_size, seed=seed, **reading
  )
  return base.extended(OnePassBatches)
