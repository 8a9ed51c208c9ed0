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


def step(
  *,
  image: list[int],
  classes: int,
  patch: list[int],
  model: dict[str, Any],
) -> float:
  """The loss of one step of AdamW on random images.

  Args:
    image: Shape of a batch of them.
    classes: Of the head.
    patch: Height and width of a patch.
    model: Further fields of `vit.ViT`.
  """
  rng = np.random.default_rng(0)
  images = rng.normal(size=image).astype(np.float32)
  label = rng.integers(0, classes, len(images))
  height, width = patch
  network: Any = vit.ViT(classes, patch_size=(height, width), **model)
  tx = optax.adamw(1e-3)

  def loss_fn(params, rng):
    logits = network.apply(
      {'params': params}, images, train=True, rngs={'dropout': rng}
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return loss.mean()

  @jax.jit
  def init(rng):
    params = network.init(rng, images[:1], train=False)['params']
    return params, tx.init(params)

  @jax.jit
  def update(params, opt_state, rng):
    loss, grads = jax.value_and_grad(loss_fn)(params, rng)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  *_, loss = update(*init(jax.random.key(0)), jax.random.key(1))
  return float(loss)


if __name__ == '__main__':
  loss = step(**json.loads(sys.argv[1]))
  # To a pipe it would go when the interpreter ends, which takes time.
  print(f'made the first step: its loss is {loss}', flush=True)
