"""Time of a step of PiCO against the passes that it is made of."""

import functools
import time
from typing import Any

import numpy as np

from launch.lib import timing

# A WideResNet on rows like CIFAR's, and the paper's queue.
_DEPTH, _WIDEN = 16, 2
_BATCH_SIZE, _SIDE, _CLASSES = 64, 32, 10
_QUEUE, _DIM = 8192, 128


def pico(rounds: int) -> dict[str, Any]:
  """A step over the sum of its passes, both on the same two views.

  The passes: a supervised step (forward, backward, SGD with momentum), and a
  forward pass in training, that of the key network. Flops are XLA's counts.
  """
  import jax
  import optax

  from repjax.methods import model_inputs
  from repjax.methods import pico as method
  from repjax.methods import supervised
  from repjax.methods import two_views
  from repjax.models import resnet

  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(_BATCH_SIZE, _SIDE, _SIDE, 3)).astype(np.float32),
    'label': rng.integers(0, _CLASSES, _BATCH_SIZE).astype(np.int32),
    'candidates': rng.random((_BATCH_SIZE, _CLASSES)) < 0.5,
    'index': np.arange(_BATCH_SIZE, dtype=np.int32),
    'mask': np.ones(_BATCH_SIZE, np.float32),
  }
  model = resnet.WideResNet(_CLASSES, depth=_DEPTH, widen=_WIDEN)
  tx = optax.sgd(0.1, momentum=0.9)
  whole = timing.Bare(
    method.make(
      model,
      tx,
      num_rows=50_000,
      num_classes=_CLASSES,
      views=two_views.by_dropout(),
      warmup_steps=0,
      target_momentum=0.9,
      dim=_DIM,
      queue_size=_QUEUE,
    ),
    batch,
  )
  plain = timing.Bare(supervised.make(model, tx), batch)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), batch['image'][:1]
  )
  forward = (
    jax.jit(functools.partial(model_inputs.forward, model, model_inputs.image))
    .lower(variables, batch, jax.random.key(0))
    .compile()
  )
  flops = plain.flops + forward.cost_analysis()['flops']

  def passes(steps: int) -> float:
    seconds = plain.run(steps)
    start = time.perf_counter()
    for _ in range(steps):
      found = forward(variables, batch, jax.random.key(0))
    jax.block_until_ready(found)
    return seconds + time.perf_counter() - start

  return {
    'step over the sum of its passes, time': timing.alternate(
      rounds, lambda: whole.run(3), lambda: passes(3)
    ),
    'step over the sum of its passes, flops': whole.flops / flops,
  }
