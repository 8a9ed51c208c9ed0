"""Host side: what in a tree of parameters looks like an imprint.

For a user who is sent a model: the rows of an imprint (Fowl et al., ICLR 2022,
https://arxiv.org/abs/2110.13057) all look along one direction, in any layer and
under any name. Layers that are drawn at random, or trained, do not. Whoever
disguises an imprint (other rows beside it, a change of the direction with
noise) is not found by this.
"""

import math
from typing import NamedTuple

import numpy as np

from repjax import trees
from repjax import types

# A layer of so few outputs or inputs may be of rank 1 by nature.
_LEAST = 2


class Suspect(NamedTuple):
  """A layer that looks like an imprint.

  Attributes:
    name: Of its kernel, names joined by '/'.
    parallel: Share of its outputs along the commonest direction.
    steps: Distinct thresholds (bias over length of the weights) among them.
  """

  name: str
  parallel: float
  steps: int


def audit(
  params: types.PyTree, *, parallel: float = 0.5, cosine: float = 0.999
) -> list[Suspect]:
  """Layers in which many outputs look along one direction.

  Every leaf 'kernel' is read as a matrix [inputs, outputs], outputs last, with
  the leaf 'bias' beside it; a layer that differs in its outputs by nothing (a
  fresh layer of zeros or of ones without biases) is none.

  Args:
    params: Any tree of parameters.
    parallel: Share of a layer's outputs, in (0, 1], from which it is named.
    cosine: From which two outputs look along one direction, in (0, 1).

  Returns:
    Suspects, in the order of the tree.
  """
  types.check_range('(0, 1]', parallel=parallel)
  types.check_range('(0, 1)', cosine=cosine)
  leaves = trees.flatten(params)
  found = []
  for path, leaf in leaves.items():
    if path[-1] != 'kernel' or np.ndim(leaf) < 2:
      continue
    kernel = np.asarray(leaf, np.float64)
    beside = leaves.get((*path[:-1], 'bias'))
    if beside is None:
      continue
    bias = np.asarray(beside, np.float64)
    for one_kernel, one_bias in _layers(kernel, bias):
      # A dense layer with several axes of outputs has a bias like them.
      outputs = one_kernel.reshape(-1, one_bias.size)
      share, steps = _parallel(outputs, one_bias.ravel(), parallel, cosine)
      if share >= parallel and steps >= _LEAST:
        found.append(Suspect('/'.join(path), share, steps))
  return found


def _layers(kernel, bias):
  """(kernel, bias) of each layer of a stack, [L, ...], as of `nn.scan`."""
  alone = kernel.shape[kernel.ndim - bias.ndim :] == bias.shape
  if alone or bias.ndim < 2 or kernel.shape[0] != bias.shape[0]:
    return [(kernel, bias)]
  return [x for pair in zip(kernel, bias, strict=True) for x in _layers(*pair)]


def _parallel(kernel, bias, parallel, cosine):
  """(share of outputs along the commonest direction, distinct thresholds)."""
  lengths = np.linalg.norm(kernel, axis=0)
  alive = lengths > 0
  if min(kernel.shape[0], alive.sum()) < _LEAST:
    return 0.0, 0
  units = kernel[:, alive] / lengths[alive]
  # Of so many that are drawn, none lies along a direction that `parallel` of
  # all have once in 1e12 audits. No seed: who knew the draws would plant around
  # them.
  share = min(parallel, 1 - 1e-12)
  count = math.ceil(math.log(1e-12) / math.log1p(-share))
  order = np.random.default_rng().permutation(units.shape[1])
  some = units[:, order[: max(1, count)]]
  # Opposite outputs are not parallel: those of a head of two classes are, after
  # any training from zeros, and rows of an imprint have one sign.
  along = some.T @ units >= cosine
  group = along[along.sum(1).argmax()]
  thresholds = bias[alive][group] / lengths[alive][group]
  scale = max(np.abs(thresholds).max(), 1e-12)
  steps = len(np.unique(np.round(thresholds / scale, 6)))
  return float(group.sum() / kernel.shape[1]), steps
