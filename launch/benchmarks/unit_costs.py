"""Time of finding exemplars against the inference that they are found in."""

import time
from typing import Any

import numpy as np

from launch.lib import timing

# A ResNet-18 for small images, on rows like CIFAR's, and its four stages.
_BATCH_SIZE, _SIDE, _NUM_BATCHES = 100, 32, 2
_LAYERS = tuple(f'stage_{i}' for i in range(4))
_POSITIONS = 16


def exemplars(rounds: int) -> dict[str, Any]:
  """One pass that finds exemplars of all stages, over the same inference.

  15 exemplars of 960 units with their maps, and quantiles of 16 places an image
  or of all. Flops are XLA's counts.
  """
  import jax
  import optax

  from repjax.analysis import exemplars as module
  from repjax.methods import supervised
  from repjax.models import resnet

  rng = np.random.default_rng(0)
  shape = (_BATCH_SIZE, _SIDE, _SIDE, 3)
  batches = [
    jax.device_put(
      {
        'image': rng.normal(size=shape).astype(np.float32),
        'mask': np.ones(_BATCH_SIZE, np.float32),
      }
    )
    for _ in range(_NUM_BATCHES)
  ]
  method = supervised.make(resnet.PreActResNet(10), optax.sgd(0.1))
  label = np.zeros(_BATCH_SIZE, np.int32)
  state = jax.jit(method.init)(
    jax.random.key(0), {**batches[0], 'label': label}
  )
  predict = jax.jit(method.predict)

  def inference() -> float:
    start = time.perf_counter()
    for batch in batches:
      outputs = predict(state, batch)
    jax.block_until_ready(outputs)
    return time.perf_counter() - start

  def collect(positions: int | None) -> float:
    start = time.perf_counter()
    module.collect(method.predict, state, batches, _LAYERS, positions=positions)
    return time.perf_counter() - start

  return {
    'exemplars over inference, 16 places, time': timing.alternate(
      rounds, lambda: collect(_POSITIONS), inference
    ),
    'exemplars over inference, all places, time': timing.alternate(
      rounds, lambda: collect(None), inference
    ),
  }
