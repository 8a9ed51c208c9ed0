"""Time of finding exemplars against the inference that they are found in."""

import functools
import time
from typing import Any

import numpy as np

from launch.lib import timing

# A ResNet-18 for small images, on as many rows as CIFAR has for tests, and its
# four stages. Rounds are of few batches; the whole pass is made once.
_BATCH_SIZE, _SIDE, _NUM_BATCHES, _IN_A_ROUND = 100, 32, 100, 2
_LAYERS = tuple(f'stage_{i}' for i in range(4))
_POSITIONS = 16


def exemplars(rounds: int) -> dict[str, Any]:
  """One pass that finds exemplars of all stages, over the same inference.

  15 exemplars of 960 units with their maps, and quantiles of 16 places an image
  or of all, by rounds of 200 images; of 16 places by one pass over 10,000, with
  inference before it and after it, which takes minutes.
  """
  import jax
  import optax

  from repjax.analysis import exemplars as module
  from repjax.methods import supervised
  from repjax.models import resnet

  rng = np.random.default_rng(0)
  shape = (_BATCH_SIZE, _SIDE, _SIDE, 3)
  whole = [
    jax.device_put(
      {
        'image': rng.normal(size=shape).astype(np.float32),
        'mask': np.ones(_BATCH_SIZE, np.float32),
      }
    )
    for _ in range(_NUM_BATCHES)
  ]
  few = whole[:_IN_A_ROUND]
  method = supervised.make(resnet.PreActResNet(10), optax.sgd(0.1))
  label = np.zeros(_BATCH_SIZE, np.int32)
  state = jax.jit(method.init)(jax.random.key(0), {**whole[0], 'label': label})
  predict = jax.jit(method.predict)

  def inference(batches: list[dict[str, jax.Array]]) -> float:
    start = time.perf_counter()
    for batch in batches:
      outputs = predict(state, batch)
    jax.block_until_ready(outputs)
    return time.perf_counter() - start

  def collect(
    batches: list[dict[str, jax.Array]], positions: int | None
  ) -> float:
    start = time.perf_counter()
    module.collect(method.predict, state, batches, _LAYERS, positions=positions)
    return time.perf_counter() - start

  result = {
    f'exemplars over inference, {name} places, time': timing.alternate(
      rounds, functools.partial(collect, few, x), lambda: inference(few)
    )
    for name, x in ((str(_POSITIONS), _POSITIONS), ('all', None))
  }
  before = inference(whole)
  found = collect(whole, _POSITIONS)
  after = inference(whole)
  result['exemplars over inference, 10,000 images, 16 places, time'] = (
    2 * found / (before + after)
  )
  return result
