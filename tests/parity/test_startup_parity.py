"""The student's losses on fixed arrays are those of the authors' code.

https://github.com/cpphoo/STARTUP, student_STARTUP: KLDivLoss(batchmean) of both
views' log-probabilities to the teacher's, which sum to 1 + C 1e-6; NLLLoss of
base rows; cross-entropy of cosines, the positive first, summed over 2N anchors
and divided by their number.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.methods import contrastive
from repjax.methods import soft_labels
from repjax.methods import startup

torch = pytest.importorskip('torch', reason='needs the extra parity')

pytestmark = pytest.mark.parity

ROWS, CLASSES, WIDTH = 16, 7, 12
RNG = np.random.default_rng(0)


def _their_nt_xent(first, second, temperature):
  """Logits of each anchor: its other view, then all but itself and that."""
  rows = torch.cat([second, first])
  cosines = torch.nn.functional.cosine_similarity(
    rows[:, None], rows[None], dim=-1
  )
  positive = torch.cat([cosines.diagonal(ROWS), cosines.diagonal(-ROWS)])
  place = torch.arange(2 * ROWS)
  others = (place[:, None] - place[None]) % ROWS != 0
  negative = cosines[others].reshape(2 * ROWS, -1)
  logits = torch.cat([positive[:, None], negative], 1) / temperature
  label = torch.zeros(2 * ROWS, dtype=torch.long)
  loss = torch.nn.functional.cross_entropy(logits, label, reduction='sum')
  return loss / (2 * ROWS)


def _gradients(loss, arrays):
  """(loss, its gradients) of a PyTorch function."""
  leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
  value = loss(*leaves)
  value.backward()
  return value.item(), [x.grad.numpy() for x in leaves]


def _assert_equal(ours, theirs, arrays):
  value, grads = jax.value_and_grad(ours, tuple(range(len(arrays))))(*arrays)
  expected, wanted = _gradients(theirs, arrays)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for x, y in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-5)
    assert abs(y).max() > 1e-3


def _drawn(*shape):
  return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('temperature', [1.0, 0.2])
def test_the_contrast_is_theirs(temperature):
  def ours(first, second):
    first, second = contrastive.unit(first), contrastive.unit(second)
    return contrastive.nt_xent(
      first, second, jnp.ones(ROWS), temperature=temperature
    ).mean()

  def theirs(first, second):
    return _their_nt_xent(first, second, temperature)

  _assert_equal(ours, theirs, (_drawn(ROWS, WIDTH), 3 * _drawn(ROWS, WIDTH)))


@pytest.mark.parametrize('normalized', [False, True])
def test_the_divergence_is_theirs(normalized):
  said = 2 * _drawn(ROWS, CLASSES)
  label = torch.softmax(torch.tensor(said), 1) + 1e-6
  if normalized:
    label = label / label.sum(1, keepdim=True)
  taught = soft_labels.of_teacher(
    said, num_classes=CLASSES, normalized=normalized
  )
  np.testing.assert_allclose(taught, label.numpy(), rtol=1e-5)
  criterion = torch.nn.KLDivLoss(reduction='batchmean')

  def theirs(first, second):
    of_each = [
      criterion(torch.log_softmax(x, 1), label) for x in (first, second)
    ]
    return sum(of_each) / 2

  def ours(first, second):
    of_each = [startup.divergence(taught, x).mean() for x in (first, second)]
    return sum(of_each) / 2

  _assert_equal(ours, theirs, (_drawn(ROWS, CLASSES), _drawn(ROWS, CLASSES)))
