"""Padding against PyTorch's own modes, with values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import padding

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')

_NAMES = dict(
  zero='zeros', circular='circular', reflect='reflect', replicate='replicate'
)


@pytest.mark.parametrize('mode', _NAMES)
@pytest.mark.parametrize(('size', 'stride'), [(8, 1), (8, 2), (9, 2)])
def test_a_convolution_is_that_of_pytorch(mode, size, stride):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, size, size, 3)).astype(np.float32)
  weights = rng.normal(size=(5, 5, 3, 4)).astype(np.float32)
  bias = rng.normal(size=4).astype(np.float32)
  theirs = torch.nn.Conv2d(
    3, 4, 5, stride=stride, padding=2, padding_mode=_NAMES[mode]
  )
  with torch.no_grad():
    theirs.weight.copy_(torch.tensor(weights.transpose(3, 2, 0, 1)))
    theirs.bias.copy_(torch.tensor(bias))
  x = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
  y = theirs(x)
  (y**3).sum().backward()

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Conv(4, (5, 5), strides=stride, padding=2, name='conv')(x)

  model = padding.Padded(Net(), mode)
  params = {'conv': {'kernel': weights, 'bias': bias}}

  def run(params, image):
    return model.apply({'params': params}, image)

  np.testing.assert_allclose(
    run(params, image),
    y.detach().numpy().transpose(0, 2, 3, 1),
    rtol=1e-4,
    atol=1e-4,
  )
  slopes, slope = jax.grad(lambda p, x: (run(p, x) ** 3).sum(), argnums=(0, 1))(
    params, jnp.asarray(image)
  )
  scale = abs(x.grad.numpy()).max()
  np.testing.assert_allclose(
    slope / scale, x.grad.numpy().transpose(0, 2, 3, 1) / scale, atol=1e-5
  )
  own = theirs.weight.grad.numpy().transpose(2, 3, 1, 0)
  np.testing.assert_allclose(
    slopes['conv']['kernel'] / abs(own).max(),
    own / abs(own).max(),
    atol=1e-5,
  )
