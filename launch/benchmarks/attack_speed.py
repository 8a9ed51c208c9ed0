"""Speed of an attack on a whole test set against loops of its steps."""

import time
from typing import Any

import numpy as np

from launch.lib import timing

# Rows and pixels of the test split of `digits`; ten steps of MI-FGSM.
_ROWS, _SIDE, _STEPS, _EPSILON = 360, 8, 10, 0.35


def attacks(rounds: int) -> dict[str, Any]:
  """Time of loops in Python over that of one compiled attack, all rows at once.

  The loops make the same images. One computes each operation by itself, as
  attacks in PyTorch do; in the other the gradient is compiled, and what is
  done with it is not.
  """
  import jax
  import optax

  from repjax.attacks import fgsm
  from repjax.attacks import losses
  from repjax.models import mlp
  from repjax.models import vit

  rng = np.random.default_rng(0)
  image = jax.numpy.asarray(
    rng.uniform(size=(_ROWS, _SIDE, _SIDE, 1)), jax.numpy.float32
  )
  label = jax.numpy.asarray(rng.integers(0, 10, _ROWS))

  def ratios(model) -> tuple[float, float]:
    variables = jax.jit(lambda key: model.init(key, image, train=False))(
      jax.random.key(0)
    )
    # A head of zeros has no gradient below it.
    keys = optax.tree.split_key_like(jax.random.key(1), variables)
    variables = jax.tree.map(
      lambda x, key: x + 0.1 * jax.random.normal(key, x.shape), variables, keys
    )

    def loss_of(variables):
      return losses.cross_entropy(
        lambda x: model.apply(variables, x, train=False), label
      )

    def total(variables, x):
      return loss_of(variables)(x).sum()

    @jax.jit
    def whole(variables):
      return fgsm.mi_fgsm(
        loss_of(variables), image, epsilon=_EPSILON, num_steps=_STEPS
      )

    eager = jax.grad(total, argnums=1)
    compiled = jax.jit(eager)

    def loop(gradient_fn):
      return by_steps(
        lambda x: gradient_fn(variables, x),
        image,
        epsilon=_EPSILON,
        num_steps=_STEPS,
      )

    def seconds(make) -> float:
      start = time.perf_counter()
      jax.block_until_ready(make())
      return time.perf_counter() - start

    def once() -> float:
      return seconds(lambda: whole(variables))

    def against(gradient_fn) -> float:
      def looped() -> float:
        return seconds(lambda: loop(gradient_fn))

      return timing.alternate(rounds, looped, once)

    return against(eager), against(compiled)

  networks = {
    'MLP': mlp.Mlp(10, features=(128, 128)),
    'ViT': vit.ViT(
      10, patch_size=2, hidden_dim=32, mlp_dim=64, num_heads=4, num_layers=6
    ),
  }
  found: dict[str, Any] = {}
  for name, model in networks.items():
    kinds = 'loop of single operations', 'loop of compiled gradients'
    for kind, ratio in zip(kinds, ratios(model), strict=True):
      found[f'{name}: {kind} over one compiled attack, time'] = ratio
  return found


def by_steps(gradient_fn, image, *, epsilon: float, num_steps: int):
  """MI-FGSM as a loop in Python.

  Args:
    gradient_fn: Images [B, H, W, C] -> gradient of their loss.
    image: Pixels in [0, 1], [B, H, W, C].
    epsilon: Radius of the ball.
    num_steps: Of length `epsilon / num_steps`.
  """
  import jax.numpy as jnp

  x, momentum = image, jnp.zeros_like(image)
  for _ in range(num_steps):
    gradient = gradient_fn(x)
    scale = abs(gradient).mean((1, 2, 3), keepdims=True)
    momentum = momentum + gradient / jnp.maximum(scale, 1e-12)
    x = x + epsilon / num_steps * jnp.sign(momentum)
    x = jnp.clip(x, image - epsilon, image + epsilon)
    x = jnp.clip(x, 0, 1)
  return x
