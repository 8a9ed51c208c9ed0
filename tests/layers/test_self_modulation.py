"""Self-modulated norms and implicit patches against NumPy, and identities."""

import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers import equalised
from repjax.layers import implicit_patches
from repjax.layers import patches
from repjax.layers import self_modulation
from repjax.layers.positions import fourier_positions

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(2.0, 3.0, size=(4, 6, 8)).astype(np.float32)
LATENT = RNG.normal(size=(4, 5)).astype(np.float32)


def norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)


def test_modulation_is_a_scale_and_a_shift_of_the_latent():
  layer = self_modulation.SelfModulatedNorm()
  variables = jax.jit(layer.init)(jax.random.key(0), TOKENS, LATENT)
  apply = jax.jit(layer.apply)
  made = apply(variables, TOKENS, LATENT)
  gamma, beta = (
    LATENT @ np.asarray(variables['params'][x]['kernel']) / np.sqrt(5)
    for x in ('gamma', 'beta')
  )
  expected = (1 + gamma[:, None]) * norm(TOKENS) + beta[:, None]
  np.testing.assert_allclose(made, expected, atol=2e-5)
  # One latent for all rows makes it a layer norm with a scale and a shift.
  same = np.broadcast_to(LATENT[:1], LATENT.shape)
  made = apply(variables, TOKENS, same)
  expected = (1 + gamma[0]) * norm(TOKENS) + beta[0]
  np.testing.assert_allclose(made, expected, atol=2e-5)


def test_rates_change_how_a_layer_moves_and_not_how_it_begins():
  x = RNG.normal(size=(512, 64)).astype(np.float32)
  made, slopes = [], []
  for rate in (1.0, 0.01):
    layer = equalised.EqualisedDense(48, rate=rate, bias_init=0.5)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    made.append(np.asarray(jax.jit(layer.apply)(variables, x)))
    slope = jax.grad(lambda v, a=layer: a.apply(v, x).mean())
    grads = jax.jit(slope)(variables)
    slopes.append(np.asarray(grads['params']['bias']))
  np.testing.assert_allclose(made[0], made[1], rtol=1e-4, atol=1e-4)
  assert abs(made[0].std() - 1) < 0.1
  assert abs(made[0].mean() - 0.5) < 0.1
  np.testing.assert_allclose(slopes[1], 0.01 * slopes[0], rtol=1e-5)


def test_coordinates_go_from_corner_to_corner():
  np.testing.assert_allclose(
    fourier_positions.coordinates(2, 3),
    [[-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]],
  )
  layer = fourier_positions.FourierPositions(7)
  variables = jax.jit(lambda key: layer.init(key, 2, 3))(jax.random.key(0))
  made = jax.jit(lambda variables: layer.apply(variables, 2, 3))(variables)
  kernel, bias = (
    np.asarray(variables['params'][x]) for x in ('kernel', 'bias')
  )
  places = np.asarray(fourier_positions.coordinates(2, 3))
  np.testing.assert_allclose(made, np.sin(places @ kernel + bias), atol=1e-5)


def test_a_modulated_layer_is_a_layer_with_weights_of_its_own():
  layer = implicit_patches.ModulatedDense(3)
  x = RNG.normal(size=(2, 4, 5, 6)).astype(np.float32)
  style = RNG.normal(size=(2, 4, 8)).astype(np.float32)
  variables = jax.jit(layer.init)(jax.random.key(0), x, style)
  made = np.asarray(jax.jit(layer.apply)(variables, x, style))
  params = jax.tree.map(np.asarray, variables['params'])
  kernel = params['kernel'] / np.sqrt(6)
  for row, token in np.ndindex(2, 4):
    scale = style[row, token] @ params['style']['kernel'] / np.sqrt(8) + 1
    own = kernel * scale[:, None]
    own = own / np.sqrt((own**2).sum(0))
    np.testing.assert_allclose(made[row, token], x[row, token] @ own, atol=1e-4)


@jax.jit
def _image(tokens):
  layer = implicit_patches.ImplicitPatches(2, 1, 8)
  variables = layer.init(jax.random.key(0), TOKENS, (2, 3))
  return layer.apply(variables, tokens, (2, 3))


def _patches(tokens):
  image = np.asarray(_image(tokens))
  assert image.shape == (4, 4, 6, 1)
  return image.reshape((4, 2, 2, 3, 2, 1)).swapaxes(2, 3).reshape((4, 6, 2, 2))


def test_a_patch_depends_on_its_token_alone():
  made = _patches(TOKENS)
  # Other tokens in other places: the same patches there.
  order = np.array([3, 1, 0, 5, 4, 2])
  moved = _patches(TOKENS[:, order])
  np.testing.assert_allclose(moved, made[:, order], atol=1e-5)
  # One token everywhere: one patch everywhere, in which pixels differ.
  one = _patches(np.broadcast_to(TOKENS[:, :1], TOKENS.shape))
  np.testing.assert_allclose(
    one, np.broadcast_to(one[:, :1], one.shape), atol=1e-5
  )
  assert one[:, 0].std((1, 2)).min() > 1e-2


def test_activations_and_pixel_norms_keep_the_size_of_what_they_see():
  x = jnp.array([-2.0, 0.0, 3.0])
  expected = np.sqrt(2) * np.array([-0.4, 0, 3])
  np.testing.assert_allclose(equalised.leaky_relu(x), expected, rtol=1e-6)
  x = jnp.array([[3.0, 4.0, 0.0, 0.0]])  # Root mean square: 2.5.
  np.testing.assert_allclose(equalised.pixel_norm(x), x / 2.5, rtol=1e-5)


def test_pixels_are_a_network_of_two_modulated_layers():
  layer = implicit_patches.ImplicitPatches(2, 3, 8)
  variables = jax.jit(lambda key: layer.init(key, TOKENS, (2, 3)))(
    jax.random.key(0)
  )
  params = variables['params']

  @jax.jit
  def hidden(params):
    places = fourier_positions.FourierPositions(8).apply(
      {'params': params['positions']}, 2, 2
    )
    return implicit_patches.ModulatedDense(8).apply(
      {'params': params['hidden']}, places[None, None], TOKENS
    )

  x = np.asarray(hidden(params))
  x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
  own = jax.tree.map(np.asarray, params['pixels'])
  style = TOKENS @ own['style']['kernel'] / np.sqrt(8) + own['style']['bias']
  expected = (x * style[:, :, None]) @ own['kernel'] / np.sqrt(8) + own['bias']
  found = jax.jit(lambda x: patches.extract(layer.apply(x, TOKENS, (2, 3)), 2))(
    variables
  )
  np.testing.assert_allclose(
    found.reshape((4, 6, 4, 3)), expected, rtol=1e-4, atol=1e-3
  )
