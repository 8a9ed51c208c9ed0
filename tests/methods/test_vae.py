"""The bound of an autoencoder against integrals, and that it is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax.methods import vae as training
from repjax.models import vae
from repjax.types import InputError

MODEL = vae.Vae(features=(6,), code_dim=1)
IMAGES = np.random.default_rng(0).uniform(size=(5, 2, 2, 1)).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  return MODEL.init(jax.random.key(0), IMAGES, jnp.zeros((5, 1)))


def test_the_bound_is_below_the_likelihood(variables):
  # Of black and white images, log p(x) by summing over a fine grid of codes.
  image = np.rint(IMAGES)
  grid = np.linspace(-6, 6, 601)
  params = jax.tree.map(np.asarray, variables['params'])

  def decoded(code):
    hidden = params['decoder_0']
    x = np.maximum(code @ hidden['kernel'] + hidden['bias'], 0)
    return x @ params['pixels']['kernel'] + params['pixels']['bias']

  logits = decoded(grid[:, None])
  pixels = image.reshape(5, 1, 4)
  log_p = (pixels * logits - np.logaddexp(0, logits)).sum(-1)  # [5, 601]
  prior = np.exp(-np.square(grid) / 2) / np.sqrt(2 * np.pi)
  likelihood = np.log((np.exp(log_p) * prior).sum(1) * (grid[1] - grid[0]))
  bound = training.expected_bound(MODEL, variables, image)
  gap = sum(bound) + likelihood
  # Sixteen codes are a sample: a little below would be their luck.
  assert (gap > -0.05).all() and (gap < 2.0).all()


def test_the_kl_is_that_of_normal_distributions(variables):
  params = jax.tree.map(jnp.zeros_like, variables['params'])
  params['code']['bias'] = jnp.array([0.7, np.log(0.25)])
  bound = MODEL.apply({'params': params}, IMAGES, jnp.zeros((5, 1)))
  # sigma = 1/2, mu = .7: KL = (mu^2 + sigma^2 - 1) / 2 - log sigma.
  expected = (0.49 + 0.25 - 1) / 2 + np.log(2)
  np.testing.assert_allclose(bound.kl, expected, rtol=1e-5)
  np.testing.assert_allclose(bound.reconstruction, 4 * np.log(2), rtol=1e-5)


def test_training_tells_two_images_apart():
  images = np.repeat(np.eye(2, dtype=np.float32), 2, 1).reshape(2, 2, 2, 1)
  batch = {'image': np.tile(images, (8, 1, 1, 1)), 'mask': np.ones(16)}
  method = training.make(MODEL, optax.adam(3e-2))

  def many(rng):
    def one(state, rng):
      state, sums = method.update(state, batch, rng)
      return state, sums['loss'][0] / sums['loss'][1]

    return jax.lax.scan(
      one, method.init(rng, batch), jax.random.split(rng, 200)
    )

  state, losses = jax.jit(many)(jax.random.key(0))
  outputs = method.predict(state, batch)
  assert losses[0] > 2.5
  # The entropy of what there is, one bit, and no code is worth less.
  total = (outputs['kl'] + outputs['reconstruction']).mean()
  assert np.log(2) - 0.02 < total < 1.2
  assert outputs['kl'].shape == (16,)


@pytest.mark.parametrize('sizes', [dict(features=(0,)), dict(code_dim=0)])
def test_sizes_are_at_least_one(sizes):
  with pytest.raises(InputError, match=next(iter(sizes))):
    vae.Vae(**sizes).init(jax.random.key(0), IMAGES, jnp.zeros((5, 1)))
