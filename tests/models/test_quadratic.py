"""Networks of squares, against loops over places."""

import jax
import numpy as np
import pytest

from repjax import types
from repjax.models import quadratic


def _made(model, width):
  x = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
  params = model.init(jax.random.key(1), x, train=False)['params']
  return x, model.apply({'params': params}, x, train=False), params


def test_fully_connected_is_a_quadratic_form():
  x, out, params = _made(quadratic.FullyConnected(2, width=5), 3)
  kernel, head = params['hidden']['kernel'], params['head']['kernel']
  forms = np.einsum('dj,ej,jo->ode', kernel, kernel, head)
  np.testing.assert_allclose(
    out, np.einsum('bd,ode,be->bo', x, forms, x), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(('padding', 'places'), [('valid', 3), ('circular', 5)])
def test_a_pooled_convolution_slides_within_parts(padding, places):
  model = quadratic.PooledConv(2, channels=2, padding=padding)
  x, out, params = _made(model, 10)
  kernel, head = params['hidden']['kernel'], params['head']['kernel']
  for row, found in zip(x, out, strict=True):
    sums = []
    for half in (row[:5], row[5:]):
      around = np.concatenate([half, half])
      windows = np.stack([around[i : i + 3] for i in range(places)])
      sums.append(np.square(windows @ kernel).sum(0) / places**0.5)
    np.testing.assert_allclose(
      found, np.concatenate(sums) @ head, rtol=1e-4, atol=1e-5
    )


def test_an_image_convolution_is_that_of_flax():
  model = quadratic.ImageConv(2, side=6, channels=4)
  x, out, params = _made(model, 108)
  image = np.moveaxis(x.reshape(4, 3, 6, 6), 1, -1)

  def conv(image, kernel, channels):
    return jax.lax.conv_general_dilated(
      image,
      kernel.reshape(3, 3, -1, channels),
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  hidden = conv(image, params['hidden']['kernel'], 4) ** 2
  maps = conv(hidden, params['head']['kernel'], 2)
  np.testing.assert_allclose(out, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_first_layers_are_normal_and_scaled():
  _, _, params = _made(quadratic.FullyConnected(1, width=4000), 16)
  kernel = np.asarray(params['hidden']['kernel'])
  assert kernel.std() == pytest.approx(0.25, rel=0.02)
  # Uniform and truncated ones have lighter tails.
  assert (abs(kernel) > 3 * 0.25).mean() == pytest.approx(0.0027, rel=0.3)


@pytest.mark.parametrize(
  'model',
  [
    quadratic.FullyConnected(1, width=0),
    quadratic.FullyConnected(1, activation='tanh'),
    quadratic.PooledConv(1, taps=6),
    quadratic.PooledConv(1, padding='same'),
    quadratic.ImageConv(1, side=2, taps=2),
  ],
)
def test_bad_settings_are_refused(model):
  with pytest.raises(types.InputError):
    _made(model, 10 if not isinstance(model, quadratic.ImageConv) else 12)
