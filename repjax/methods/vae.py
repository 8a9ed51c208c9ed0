"""Device code: trains a variational autoencoder by its bound.

Kingma and Welling, 'Auto-Encoding Variational Bayes', ICLR 2014.
https://arxiv.org/abs/1312.6114
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import step as steps
from repjax.models import vae

_NOISE = 'vae_noise'  # A column that `update` adds to a batch.


def make(
  model: vae.Vae, tx: optax.GradientTransformation, **settings: Any
) -> types.Method:
  """Minimizes -ELBO: reconstruction and KL of one code a row, in nats.

  Args:
    model: Autoencoder.
    tx: Optax chain; links that take `grad_fn` get it.
    **settings: microbatches, compute_dtype, ema_decay; see `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C] in [0, 1]. Sums:
    'loss', 'reconstruction', 'kl'. `predict` gives the last two, [B], averaged
    over 16 codes that are the same for all rows.
  """

  def loss_fn(params, model_state, batch, rng):
    del rng  # Noise is a row's, so that no number of devices changes it.
    bound = model.apply({'params': params}, batch['image'], batch[_NOISE])
    return types.Losses(sum(bound), model_state, bound._asdict())

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    noise = jnp.zeros((batch['mask'].shape[0], model.code_dim))
    return step.init(model.init(rng, batch['image'], noise))

  def update(state, batch, rng):
    rng_noise, rng_step = jax.random.split(rng)
    keys = parallel.row_rngs(rng_noise, batch['mask'].shape[0])
    draw = jax.vmap(lambda key: jax.random.normal(key, (model.code_dim,)))
    return step.update(state, {**batch, _NOISE: draw(keys)}, rng_step)

  def predict(state, batch):
    return expected_bound(
      model, steps.variables(state), batch['image']
    )._asdict()

  return types.Method(init, update, predict)


def expected_bound(
  model: vae.Vae, variables: types.PyTree, image: jax.Array
) -> vae.Bound:
  """The bound of each row over 16 codes, 8 draws and their opposites.

  Args:
    model: Autoencoder.
    variables: Its variables.
    image: [B, ...], in [0, 1].

  Returns:
    Two arrays [B]; the same at every call.
  """
  noise = jax.random.normal(jax.random.key(0), (8, model.code_dim))
  noise = jnp.concatenate([noise, -noise])

  def one(noise):
    shape = (image.shape[0], model.code_dim)
    return model.apply(variables, image, jnp.broadcast_to(noise, shape))

  return jax.tree.map(lambda x: x.mean(0), jax.lax.map(one, noise))
