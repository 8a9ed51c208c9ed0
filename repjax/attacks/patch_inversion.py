"""Device code: the smallest patch that turns any image into a class.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, 'Neural Cleanse: Identifying and
Mitigating Backdoor Attacks in Neural Networks', IEEE S&P 2019
(https://doi.org/10.1109/SP.2019.00031): a class that a backdoor leads to needs
a far smaller one than the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.attacks import ascent


class Patches(NamedTuple):
  """What was found for each class.

  Attributes:
    mask: How much of the pattern covers each pixel, in [0, 1], [C, H, W].
    pattern: [C, H, W, channels].
    size: Sum of the mask, [C].
    success: Share of images that it turns into the class, [C].
  """

  mask: jax.Array
  pattern: jax.Array
  size: jax.Array
  success: jax.Array


def invert(
  logits_fn: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  *,
  num_classes: int,
  low: float = 0.0,
  high: float = 1.0,
  weight: float = 0.01,
  steps: int = 200,
  learning_rate: float = 0.1,
) -> Patches:
  """Searches a patch for each class, all classes side by side.

  Minimizes the mean cross-entropy of the class over covered images
  (1 - mask) x + mask pattern, plus `weight` times the sum of the mask, by Adam
  on what a sigmoid makes mask and pattern of.

  Args:
    logits_fn: Images [N, H, W, channels] -> logits [N, num_classes].
    images: Clean ones, [N, H, W, channels], within [low, high].
    num_classes: C.
    low: Smallest value of a pixel.
    high: Largest value of a pixel.
    weight: Of the mask's size, > 0.
    steps: Of the search, on all images.
    learning_rate: Of Adam.

  Raises:
    InputError: A setting is out of range, or images are not within [low, high];
      what is traced is not checked.
  """
  types.check_range('[1, inf)', num_classes=num_classes, steps=steps)
  types.check_range('(0, inf)', weight=weight, learning_rate=learning_rate)
  if not high > low:
    raise types.InputError(f'pixels lie within [{low}, {high}]: none do')
  ascent.check_box(images, low, high)
  tx = optax.adam(learning_rate)

  def covered(params):
    mask = jax.nn.sigmoid(params['mask'])
    pattern = low + (high - low) * jax.nn.sigmoid(params['pattern'])
    part = mask[None, :, :, None]
    return mask, pattern, (1 - part) * images + part * pattern[None]

  def loss(params, label):
    mask, _, image = covered(params)
    logits = logits_fn(image)
    target = jnp.full(len(logits), label)
    found = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return found.mean() + weight * mask.sum()

  def search(label):
    params = {
      # Nearly nothing is covered in the beginning.
      'mask': jnp.full(images.shape[1:3], -2.0),
      'pattern': jnp.zeros(images.shape[1:]),
    }

    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params, label), state, params)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    mask, pattern, image = covered(params)
    hits = (logits_fn(image).argmax(-1) == label).mean()
    return Patches(mask, pattern, mask.sum(), hits)

  return jax.jit(jax.vmap(search))(jnp.arange(num_classes))


def anomaly(size: np.ndarray) -> np.ndarray:
  """How far a class's patch is below the median, in robust deviations, [C].

  The median absolute deviation times 1.4826 is a Gaussian's standard deviation;
  the authors suspect what is beyond 2.

  Args:
    size: Of each class's patch, [C].
  """
  size = np.asarray(size, np.float64)
  middle = np.median(size)
  spread = 1.4826 * np.median(abs(size - middle))
  return (middle - size) / max(spread, 1e-12)
