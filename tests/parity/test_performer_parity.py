"""FAVOR+ against the package performer-pytorch on the same projection."""

import functools

import jax
import numpy as np
import pytest

from repjax.layers import performer
from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import causal_attention
from repjax.layers.attention.linear import linear_attention
from repjax.layers.attention.linear import random_features

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
theirs = pytest.importorskip('performer_pytorch.performer_pytorch')

SHAPE = (2, 40, 3, 16)  # [B, L, H, D]


def inputs():
  rng = np.random.default_rng(0)
  arrays = rng.normal(size=(3, *SHAPE)).astype(np.float32)
  rows = rng.normal(size=(33, SHAPE[-1])).astype(np.float32)
  return 0.7 * arrays[0], 0.7 * arrays[1], arrays[2], rows


def to_torch(x):
  return torch.tensor(np.asarray(x).swapaxes(1, 2))


def to_numpy(x):
  return x.numpy().swapaxes(1, 2)


def paper_code(x, projection, *, axes):
  """Features as in the authors' code.

  Its keys share one maximum over all positions, and epsilon comes after: an
  output then depends on later keys, in causal attention, too.
  """
  projected = x @ projection.T
  top = projected.max(axes, keepdims=True)
  values = np.exp(projected - np.square(x).sum(-1, keepdims=True) / 2 - top)
  return (values + 1e-4) * len(projection) ** -0.5


@functools.partial(jax.jit, static_argnames='causal')
def ours(query, key, value, *, causal):
  if causal:
    totals, _ = causal_attention.causal(query, key, value, chunk_size=16)
  else:
    totals = linear_attention.read(
      query, linear_attention.summarize(key, value)
    )
  return attention_sums.divide(totals, floor=1e-30)


def their_attention(causal):
  if causal:
    # Its epsilon sits in the denominator; ours has none there.
    return functools.partial(
      theirs.causal_linear_attention_noncuda, chunk_size=4, eps=0.0
    )
  return theirs.linear_attention


@pytest.mark.parametrize('causal', [False, True])
def test_softmax_kernel_with_its_stabilizer_and_epsilon(causal):
  query, key, value, rows = inputs()
  kernel = functools.partial(
    theirs.softmax_kernel, projection_matrix=torch.tensor(rows), eps=1e-4
  )
  q = kernel(to_torch(query), is_query=True)
  k = kernel(to_torch(key), is_query=False)
  expected = to_numpy(their_attention(causal)(q, k, to_torch(value)))

  scale = SHAPE[-1] ** -0.25
  ours_q = paper_code(scale * query.swapaxes(1, 2), rows, axes=-1)
  ours_k = paper_code(scale * key.swapaxes(1, 2), rows, axes=(-2, -1))
  np.testing.assert_allclose(ours_q, q.numpy(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(ours_k, k.numpy(), rtol=1e-5, atol=1e-6)
  found = ours(
    ours_q.swapaxes(1, 2), ours_k.swapaxes(1, 2), value, causal=causal
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_softmax_kernel_without_epsilon(causal):
  # Then stabilizers cancel, and ours is theirs.
  query, key, value, rows = inputs()
  kernel = functools.partial(
    theirs.softmax_kernel, projection_matrix=torch.tensor(rows), eps=0.0
  )
  expected = their_attention(causal)(
    kernel(to_torch(query), is_query=True),
    kernel(to_torch(key), is_query=False),
    to_torch(value),
  )
  run = functools.partial(performer.favor, causal=causal)
  found = jax.jit(run)(query, key, value, rows)
  np.testing.assert_allclose(found, to_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize(
  'kernel',
  [
    ('relu', jax.nn.relu),
    ('elu', random_features.elu_plus_one),
    ('sigmoid', jax.nn.sigmoid),
    ('gelu', functools.partial(jax.nn.gelu, approximate=False)),
  ],
  ids=lambda pair: pair[0],
)
@pytest.mark.parametrize('projected', [True, False])
def test_generalized_kernels(causal, kernel, projected):
  query, key, value, rows = inputs()
  name, function = kernel
  if name == 'gelu':  # Has either sign: keep denominators from 0.
    query, key = np.abs(query), np.abs(key)
    rows = np.abs(rows)
  torch_function = {
    'relu': torch.relu,
    'elu': lambda x: torch.nn.functional.elu(x) + 1,
    'sigmoid': torch.sigmoid,
    'gelu': torch.nn.functional.gelu,
  }[name]
  create = functools.partial(
    theirs.generalized_kernel,
    kernel_fn=torch_function,
    projection_matrix=torch.tensor(rows) if projected else None,
  )
  expected = their_attention(causal)(
    create(to_torch(query)), create(to_torch(key)), to_torch(value)
  )
  run = functools.partial(performer.favor, kernel=function, causal=causal)
  found = jax.jit(run)(query, key, value, rows if projected else None)
  np.testing.assert_allclose(found, to_numpy(expected), rtol=1e-5, atol=1e-5)


def test_their_orthogonal_rows_are_biased_and_ours_are_not():
  # Their mean over many draws lies off the kernel at a point on the diagonal.
  dim, num_draws = 8, 4000
  x = np.full((1, 1, dim), -0.5 / dim**0.5, np.float32)
  torch.manual_seed(0)
  drawn = torch.stack(
    [
      theirs.gaussian_orthogonal_random_matrix(dim, dim)
      for _ in range(num_draws)
    ]
  ).numpy()
  draw = functools.partial(
    random_features.draw_projection, num_features=dim, dim=dim
  )
  own = jax.vmap(draw)(jax.random.split(jax.random.key(0), num_draws))
  exact = np.exp(np.square(x).sum())
  bias = [
    np.exp(rows @ (2 * x[0, 0]) - np.square(x).sum()).mean() / exact - 1
    for rows in (drawn, np.asarray(own))
  ]
  assert bias[0] > 0.04
  assert abs(bias[1]) < 0.03
