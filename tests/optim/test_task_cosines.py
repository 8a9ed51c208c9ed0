"""Mean cosines of the tasks' gradients against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import optim

TASKS = 3
PARAMS = {
  'a': {'kernel': jnp.zeros((5, 3)), 'bias': jnp.zeros(3)},
  'b': {'kernel': jnp.zeros((3, 2))},
}


class TaskGrad:
  """A `types.GradFn` with these gradients."""

  def __init__(self, grads):
    self.grads = grads

  def per_task(self, params, num_tasks):
    assert params is PARAMS and num_tasks == TASKS
    return self.grads, jnp.ones(TASKS), None


def draw(seed):
  """Gradients in which task 1 is absent from every second step."""
  rng = np.random.default_rng(seed)
  present = np.array([1, seed % 2, 1])
  return jax.tree.map(
    lambda x: jnp.asarray(
      rng.normal(size=(TASKS, *x.shape)) * present.reshape(-1, *[1] * x.ndim),
      jnp.float32,
    ),
    PARAMS,
  )


def test_means_are_those_of_numpy():
  link = optim.task_cosines(TASKS)
  state = link.init(PARAMS)
  plain = jax.tree.map(lambda x: x + 1, PARAMS)
  known = {(k, i, j): [] for k in range(3) for i in range(3) for j in range(3)}
  for seed in range(4):
    grads = draw(seed)
    updates, state = link.update(plain, state, PARAMS, grad_fn=TaskGrad(grads))
    assert updates is plain
    flat = [
      np.hstack([np.asarray(x).reshape(TASKS, -1) for x in jax.tree.leaves(y)])
      for y in (grads, grads['a'], grads['b'])
    ]
    for (k, i, j), values in known.items():
      a, b = flat[k][i], flat[k][j]
      if a.any() and b.any():
        values.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
  expected = np.zeros((3, TASKS, TASKS))
  for place, values in known.items():
    assert len(values) == state.count[place] == (2 if 1 in place[1:] else 4)
    expected[place] = np.mean(values)
  np.testing.assert_allclose(state.mean(), expected, atol=1e-6)


def test_pairs_that_never_met_have_no_cosine():
  link = optim.task_cosines(TASKS, groups='whole_model')
  _, state = link.update(
    PARAMS, link.init(PARAMS), PARAMS, grad_fn=TaskGrad(draw(0))
  )
  assert state.mean().shape == (2, TASKS, TASKS)
  assert not state.mean()[:, 1].any() and not state.mean()[:, :, 1].any()


def test_what_is_missing_or_out_of_range_is_named():
  with pytest.raises(ValueError, match='num_tasks=0'):
    optim.task_cosines(0)
  with pytest.raises(ValueError, match="groups='layers'"):
    optim.task_cosines(TASKS, groups='layers')
  link = optim.task_cosines(TASKS)
  with pytest.raises(ValueError, match='grad_fn'):
    link.update(PARAMS, link.init(PARAMS), PARAMS)
