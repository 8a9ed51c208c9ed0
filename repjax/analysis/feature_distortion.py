"""How far training has moved a network's features, domain by domain.

Kumar et al., 'Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution', ICLR 2022 (https://arxiv.org/abs/2202.10054): fine-tuning
moves the features of the training distribution far more than those of other
inputs, so that a head that has followed the former is wrong for the latter.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from repjax import loop
from repjax import types
from repjax.methods import lp_ft
from repjax.methods import model_inputs
from repjax.types import InputError


class Distortion(NamedTuple):
  """Movement of the features of one set of rows.

  Attributes:
    distance: Mean over rows of |after - before|, the paper's measure; in units
      of the features.
    relative: `distance` over the mean of |before|; compares layers.
  """

  distance: np.ndarray
  relative: np.ndarray


def distortion(before: np.ndarray, after: np.ndarray) -> Distortion:
  """Compares features of the same rows.

  Args:
    before: [..., N, D]; leading axes are, for example, seeds.
    after: [..., N, D], of the same rows in the same order.

  Returns:
    Numbers of the shape of the leading axes; `relative` is NaN where all
    features were zero.

  >>> distortion([[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])
  Distortion(distance=np.float64(3.0), relative=np.float64(1.2))
  """
  before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
  if before.shape != after.shape or before.ndim < 2:
    raise InputError(
      'Features before and after must be [..., N, D] of the same rows; got '
      f'{before.shape} and {after.shape}.'
    )
  distance = np.linalg.norm(after - before, axis=-1).mean(-1)
  size = np.linalg.norm(before, axis=-1).mean(-1)
  relative = np.divide(
    distance, size, out=np.full_like(distance, np.nan), where=size > 0
  )
  return Distortion(distance, relative[()])


def by_layer(
  model: nn.Module,
  before: types.TrainState,
  after: types.TrainState,
  domains: Mapping[str, Iterable[types.HostBatch]],
  *,
  layers: Sequence[str] = ('head',),
  inputs: model_inputs.Inputs = model_inputs.image,
) -> dict[str, dict[str, Distortion]]:
  """What several layers see, before and after training.

  Args:
    model: Network of both states.
    before: For example at the end of pretraining.
    after: For example at the end of fine-tuning.
    domains: Name -> host batches of one pass
      (`data.batches.in_order.eval_batches`), for example of the training
      distribution and of another one.
    layers: Module names, joined by '/'; the head's input are the features.
    inputs: What the model is called with, from a batch.

  Returns:
    Layer -> domain -> `Distortion`.
  """
  table: dict[str, dict[str, Distortion]] = {}
  for layer in layers:
    predict = lp_ft.features(model, layer=layer, inputs=inputs)
    evaluator = loop.Evaluator(types.Predictor(predict))
    table[layer] = {}
    for name, batches in domains.items():
      old, new = (
        evaluator(state, batches)[0]['features'] for state in (before, after)
      )
      table[layer][name] = distortion(old, new)
  return table
