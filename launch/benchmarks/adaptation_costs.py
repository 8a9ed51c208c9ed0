"""Time of adaptation on a stream against plain inference."""

from collections.abc import Callable
import time
from typing import Any

import numpy as np

from launch.lib import timing

# A WideResNet of two widths on rows like CIFAR's.
_DEPTH, _WIDEN = 16, 2
_BATCH_SIZE, _SIDE = 100, 32


def adaptation(rounds: int) -> dict[str, Any]:
  """A batch by each form of adaptation, over the same batch by inference.

  'Tent' predicts before its update: one forward pass and one backward pass, in
  which weights of convolutions have no gradient. 'over' counts the whole batch,
  prediction and all, 'adds' what adaptation adds to it: 1 less. Flops are XLA's
  counts.
  """
  import jax
  import optax

  from repjax import loop
  from repjax.methods import supervised
  from repjax.models import resnet
  from repjax.protocols import adaptation as protocol

  rng = np.random.default_rng(0)
  shape = (_BATCH_SIZE, _SIDE, _SIDE, 3)
  batch = {
    'image': rng.normal(size=shape).astype(np.float32),
    'label': rng.integers(0, 10, _BATCH_SIZE).astype(np.int32),
    'mask': np.ones(_BATCH_SIZE, np.float32),
  }
  method = supervised.make(
    resnet.WideResNet(10, depth=_DEPTH, widen=_WIDEN), optax.sgd(0.1)
  )
  state = loop.init(method, batch, 0, jax.local_devices()[:1])

  def compiled(form):
    made = protocol.forms(
      method.predict,
      state,
      batch,
      optax.adam(1e-3),
      blend=16.0,
      names=(form,),
    )
    return _Step(made, state, batch)

  plain = compiled('source')
  result = {}
  for form in ('BN', 'Tent'):
    step = compiled(form)
    result[f'{form} over inference, flops'] = step.flops / plain.flops
    ratio = timing.alternate(rounds, step.seconds, plain.seconds)
    result[f'{form} over inference, time'] = ratio
    result[f'{form} adds to inference, time'] = ratio - 1
  return result


class _Step:
  """A compiled step of one form."""

  def __init__(self, made, state, batch):
    import jax

    self._state, self._batch = state, jax.device_put(batch)
    self._adapted = made.init(state)
    arguments = self._state, self._adapted, self._batch
    self._step: Callable = jax.jit(made.step).lower(*arguments).compile()
    self.flops = self._step.cost_analysis()['flops']

  def seconds(self, steps: int = 3) -> float:
    """Seconds for some batches, one after the other."""
    import jax

    start = time.perf_counter()
    for _ in range(steps):
      self._adapted, logits = self._step(
        self._state, self._adapted, self._batch
      )
    jax.block_until_ready((self._adapted, logits))
    return time.perf_counter() - start
