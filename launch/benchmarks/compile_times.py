"""What the compiler has to do for deep stacks of blocks, with and without loop.

`scan_layers` runs equal blocks as one loop (`repjax.models.deep`).
"""

import functools
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

_DEPTHS = (12, 24)
# ViT-S in all but its width, which changes products, not how many there are.
_MODEL = dict(patch_size=8, hidden_dim=64, mlp_dim=256, num_heads=2)
_BATCH_SIZE, _SIDE = 8, 32


def compile_times(rounds: int) -> dict[str, Any]:
  """A step of AdamW on vision transformers: the loop over no loop.

  Instructions are those of the optimised program; of the gradient alone, too,
  since the optimizer has its own for every parameter in both forms.
  """
  result = {}
  for depth in _DEPTHS:
    plain, scanned = (_Step(depth, scan_layers=x) for x in (False, True))
    numbers = {
      'seconds to compile the step': scanned.seconds,
      'seconds without the loop': plain.seconds,
      'step, instructions': scanned.instructions / plain.instructions,
      'gradient, instructions': (
        scanned.gradient_instructions / plain.gradient_instructions
      ),
      'temporary memory': (
        scanned.bare.temporary_bytes / plain.bare.temporary_bytes
      ),
      'time of a step': timing.alternate(
        rounds,
        functools.partial(scanned.bare.run, 3),
        functools.partial(plain.bare.run, 3),
      ),
    }
    logging.info('%d blocks: %s', depth, numbers)
    result.update({f'{depth} blocks, {k}': x for k, x in numbers.items()})
  return result


class _Step:
  """A compiled step, and what compiling it took."""

  def __init__(self, depth, *, scan_layers):
    import jax
    import optax

    from repjax.methods import supervised
    from repjax.models import vit

    model = vit.ViT(10, num_layers=depth, scan_layers=scan_layers, **_MODEL)
    image = np.random.default_rng(0).normal(size=(_BATCH_SIZE, _SIDE, _SIDE, 3))
    batch = {
      'image': image.astype(np.float32),
      'label': np.zeros(_BATCH_SIZE, np.int32),
      'mask': np.ones(_BATCH_SIZE, np.float32),
    }
    method = supervised.make(model, optax.adamw(1e-3))
    # Nothing that an earlier run has compiled.
    self.bare, _ = timing.compiling(lambda: timing.Bare(method, batch))
    self.seconds = self.bare.seconds_to_compile
    self.instructions = _count(self.bare.text)
    variables = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), image
    )

    def loss(variables):
      return model.apply(variables, batch['image'], train=True).sum()

    gradient = jax.jit(jax.grad(loss)).lower(variables).compile()
    self.gradient_instructions = _count(gradient.as_text())


def _count(text):
  return sum(' = ' in line for line in text.splitlines())
