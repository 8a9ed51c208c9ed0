"""Contrastive losses are those of the authors' public code.

SimCLR: https://github.com/google-research/simclr, tf2/objective.py (one-hot
labels over [other view, own view without itself], the sum of both directions'
means). MoCo: https://github.com/facebookresearch/moco, moco/builder.py (logits
[own key, queue], label 0). SupCon: https://github.com/HobbitLong/SupContrast,
losses.py (mean log-probability over positives, times temperature /
base_temperature). Formulas are written anew, in PyTorch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.methods import contrastive

torch = pytest.importorskip('torch', reason='needs the extra parity')

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(0)
_F = torch.nn.functional


def _unit(*shape):
  x = RNG.normal(size=shape)
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  return x.astype(np.float32)


def _their_nt_xent(first, second, temperature):
  number = len(first)
  large = torch.eye(number) * 1e9
  labels = torch.arange(number)

  def direction(a, b):
    logits = torch.cat([a @ b.T, a @ a.T - large * temperature], 1)
    return _F.cross_entropy(logits / temperature, labels)

  return direction(first, second) + direction(second, first)


def _their_moco(query, key, queue, temperature):
  positive = (query * key).sum(1, keepdim=True)
  logits = torch.cat([positive, query @ queue.T], 1) / temperature
  return _F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def _their_sup_con(first, second, label, temperature, base):
  rows = torch.cat([first, second])
  alike = (label[:, None] == label[None]).float().repeat(2, 2)
  others = 1 - torch.eye(len(rows))
  logits = rows @ rows.T / temperature
  logits = logits - logits.max(1, keepdim=True).values.detach()
  total = (torch.exp(logits) * others).sum(1, keepdim=True)
  mask = alike * others
  mean = (mask * (logits - torch.log(total))).sum(1) / mask.sum(1)
  return -(temperature / base) * mean.mean()


def _assert_equal(ours, theirs, arrays, rest=()):
  value, grads = jax.value_and_grad(ours, tuple(range(len(arrays))))(*arrays)
  leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
  expected = theirs(*leaves, *map(torch.tensor, rest))
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for x, leaf in zip(grads, leaves, strict=True):
    np.testing.assert_allclose(x, leaf.grad.numpy(), atol=1e-5, rtol=1e-4)
    assert abs(leaf.grad.numpy()).max() > 1e-3


@pytest.mark.parametrize('number', [4, 16])
@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_nt_xent_is_half_of_the_authors_code(number, temperature):
  def ours(first, second):
    mask = jnp.ones(number)
    losses = contrastive.nt_xent(first, second, mask, temperature=temperature)
    return 2 * losses.mean()

  _assert_equal(
    ours,
    lambda x, y: _their_nt_xent(x, y, temperature),
    (_unit(number, 6), _unit(number, 6)),
  )


@pytest.mark.parametrize('temperature', [0.07, 0.2])
def test_moco_is_a_cross_entropy_over_its_queue(temperature):
  key, queue = _unit(8, 6), _unit(32, 6)

  def ours(query):
    return contrastive.moco(query, key, queue, temperature=temperature).mean()

  _assert_equal(
    ours,
    lambda query, *rest: _their_moco(query, *rest, temperature),
    (_unit(8, 6),),
    (key, queue),
  )


@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_sup_con_is_the_authors_without_their_factor(temperature):
  label = np.array([0, 1, 1, 0, 2, 1, 0, 3])

  def ours(first, second):
    views, mask = jnp.stack([first, second]), jnp.ones(8)
    losses = contrastive.sup_con(views, label, mask, temperature=temperature)
    return temperature / 0.07 * losses.mean()

  _assert_equal(
    ours,
    lambda x, y: _their_sup_con(
      x, y, torch.tensor(label), temperature, base=0.07
    ),
    (_unit(8, 6), _unit(8, 6)),
  )
