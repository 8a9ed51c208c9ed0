"""What the authors' discriminator computes, by numbers from their own code.

`Attention` and `SpectralNorm` of mlpc-ucsd/ViTGAN (commit 2ee7aa5) were run
outside of this repository on weights that NumPy draws here again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import l2_attention
from repjax.layers import spectral_norm

pytestmark = pytest.mark.parity

DIM, TOKENS, HEADS, WIDTH = 4, 3, 2, 3

_ATTENTION = [
  [1.1699363, -0.56828606, -0.72489226, -3.0748003],
  [-0.409346, 0.6708566, -0.2294872, -1.9668691],
  [-0.94903183, -0.19663656, -0.64684165, -1.2587672],
]
_AT_START = [
  [-1.5915277, -1.2991672, -1.2550712],
  [0.2447967, -0.66656137, 1.6370108],
]
_MOVED = [
  [-1.0729126, -1.5106453, -0.6303271],
  [0.20537144, -0.22480166, 0.01105991],
]


def _draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _attention(kind):
  query, key, value = np.split(_draw(0, 3 * DIM, DIM), 3)
  params = {
    'query': {'kernel': query.T},
    'value': {'kernel': value.T},
    'out': {'kernel': _draw(1, DIM, DIM).T, 'bias': _draw(2, DIM)},
  }
  if kind != 'l2':
    params['key'] = {'kernel': key.T}
  layer = l2_attention.SelfAttention(HEADS, kind=kind, norm='none')
  return layer.apply({'params': params}, _draw(3, 1, TOKENS, DIM), train=False)[
    0
  ]


def test_published_attention_is_theirs():
  np.testing.assert_allclose(
    _attention('l2_published'), _ATTENTION, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('kind', ['l2', 'l2_untied', 'dot'])
def test_what_the_paper_says_is_not_what_they_compute(kind):
  assert abs(_attention(kind) - np.asarray(_ATTENTION)).max() > 0.1


def _dense(kind, kernel):
  """A layer whose norm began with the first kernel, at another one."""
  layer = spectral_norm.SpectralDense(WIDTH, kind=kind)
  rows, first = _draw(7, 2, DIM), _draw(4, WIDTH, DIM).T
  variables = layer.init(jax.random.key(0), rows, train=False)
  vector = _draw(6, WIDTH)
  return layer.apply(
    {
      'params': {'kernel': kernel, 'bias': _draw(5, WIDTH)},
      spectral_norm.COLLECTION: {
        **variables[spectral_norm.COLLECTION],
        'vector': jnp.asarray(vector / np.linalg.norm(vector)),
        'initial': spectral_norm.norm(first / np.sqrt(DIM)),
      },
    },
    rows,
    train=True,
    mutable=spectral_norm.COLLECTION,
  )[0]


def test_published_spectral_norm_is_theirs():
  first = _draw(4, WIDTH, DIM).T
  # They add 1e-4 to the norms of vectors.
  for kernel, wanted in (
    (first, _AT_START),
    (first + _draw(8, WIDTH, DIM).T, _MOVED),
  ):
    found = _dense('published', kernel)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_their_norm_is_that_of_one_step_and_not_the_singular_value():
  first = _draw(4, WIDTH, DIM).T
  exact = _draw(7, 2, DIM) @ first / np.sqrt(DIM) + _draw(5, WIDTH)
  # By the singular value the kernel at the beginning would be itself.
  assert abs(exact - np.asarray(_AT_START)).max() > 0.02
