"""One step of a ViT with nothing around it: what a launch is compared to.

python -m launch.benchmarks.peers.bare_vit SETTINGS_AS_JSON
"""

import json
import sys
from typing import Any

import jax
import numpy as np
import optax

from repjax.models import vit

_SIDE = 28


def step(*, batch_size: int, classes: int, model: dict[str, Any]) -> float:
  """The loss of one step of AdamW on random grey images of 28 x 28.

  Args:
    batch_size: Images.
    classes: Of the head.
    model: Fields of `vit.ViT`.
  """
  rng = np.random.default_rng(0)
  image = rng.normal(size=(batch_size, _SIDE, _SIDE, 1)).astype(np.float32)
  label = rng.integers(0, classes, batch_size)
  network: Any = vit.ViT(classes, **model)
  tx = optax.adamw(1e-3)

  def loss_fn(params, rng):
    logits = network.apply(
      {'params': params}, image, train=True, rngs={'dropout': rng}
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return loss.mean()

  @jax.jit
  def init(rng):
    params = network.init(rng, image[:1], train=False)['params']
    return params, tx.init(params)

  @jax.jit
  def update(params, opt_state, rng):
    loss, grads = jax.value_and_grad(loss_fn)(params, rng)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  *_, loss = update(*init(jax.random.key(0)), jax.random.key(1))
  return float(loss)


if __name__ == '__main__':
  print(f'made the first step, loss {step(**json.loads(sys.argv[1]))}')
