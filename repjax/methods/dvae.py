"""Device code: trains a discrete autoencoder through the Gumbel-softmax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import step as steps
from repjax.models import dvae
from repjax.types import check_range

# Columns that `update` adds to a batch, a value a row.
_KEY, _TEMPERATURE, _KL_WEIGHT = 'dvae_key', 'dvae_temperature', 'dvae_kl'
_PIXELS = 'dvae_pixels'  # What is aimed at: float32, whatever the model sees.


def make(
  model: dvae.Dvae,
  tx: optax.GradientTransformation,
  *,
  temperature: optax.ScalarOrSchedule,
  kl_weight: optax.ScalarOrSchedule = 0.0,
  straight_through: bool = False,
  **settings: Any,
) -> types.Method:
  """Minimizes reconstruction error and the tokens' distance from uniform.

  The loss of a row is the mean squared error of its pixels, plus `kl_weight`
  times the mean over places of KL(q || uniform), in nats: the evidence bound of
  DALL-E (Ramesh et al., 2021, sec. 2.1, https://arxiv.org/abs/2102.12092) with
  a Gaussian in place of its logit-Laplace likelihood.

  Args:
    model: Autoencoder.
    tx: Optax chain.
    temperature: Of the relaxation, > 0, or a schedule; DALL-E's falls from 1 to
      1/16.
    kl_weight: >= 0, or a schedule.
    straight_through: Whether the decoder sees the token that was drawn, with
      the gradient of the relaxed one, in place of the relaxed one.
    **settings: microbatches, compute_dtype, ema_decay; see `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C]. Sums: 'loss', 'mse',
    'kl'. `predict` gives, for the likeliest tokens, 'mse' [B] and 'kl' [B], and
    'ids' int32 [B, h, w].

  Raises:
    InputError: If a number is out of range; values of a schedule are not seen.
  """
  if not callable(temperature):
    check_range('(0, inf)', temperature=temperature)
  if not callable(kl_weight):
    check_range('[0, inf)', kl_weight=kl_weight)
  schedules = {
    _TEMPERATURE: _schedule(temperature),
    _KL_WEIGHT: _schedule(kl_weight),
  }

  def loss_fn(params, model_state, batch, rng):
    del rng  # Noise is a row's, so that no number of devices changes it.
    image = batch['image']
    variables = {'params': params}
    # The noise needs the shape of the logits, which costs nothing to ask.
    shape = jax.eval_shape(
      lambda x: model.apply(variables, x, method='encode'), image
    ).shape
    noise = jax.vmap(
      lambda key: jax.random.gumbel(jax.random.wrap_key_data(key), shape[1:])
    )(batch[_KEY])
    # Rows of padding have temperature 0.
    heat = jnp.where(batch['mask'] > 0, batch[_TEMPERATURE], 1.0)
    made, logits = model.apply(
      variables,
      image,
      noise,
      heat[:, None, None, None],
      straight_through=straight_through,
    )
    mse = _mse(made, batch[_PIXELS])
    kl = dvae.uniform_kl(logits).mean((1, 2))
    return types.Losses(
      loss=mse + batch[_KL_WEIGHT] * kl,
      model_state=model_state,
      metrics={'mse': mse, 'kl': kl},
    )

  def aim(batch, rng):
    del rng  # Nothing is drawn.
    return {**batch, _PIXELS: batch['image']}

  step = steps.make(loss_fn, tx, transform=aim, **settings)

  def init(rng, batch):
    return step.init(model.init(rng, batch['image'], 0.0, 1.0))

  def update(state, batch, rng):
    rng_noise, rng_step = jax.random.split(rng)
    num_rows = batch['mask'].shape[0]
    keys = parallel.row_rngs(rng_noise, num_rows)
    values = {
      name: jnp.full(num_rows, schedule(state.step), jnp.float32)
      for name, schedule in schedules.items()
    }
    batch = {**batch, _KEY: jax.random.key_data(keys), **values}
    return step.update(state, batch, rng_step)

  def predict(state, batch):
    variables, image = steps.variables(state), batch['image']
    logits = model.apply(variables, image, method='encode')
    ids = logits.argmax(-1).astype(jnp.int32)
    made = model.apply(variables, ids, method='decode')
    return {
      'mse': _mse(made, image),
      'kl': dvae.uniform_kl(logits).mean((1, 2)),
      'ids': ids,
    }

  return types.Method(init, update, predict)


def _mse(made, image):
  """Mean squared error of each row, [B]."""
  return jnp.square(made - image).mean((1, 2, 3))


def _schedule(value):
  return value if callable(value) else lambda step: value
