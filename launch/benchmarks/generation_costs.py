"""Time of an update of ViTGAN against its two updates alone."""

import functools
import time
from typing import Any

import numpy as np

from launch.lib import timing

# Networks of 64 patches, as on CIFAR-10, of less width.
_BATCH_SIZE, _SIDE, _LATENT = 32, 32, 64
_SIZES: dict[str, Any] = dict(
  patch_size=4, hidden_dim=96, mlp_dim=192, num_heads=3, num_layers=2
)


def vitgan(rounds: int) -> dict[str, Any]:
  """An update over the sum of the two that it is made of, same rows.

  Alone are: the discriminator's gradient and Adam step on rows that the
  generator makes meanwhile, and the generator's against that discriminator,
  each compiled by itself, without masks, averages or sums. Flops are XLA's.
  """
  import jax
  import jax.numpy as jnp
  import optax

  from repjax.methods import diff_augment
  from repjax.methods import gan_losses
  from repjax.methods import vitgan as method
  from repjax.models import vit_discriminator
  from repjax.models import vit_generator

  rng = np.random.default_rng(0)
  shape = (_BATCH_SIZE, _SIDE, _SIDE, 3)
  image = rng.uniform(-1, 1, shape).astype(np.float32)
  batch = {'image': image, 'mask': np.ones(_BATCH_SIZE, np.float32)}
  generator = vit_generator.VitGenerator(
    _SIDE, 3, latent_dim=_LATENT, mapping_layers=2, **_SIZES
  )
  judge = vit_discriminator.VitDiscriminator(**_SIZES)
  tx = optax.adam(2e-3, b1=0.0, b2=0.99)
  views = functools.partial(
    diff_augment.augment, kinds=('colour', 'translation', 'cutout')
  )
  made = method.make(generator, judge, method.Optimizers(tx, tx), augment=views)
  whole = timing.Bare(made, batch)
  state = jax.jit(made.init)(jax.random.key(0), batch)
  keys = jax.random.split(jax.random.key(1), _BATCH_SIZE)
  latent = jnp.asarray(
    rng.normal(size=(_BATCH_SIZE, _LATENT)).astype(np.float32)
  )

  def of_discriminator(params, opt_state, spectral, making, image):
    fake = generator.apply({'params': making}, latent, train=True)

    def loss(params):
      scores, spectral_after = judge.apply(
        {'params': params, **spectral},
        jnp.concatenate([views(image, keys), views(fake, keys)]),
        train=True,
        mutable=list(spectral),
      )
      value = gan_losses.of_discriminator(
        *jnp.split(scores, 2), kind='non_saturating'
      )
      return value.mean(), spectral_after

    grads, spectral = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, spectral

  def of_generator(params, opt_state, spectral, judging):
    def loss(params):
      fake = generator.apply({'params': params}, latent, train=True)
      scores = judge.apply(
        {'params': judging, **spectral}, views(fake, keys), train=False
      )
      return gan_losses.of_generator(scores, kind='non_saturating').mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  first = (
    state.params['discriminator'],
    state.opt_state.discriminator,
    state.model_state,
    state.params['generator'],
    jnp.asarray(image),
  )
  second = (
    state.params['generator'],
    state.opt_state.generator,
    state.model_state,
    state.params['discriminator'],
  )
  parts: Any = [
    (jax.jit(fn).lower(*args).compile(), args)
    for fn, args in ((of_discriminator, first), (of_generator, second))
  ]

  def alone(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      found = [fn(*args) for fn, args in parts]
    jax.block_until_ready(found)
    return time.perf_counter() - start

  flops = sum(fn.cost_analysis()['flops'] for fn, _ in parts)
  return {
    'update over the sum of its two, time': timing.alternate(
      rounds, lambda: whole.run(3), lambda: alone(3)
    ),
    'update over the sum of its two, flops': whole.flops / flops,
  }
