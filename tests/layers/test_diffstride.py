"""Learnt strides: gradients, limits, and the authors' code.

The golden values are of google-research/diffstride, commit b3ef50f, run by
TensorFlow 2.21 with Keras 2 on the images of `wave`: outputs every seventh,
gradients of the sum of outputs times cos(0), cos(1), ... with respect to the
strides and (every eleventh) to the image.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import float64
from repjax.layers import crop_sizes
from repjax.layers import diffstride
from repjax.layers import spectral_pooling
from repjax.types import InputError

_GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'diffstride_golden.json').read_text('utf-8')
)


pool = jax.jit(
  diffstride.diffstride,
  static_argnames=('sizes', 'smoothness', 'scale', 'layout', 'form'),
)
spectral = jax.jit(spectral_pooling.spectral_pooling, static_argnums=1)


def images(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def wave(height, width):
  n = np.arange(height * width * 2)
  return np.sin(n * n * 0.37 + 0.11 * n).reshape((1, height, width, 2))


@pytest.mark.parametrize('shape', [(8, 8), (9, 7), (5,)])
def test_strides_of_one_are_the_identity(shape):
  x = images(2, *shape, 3)
  y = pool(x, jnp.ones(len(shape)), sizes=shape, smoothness=2.0)
  np.testing.assert_allclose(y, x, atol=1e-5)


@pytest.mark.parametrize('layout', ['centred', 'public_code'])
@pytest.mark.parametrize('form', ['matmul', 'fft'])
@pytest.mark.parametrize(
  'shape, sizes', [((16, 12), (14, 9)), ((9, 8), (7, 6))]
)
def test_stride_gradients_are_finite_differences(layout, form, shape, sizes):
  x, target = images(2, *shape, 2), images(2, *sizes, 2, seed=1)

  def loss(strides):
    y = diffstride.diffstride(
      jnp.asarray(x),
      strides,
      sizes=sizes,
      smoothness=1.5,
      layout=layout,
      form=form,
    )
    return jnp.square(y - target).sum()

  with float64.enabled():
    at = np.array([1.83, 2.31])
    gradient = np.asarray(jax.jit(jax.grad(loss))(at))
    value = jax.jit(loss)
    step = 1e-6
    for axis in range(2):
      move = step * np.eye(2)[axis]
      slope = float(value(at + move)) - float(value(at - move))
      slope /= 2 * step
      assert abs(slope) > 1e-2
      np.testing.assert_allclose(gradient[axis], slope, rtol=1e-4)


def test_a_crop_that_holds_the_ramp_loses_nothing():
  # Cropped, and at full size: one signal, sampled at two rates.
  x = images(1, 32, 32, 1)
  strides = jnp.array([2.0, 3.0])
  sizes = crop_sizes.resolve('initial', (32, 32), (2.0, 3.0), 3.0)
  cropped, masked = (
    pool(x, strides, sizes=size, smoothness=3.0) for size in (sizes, (32, 32))
  )
  again = spectral(np.asarray(masked), sizes)
  np.testing.assert_allclose(cropped, again, atol=1e-5)
  assert sizes == (22, 18)


def test_a_hard_ramp_is_spectral_pooling():
  x = images(2, 12, 16, 2)
  y = pool(x, jnp.array([12 / 7, 16 / 7]), sizes=(7, 7), smoothness=0.5)
  np.testing.assert_allclose(y, spectral(x, (7, 7)), atol=1e-5)


@pytest.mark.parametrize('layout', ['centred', 'public_code'])
def test_learnt_strides_find_the_band_of_random_images(layout):
  # Frequencies |k| <= K, on both axes: the whole band at the coarsest rate is
  # S = N / (2 K). The authors' columns keep one frequency more.
  size = 32
  frequency = abs(np.fft.fftfreq(size, 1 / size))
  edges = (3, 6, 9)

  def band(edge):
    spectrum = np.fft.fft2(images(8, size, size), axes=(1, 2))
    keep = frequency <= edge
    spectrum = spectrum * keep[:, None] * keep
    x = np.fft.ifft2(spectrum, axes=(1, 2)).real
    return (x / x.std())[..., None].astype(np.float32)

  x = jnp.stack([band(edge) for edge in edges])
  layer = diffstride.DiffStride((2.0, 2.0), 2.0, sizes='full', layout=layout)
  tx = optax.adam(optax.cosine_decay_schedule(0.1, 300), b2=0.9)

  def fit(x):
    def loss(params):
      y = layer.apply({'params': params}, x)
      cost = 1 / params['strides'].prod()
      return jnp.square(y - x).mean() + 1e-2 * cost

    def update(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    params = layer.init(jax.random.key(0), x)['params']
    (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), None, 300)
    return params['strides']

  found = jax.jit(jax.vmap(fit))(x)
  shift = 1 if layout == 'public_code' else 0
  expected = [(size / (2 * k), size / (2 * (k - shift))) for k in edges]
  np.testing.assert_allclose(found, expected, rtol=0.02)


def test_strides_return_from_outside_and_go_no_further():
  layer = diffstride.DiffStride((2.0,), 2.0, sizes=(12,))
  x = jnp.asarray(images(4, 16, 1), jnp.float32)
  ((low, high),) = crop_sizes.limits((16,), (12,), 2.0)
  assert (low, high) == (2.0, 8.0)

  def slope(stride, sign):
    def loss(stride):
      y = layer.apply({'params': {'strides': stride[None]}}, x)
      return sign * jnp.square(y).sum()

    return jax.grad(loss)(jnp.asarray(stride))

  # A larger stride leaves less: less energy. A stride falls along a positive
  # slope.
  slope = jax.jit(slope)
  assert slope(3.0, 1) < 0 < slope(3.0, -1)
  assert slope(1.5, 1) < 0 == slope(1.5, -1)
  np.testing.assert_allclose(slope(1.5, 1), slope(low, 1))
  assert slope(9.0, 1) == 0 < slope(9.0, -1)


def test_a_crop_bounds_strides_so_that_its_ramp_is_whole():
  for layout in ('centred', 'public_code'):
    for shape, size in ((16, 12), (15, 11), (16, 11)):
      ((low, _),) = crop_sizes.limits((shape,), (size,), 2.0, layout=layout)
      fits = crop_sizes.crop_size(shape, low + 1e-6, 2.0, layout=layout)
      larger = crop_sizes.crop_size(shape, low - 1e-3, 2.0, layout=layout)
      assert fits <= size + size % 2 < larger + larger % 2


def test_shared_strides_are_one_number():
  layer = diffstride.DiffStride((2.0, 2.0), 2.0, shared=True)
  x = images(1, 16, 16, 1)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  assert variables['params']['strides'].shape == (1,)
  own = pool(x, jnp.array([2.0, 2.0]), sizes=(12, 12), smoothness=2.0)
  np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), own, atol=1e-6)


def test_it_is_the_authors_code():
  for case in _GOLDEN:
    x = wave(case['height'], case['width']).astype(np.float32)
    if case['kind'] == 'spectral':
      public = spectral_pooling.public_pooling
      y = jax.jit(public, static_argnums=1)(x, tuple(case['shape'][1:3]))
      y = np.asarray(y)
      assert list(y.shape) == case['shape']
      np.testing.assert_allclose(y.ravel()[::7], case['output'], atol=2e-5)
      continue
    layer = diffstride.DiffStride(
      case['strides'],
      case['smoothness'],
      shared=case['shared'],
      sizes='initial' if case['cropping'] else 'full',
      scale='public_code',
      layout='public_code',
    )

    def loss(params, x, layer=layer):
      y = layer.apply({'params': params}, x)
      return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    @jax.jit
    def run(params, x, layer=layer, loss=loss):
      y = layer.apply(layer.init(jax.random.key(0), x), x)
      return y, jax.grad(loss, (0, 1))(params, x)

    # At strides that the layer holds: the authors move them there.
    params = {'strides': np.asarray(case['strides_after'], np.float32)}
    y, (by_stride, by_image) = jax.device_get(run(params, x))
    assert list(y.shape) == case['shape'], case
    np.testing.assert_allclose(
      y.ravel()[::7], case['output'], atol=2e-5, err_msg=str(case)
    )
    # Outside of what a map holds theirs stay for good, ours come back.
    if min(case['strides']) > 1 and max(case['strides']) < x.shape[1] / 2:
      np.testing.assert_allclose(
        by_stride['strides'], case['stride_gradient'], rtol=2e-4, atol=1e-4
      )
    np.testing.assert_allclose(
      by_image.ravel()[::11], case['input_gradient'], atol=2e-4
    )


@pytest.mark.parametrize(
  'settings, shape, word',
  [
    (dict(strides=(0.5, 2.0)), (16, 16), 'from 1 to the 16 places'),
    (dict(strides=(2.0, 17.0)), (16, 16), 'from 1 to the 16 places'),
    (dict(smoothness=8.0), (8, 8), 'not larger than smoothness'),
    (dict(smoothness=0.0), (8, 8), 'smoothness'),
    (dict(smoothness=3.0, sizes=(6, 6)), (16, 16), 'at least 8'),
    (dict(strides=(2.0, 3.0), shared=True), (16, 16), 'shared'),
    (dict(strides=(2.0,)), (16, 16), 'one for each'),
    (dict(sizes=(17, 16)), (16, 16), 'Sizes'),
    (dict(sizes='all'), (16, 16), 'sizes'),
    (dict(layout='public'), (16, 16), 'layout'),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, shape, word):
  layer = diffstride.DiffStride(**settings)
  init = functools.partial(layer.init, jax.random.key(0))
  with pytest.raises(InputError, match=word) as error:
    jax.eval_shape(init, jnp.zeros((1, *shape, 1)))
  assert '\n' not in str(error.value)
