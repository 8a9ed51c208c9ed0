"""What tells of a collapse, by hand."""

import numpy as np

from repjax.methods import teacher_monitors


def test_monitors_are_those_of_the_first_views_of_real_rows():
  rng = np.random.default_rng(0)
  logits, centre = rng.normal(size=(5, 2, 4)), 0.1 * rng.normal(size=4)
  logits[:, 0, 0] += 9  # One prototype is the largest of all real rows,
  logits[np.arange(5), 0, 1 + np.arange(5) % 3] -= 9  # none the smallest.
  logits[2, 0, 3] += 40
  features, real = rng.normal(size=(10, 3)), np.arange(5) != 2
  found = teacher_monitors.of_step(
    *(np.float32(x) for x in (logits, features, centre)), 7.0, real
  )
  p = np.exp((logits[:, 0] - centre) / 7)
  p /= p.sum(1, keepdims=True)
  entropy = lambda p: -(p * np.log(p)).sum(-1) / np.log(4)  # noqa: E731
  first = features.reshape(5, 2, 3)[real, 0]
  size = np.sqrt(np.square(first).sum(1).mean())
  expected = dict(
    entropy=entropy(p),
    mean_entropy=entropy(p[real].mean(0)),
    clusters=1 / 4,
    spread=np.sqrt(first.var(0).sum()) / size,
  )
  assert tuple(found) == teacher_monitors.NAMES
  for name, x in expected.items():
    wanted = np.broadcast_to(x, 5)
    np.testing.assert_allclose(found[name], wanted, rtol=1e-4, err_msg=name)
