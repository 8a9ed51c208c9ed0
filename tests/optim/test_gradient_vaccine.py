"""Surgery against loops over pairs in NumPy, and in a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import gradients
from repjax import optim
from repjax import types
from repjax.optim.gradient_vaccine import gram
from repjax.optim.gradient_vaccine import group_indices
from repjax.optim.gradient_vaccine import surgery
from repjax.optim.gradient_vaccine import visiting_orders

TASKS = 4
PARAMS = {
  'a': {'kernel': jnp.zeros((5, 3)), 'bias': jnp.zeros(3)},
  'b': {'kernel': jnp.zeros((3, 2))},
}


def task_gradients(seed, num_tasks=TASKS):
  rng = np.random.default_rng(seed)

  def draw(x):
    return jnp.asarray(rng.normal(size=(num_tasks, *x.shape)), jnp.float32)

  return jax.tree.map(draw, PARAMS)


class TaskGrad:
  """A `types.GradFn` with these gradients."""

  def __init__(self, grads, num_rows):
    self.grads, self.num_rows = grads, jnp.asarray(num_rows, jnp.float32)

  def per_task(self, params, num_tasks, *, column='task'):
    assert params is PARAMS and column == 'task'
    assert num_tasks == len(self.num_rows)
    return self.grads, self.num_rows, None


def by_leaf(grads):
  """Leaves as [T, P] in float64, in tree order."""
  leaves = jax.tree.leaves(grads)
  return [np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves]


def in_groups(leaves, indices):
  return [
    np.hstack([x for x, k in zip(leaves, indices, strict=True) if k == group])
    for group in range(max(indices) + 1)
  ]


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def naive(grads, present, order, targets, decay):
  """Algorithm 1 as printed, for one group: (changed gradients, targets)."""
  targets = targets.copy()
  changed = grads.copy()
  for i in range(len(grads)):
    for j in order[i]:
      if i == j or not (present[i] and present[j]) or not grads[j].any():
        continue
      if not changed[i].any():
        continue
      phi, aim = cosine(changed[i], grads[j]), targets[i, j]
      if phi < aim:
        step = np.linalg.norm(changed[i]) * (
          aim * np.sqrt(1 - phi**2) - phi * np.sqrt(1 - aim**2)
        )
        step /= np.linalg.norm(grads[j]) * np.sqrt(1 - aim**2)
        changed[i] = changed[i] + step * grads[j]
        np.testing.assert_allclose(cosine(changed[i], grads[j]), aim, atol=1e-9)
      targets[i, j] = (1 - decay) * aim + decay * phi
  return changed, targets


def naive_pcgrad(grads, order):
  """Algorithm 1 of Yu et al."""
  changed = grads.copy()
  for i in range(len(grads)):
    for j in order[i]:
      if i != j and changed[i] @ grads[j] < 0:
        changed[i] -= changed[i] @ grads[j] / (grads[j] @ grads[j]) * grads[j]
  return changed.sum(0)


def run(link, rounds, num_rows=(3.0,) * TASKS):
  """(updates of the last round, states of all, gradients of all)."""
  update = jax.jit(
    lambda grads, state: link.update(
      PARAMS, state, PARAMS, grad_fn=TaskGrad(grads, num_rows)
    )
  )
  states, grads = [link.init(PARAMS)], []
  for seed in range(rounds):
    grads.append(task_gradients(seed))
    updates, state = update(grads[-1], states[-1])
    states.append(state)
  return updates, states, grads


def order_of(state):
  _, rng = jax.random.split(jax.random.wrap_key_data(state.rng))
  return np.asarray(visiting_orders(rng, TASKS))


@pytest.mark.parametrize(
  'groups, present',
  [('whole_model', (1, 1, 1, 1)), ('all_matrix', (1, 0, 1, 1))],
  ids=['whole_model', 'all_matrix, one absent'],
)
def test_five_steps_equal_the_published_loop(groups, present):
  link = optim.gradient_vaccine(TASKS, decay=0.3, groups=groups)
  num_rows = 5.0 * np.asarray(present)
  updates, states, grads = run(link, 5, num_rows)
  indices = group_indices(PARAMS, groups)
  targets = np.zeros((max(indices) + 1, TASKS, TASKS))
  corrections = []
  for state, now, after in zip(states[:-1], grads, states[1:], strict=True):
    order, parts = order_of(state), in_groups(by_leaf(now), indices)
    totals = []
    for group, part in enumerate(parts):
      changed, targets[group] = naive(part, present, order, targets[group], 0.3)
      totals.append(changed[np.asarray(present) > 0].sum(0))
    np.testing.assert_allclose(after.targets, targets, atol=2e-6)
    corrections.append(after.corrected)
  found = in_groups(by_leaf(jax.tree.map(lambda x: x[None], updates)), indices)
  for group, total in enumerate(totals):
    np.testing.assert_allclose(found[group][0], total, rtol=1e-4, atol=2e-5)
  assert np.abs(targets).max() > 0.1
  assert min(corrections) < 1 and 0 < max(corrections) <= 1
  # An absent task is absent: no target that it is part of has moved.
  absent = [i for i in range(TASKS) if not present[i]]
  for i in absent:
    assert not targets[:, i].any() and not targets[:, :, i].any()
  # Orders are drawn anew for each step.
  assert any((order_of(s) != order_of(states[0])).any() for s in states[1:5])


def test_pcgrad_equals_its_published_loop():
  updates, states, grads = run(optim.pcgrad(TASKS), 2)
  flat = np.hstack(by_leaf(grads[-1]))
  expected = naive_pcgrad(flat, order_of(states[-2]))
  found = np.hstack([np.asarray(x).ravel() for x in jax.tree.leaves(updates)])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(found - flat.sum(0)).max() > 0.1
  assert not states[-1].targets.any()


@functools.partial(jax.jit, static_argnames='decay')
def coefficients_of(grads, aim, decay):
  return surgery(
    gram([grads], [0]),
    jnp.ones(2, bool),
    jnp.array([[0, 1], [1, 0]]),
    jnp.full((1, 2, 2), aim),
    decay=decay,
  )


def surgery_of(grads, aim, decay=0.1):
  """(changed gradients, targets) of two tasks in one group."""
  grads = np.asarray(grads, np.float32)
  coefficients, targets, _ = coefficients_of(grads, aim, decay)
  return np.asarray(coefficients[0], np.float64) @ grads, targets[0]


@pytest.mark.parametrize('aim', [-0.5, 0.0, 0.3, 0.9])
def test_the_cosine_hits_its_target_or_is_left_alone(aim):
  rng = np.random.default_rng(0)
  seen = set()
  for phi in (-0.99, -0.6, -0.1, 0.2, 0.5, 0.95):
    first = rng.normal(size=30)
    first /= np.linalg.norm(first)
    other = rng.normal(size=30)
    other -= other @ first * first
    other /= np.linalg.norm(other)
    pair = np.stack(
      [2 * first, 7 * (phi * first + (1 - phi**2) ** 0.5 * other)]
    )
    changed, targets = surgery_of(pair, aim)
    for i, j in ((0, 1), (1, 0)):
      found = cosine(changed[i], pair[j])
      np.testing.assert_allclose(found, max(phi, aim), atol=1e-5)
      np.testing.assert_allclose(
        targets[i, j], 0.9 * aim + 0.1 * phi, atol=1e-6
      )
    if phi >= aim:
      np.testing.assert_array_equal(changed, pair.astype(np.float32))
    seen.add(phi >= aim)
  assert seen == {True, False}


def test_the_target_of_a_constant_cosine_is_its_moving_average():
  pair, decay = np.array([[1.0, 0.0], [0.6, 0.8]]), 0.2
  target = 0.0
  for count in range(1, 6):
    _, targets = surgery_of(pair, target, decay=decay)
    target = float(targets[0, 1])
    np.testing.assert_allclose(target, 0.6 * (1 - 0.8**count), rtol=1e-5)


@pytest.mark.parametrize(
  'pair', [[[0.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [-1.0, -2.0]]]
)
def test_zero_and_opposite_gradients_stay_finite(pair):
  changed, targets = surgery_of(pair, 0.0)
  assert np.isfinite(changed).all() and np.isfinite(targets).all()
  if not any(pair[0]):  # No direction: nothing to learn and nothing to change.
    np.testing.assert_array_equal(changed, pair)
    assert not targets.any()


def test_what_has_cancelled_out_is_visited_no_more():
  # Of gradient 0 only rounding is left once it has visited 1, its opposite.
  rng = np.random.default_rng(0)
  first, third = rng.normal(size=(2, 40, 8))
  grads = np.stack([first, -rng.uniform(1, 9, (40, 1)) * first, third], 1)
  grads = grads.astype(np.float32)
  orders = jnp.array([[1, 2, 0], [0, 2, 1], [0, 1, 2]])
  _, targets, _ = jax.jit(functools.partial(surgery, decay=0.5))(
    np.einsum('ktd,ksd->kts', grads, grads),
    jnp.ones(3, bool),
    orders,
    jnp.zeros((40, 3, 3)),
  )
  np.testing.assert_allclose(targets[:, 0, 1], -0.5, rtol=1e-5)
  assert not targets[:, 0, 2].any()


def test_parameters_are_read_twice_however_many_pairs_are_visited():
  num_tasks, size = 8, 100_000
  params = {'w': jnp.zeros(size)}
  grads = {'w': jnp.zeros((num_tasks, size))}
  link = optim.gradient_vaccine(num_tasks)

  class Given:
    def __init__(self, grads):
      self.grads = grads

    def per_task(self, params, num_tasks):
      return self.grads, jnp.ones(num_tasks), None

  def update(grads, state):
    return link.update(params, state, params, grad_fn=Given(grads))

  compiled = jax.jit(update).lower(grads, link.init(params)).compile()
  products = 2 * num_tasks * num_tasks * size + 2 * num_tasks * size
  assert compiled.cost_analysis()['flops'] < 1.05 * products


def test_in_a_chain_it_takes_the_tasks_of_the_batch():
  # Each task pulls w towards its own point.
  points = jnp.array([[2.0, 0.0], [-1.0, 1.0], [0.0, 3.0]])

  def loss_fn(params, model_state, batch, rng):
    del rng
    gap = params['w'][None] - points[batch['task']]
    return types.Losses(jnp.square(gap).sum(1) / 2, model_state, {})

  batch = {'task': jnp.array([0, 0, 1, 0]), 'mask': jnp.ones(4)}
  params = {'w': jnp.zeros(2)}
  tx = optax.chain(optim.pcgrad(3, reduce='mean'), optax.sgd(1.0))

  @jax.jit
  def step(params, state):
    grad_fn = gradients.GradFn(loss_fn, batch, jax.random.key(0), {})
    return tx.update(grad_fn(params)[0], state, params, grad_fn=grad_fn)

  updates, _ = step(params, jax.jit(tx.init)(params))
  grads = -np.asarray(points[:2], np.float64)
  expected = naive_pcgrad(grads, [[1], [0]])
  # The mean is over the two tasks that the batch holds.
  np.testing.assert_allclose(updates['w'], -expected / 2, rtol=1e-5)


@pytest.mark.parametrize(
  'bad',
  [
    {'num_tasks': 0},
    {'decay': 2.0},
    {'target': 1.0},
    {'reduce': 'max'},
    {'groups': 'block'},
  ],
  ids=str,
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    optim.gradient_vaccine(**{'num_tasks': 2, **bad})


def test_a_missing_grad_fn_is_named():
  link = optim.gradient_vaccine(2)
  with pytest.raises(ValueError, match='grad_fn'):
    link.update(PARAMS, link.init(PARAMS), PARAMS)
