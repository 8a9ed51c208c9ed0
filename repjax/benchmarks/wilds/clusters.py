"""Host side: what clusters of images say of labels they have not seen."""

from collections.abc import Mapping

import numpy as np


def measure(
  outputs: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What clusters say of labels that they have never seen.

  Args:
    outputs: 'scores' [N, K].
    columns: 'label' [N].

  Returns:
    'accuracy' of guessing the most frequent label of a row's cluster, of the
    same rows, and 'clusters', how many have rows.
  """
  cluster, label = outputs['scores'].argmax(-1), columns['label']
  table = np.zeros((outputs['scores'].shape[1], label.max() + 1), int)
  np.add.at(table, (cluster, label), 1)
  return {
    'accuracy': float(table.max(1).sum() / len(label)),
    'clusters': float((table.sum(1) > 0).sum()),
  }
