"""Imprints against those of `breaching`, the authors' own code.

The extra `parity` is without it, since it asks for torchvision and hydra: `make
parity` installs it by itself (`pip install --no-deps breaching==0.1.2`). Its
files are read by path.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import float64
from repjax.attacks import imprint as attack
from repjax.attacks import imprint_bins
from repjax.layers import imprint

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
if importlib.util.find_spec('breaching') is None:
  pytest.skip('no breaching', allow_module_level=True)


def theirs(name):
  """One file of the package, without what its __init__ asks for."""
  spec = importlib.util.find_spec('breaching')
  path = pathlib.Path(spec.submodule_search_locations[0]) / f'{name}.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


BLOCKS = theirs('cases/malicious_modifications/imprint')
GUARANTEE = theirs('analysis/imprint_guarantee')
SHAPE, ROWS, CLASSES = (6, 5, 3), 12, 4
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(ROWS, *SHAPE))
LABEL = RNG.integers(0, CLASSES, ROWS)
HEAD = RNG.normal(size=(90, CLASSES)) / 10
CHANNELS_FIRST = (2, 0, 1)


def block_of(bins, connection, linfunc, mode, gain):
  block = BLOCKS.ImprintBlock(
    (3, 6, 5), bins, connection, gain, linfunc, mode
  ).double()
  if connection == 'linear':  # Theirs adds random numbers.
    with torch.no_grad():
      block.linear2.bias[:] = -torch.tensor(np.mean(block.bins))
  return block


def gradients_there(block):
  """(output, gradients of weight and bias) of a linear classifier behind it."""
  image = torch.tensor(IMAGE).permute(0, 3, 1, 2).contiguous()
  head = torch.tensor(
    HEAD.reshape(*SHAPE, -1).transpose(*CHANNELS_FIRST, 3).reshape(90, -1)
  )
  out = block(image)
  loss = torch.nn.functional.cross_entropy(
    out.flatten(1) @ head, torch.tensor(LABEL)
  )
  grads = torch.autograd.grad(
    loss, [block.linear0.weight, block.linear0.bias], materialize_grads=True
  )
  return out.detach().permute(0, 2, 3, 1).numpy(), [x.numpy() for x in grads]


def rows_here(weight):
  """[k, d] with channels first -> [d, k] with channels last."""
  image = weight.reshape(-1, 3, 6, 5).transpose(0, 2, 3, 1)
  return image.reshape(len(weight), -1).T


@pytest.mark.parametrize(
  ('connection', 'linfunc', 'mode', 'gain'),
  [
    ('linear', 'fourier', 32, 1.0),  # Of their imprint.yaml.
    ('linear', 'fourier', 0, 1e-3),  # Of their class.
    ('addition', 'avg', 0, 1.0),
  ],
)
def test_a_round_is_theirs(connection, linfunc, mode, gain):
  bins = 16
  block = block_of(bins, connection, linfunc, mode, gain)
  expected, (weight, bias) = gradients_there(block)
  direction = imprint_bins.direction(
    {'avg': 'mean'}.get(linfunc, linfunc), SHAPE, mode=mode
  )
  law = 'laplace' if linfunc == 'fourier' else 'normal'
  trap = attack.Trap(
    direction, imprint_bins.by_law(bins, law), 'cumulative', gain
  )
  params = attack.params(trap, connection)
  np.testing.assert_allclose(
    params['rows']['kernel'],
    rows_here(block.linear0.weight.detach().numpy()),
    # Theirs are made in float32.
    atol=1e-4 * gain,
  )
  np.testing.assert_allclose(
    params['rows']['bias'], block.linear0.bias.detach().numpy(), rtol=1e-6
  )
  # From here on with their numbers: float32 ones, kept in float64.
  params['rows'] = {
    'kernel': rows_here(block.linear0.weight.detach().numpy()),
    'bias': block.linear0.bias.detach().numpy(),
  }
  if connection == 'linear':
    params['back'] = {
      'kernel': block.linear2.weight.detach().numpy().T,
      'bias': block.linear2.bias.detach().numpy(),
    }

  with float64.enabled():

    def loss(params):
      image = jnp.asarray(IMAGE)
      out = trap.layer(connection).apply({'params': params}, image)
      logits = out.reshape(ROWS, -1) @ jnp.asarray(HEAD)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL)
      return losses.mean(), out

    grads, out = jax.grad(loss, has_aux=True)(params)
  np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(
    grads['rows']['kernel'], rows_here(weight), rtol=1e-7, atol=1e-12
  )
  np.testing.assert_allclose(grads['rows']['bias'], bias, rtol=1e-7, atol=1e-12)
  # Their inversion: differences downward, so that row i has our bin i - 1.
  for i in reversed(range(1, bins)):
    weight[i] -= weight[i - 1]
    bias[i] -= bias[i - 1]
  hit = np.abs(bias[1:]) > 1e-12
  inputs = weight[1:][hit] / bias[1:][hit][:, None]
  found = attack.read({'imprint': grads}, 'cumulative', top=False)
  np.testing.assert_array_equal(found.hit[:-1], hit)
  np.testing.assert_allclose(
    found.inputs[found.hit], rows_here(inputs).T, rtol=1e-6, atol=1e-8
  )


@pytest.mark.parametrize('connection', ['cat', 'softmax'])
def test_connections_that_theirs_has_for_flat_inputs_alone(connection):
  block = BLOCKS.ImprintBlock((90,), 8, connection, 1.0, 'avg').double()
  flat = IMAGE.reshape(ROWS, -1)
  out = block(torch.tensor(flat))
  grads = torch.autograd.grad((out**2).sum(), block.linear0.weight)[0].numpy()
  params = {
    'rows': {
      'kernel': block.linear0.weight.detach().numpy().T,
      'bias': block.linear0.bias.detach().numpy(),
    }
  }
  layer = imprint.Imprint(8, connection=connection)
  with float64.enabled():

    def total(params):
      ours = layer.apply({'params': params}, jnp.asarray(flat))
      return (ours**2).sum(), ours

    ours, expected = jax.grad(total, has_aux=True)(params)
  np.testing.assert_allclose(expected, out.detach().numpy(), rtol=1e-9)
  np.testing.assert_allclose(ours['rows']['kernel'], grads.T, atol=1e-9)
  if connection == 'softmax':  # It carries nothing but rounding.
    assert abs(grads).max() < 1e-9


@pytest.mark.parametrize(('rows', 'bins'), [(8, 16), (64, 256), (5, 128)])
def test_published_formulas_are_theirs(rows, bins):
  assert imprint_bins.published(rows, bins) == pytest.approx(
    GUARANTEE.expected_amount(bins, rows)
  )
  assert imprint_bins.published_one_shot(rows, bins) == pytest.approx(
    GUARANTEE.one_shot_guarantee(bins, rows)
  )
