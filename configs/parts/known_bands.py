"""Whether learnt strides find the band of images that have one.

Riad et al., ICLR 2022 (https://arxiv.org/abs/2202.01653): a stride keeps the
frequencies that the task needs, so that its right value is known where images
have none above an edge.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax.layers import diffstride


def error(
  seed: int, *, edges: Sequence[int] = (3, 6, 9), size: int = 32
) -> np.ndarray:
  """Relative errors of learnt strides on images of known bands, [edges, 2].

  Minimizes |pooled - image|^2 + 0.01 / (S_h S_w) over the strides, of noise
  whose frequencies end at an edge K on both axes: S should be N / (2 K).

  Args:
    seed: Of the images.
    edges: K.
    size: N.
  """
  rng = np.random.default_rng(seed)
  near = abs(np.fft.fftfreq(size, 1 / size))
  images = []
  for edge in edges:
    inside = (near[:, None] <= edge) & (near <= edge)
    noise = np.fft.fft2(rng.normal(size=(16, size, size)))
    band = np.fft.ifft2(noise * inside[None]).real[..., None]
    images.append((band / band.std()).astype(np.float32))
  layer = diffstride.DiffStride((2.0, 2.0), 2.0, sizes='full')
  tx = optax.adam(optax.cosine_decay_schedule(0.1, 400), b2=0.9)

  def fit(x):
    def loss(params):
      gone = jnp.square(layer.apply({'params': params}, x) - x).mean()
      return gone + 0.01 / params['strides'].prod()

    def update(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    params = {'strides': jnp.full(2, 2.0)}
    (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), None, 400)
    return params['strides']

  found = jax.jit(jax.vmap(fit))(np.stack(images))
  wanted = size / (2 * np.asarray(edges, np.float64)[:, None])
  return abs(np.asarray(found) / wanted - 1)
