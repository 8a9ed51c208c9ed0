"""Links that ask `grad_fn`: what they need, and what they stack with."""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import float64
from repjax import gradients
from repjax import optim
from repjax import types
from repjax.optim import gradient_projection
from repjax.optim import link
from repjax.optim import rehearsal
from repjax.types import InputError

PARAMS = {'layer': {'kernel': jnp.arange(1.0, 7).reshape(3, 2) / 6}}
ROWS = 6
BATCH = {
  'x': np.random.default_rng(0).normal(size=(ROWS, 3)).astype('f4'),
  'y': np.random.default_rng(1).normal(size=(ROWS, 2)).astype('f4'),
  'task': jnp.arange(ROWS) % 2,
  'memory': jnp.arange(ROWS) % 2,
  'mask': jnp.ones(ROWS),
}
LINKS = {
  'sam': optim.sam(0.5),
  'dp_sgd': optim.dp_sgd(
    1.0, 1.0, expected_batch_size=4, key=jax.random.key(0)
  ),
  'gradient_vaccine': optim.gradient_vaccine(2, target=0.5),
  'pcgrad': optim.pcgrad(2),
  'a_gem': rehearsal.a_gem(),
  'task_cosines': optim.task_cosines(2),
  'project_gradients': optax.with_extra_args_support(optim.project_gradients()),
}
ASK = [name for name in LINKS if name != 'project_gradients']


def loss_fn(params, model_state, batch, rng):
  del rng
  error = batch['x'] @ params['layer']['kernel'] - batch['y']
  return types.Losses(jnp.square(error).sum(-1), model_state, {})


def grad_fn_of(batch=BATCH, **settings):
  return gradients.GradFn(loss_fn, batch, jax.random.key(0), {}, **settings)


def start(tx):
  """A state in which there is something to project on."""
  inputs = {'layer': np.asarray([[1.0, 2.0, 0.0]]).T}
  return jax.tree.map(
    lambda x: (
      optim.update_bases(x, inputs, 1.0)
      if isinstance(x, gradient_projection.ProjectionState)
      else x
    ),
    tx.init(PARAMS),
    is_leaf=lambda x: isinstance(x, gradient_projection.ProjectionState),
  )


def updated(tx):
  """(what the links make of the gradient, their state)."""
  return jax.jit(functools.partial(update, tx))(start(tx))


def update(tx, state):
  grad_fn = grad_fn_of()
  grads, _ = grad_fn(PARAMS)
  return tx.update(grads, state, PARAMS, grad_fn=grad_fn)


def trace(tx):
  """What happens before any compute."""
  jax.eval_shape(functools.partial(update, tx), start(tx))


def kernel(updates):
  return np.asarray(updates['layer']['kernel'])


@functools.cache
def alone(name):
  return kernel(updated(LINKS[name])[0])


@functools.cache
def after(first, second):
  """What the second makes of the first one's result, each on its own."""
  tx = LINKS[second]

  @jax.jit
  def run(grads, state):
    return tx.update(grads, state, PARAMS, grad_fn=grad_fn_of())[0]

  return kernel(run({'layer': {'kernel': alone(first)}}, start(tx)))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', ASK)
def test_a_step_keeps_the_types_of_states_in_a_process_of_64_bits(name):
  with float64.enabled():
    state = LINKS[name].init(PARAMS)
    _, new = jax.eval_shape(functools.partial(update, LINKS[name]), state)
  types_of = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (state, new)]
  assert types_of[0] == types_of[1]


# What is printed in the README.


def table():
  """(first, second) -> its cell in the README, and the refusals' words."""
  text = pathlib.Path(__file__).parents[2].joinpath('README.md').read_text()
  _, text = text.split('## Links in one chain\n')
  text, *_ = text.split('\n## ')
  rows = [
    [cell.strip(' `') for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|') and not line.startswith('|--')
  ]
  cells = {
    (row[0], second): cell
    for row in rows[1:]
    for second, cell in zip(rows[0][1:], row[1:], strict=True)
  }
  words = dict(re.findall(r'^- ([a-z]+): `([^`]*)`', text, re.MULTILINE))
  return cells, words


def test_the_readme_knows_every_pair():
  cells, words = table()
  assert set(cells) == set(itertools.product(LINKS, LINKS))
  assert set(cells.values()) == {'works', *words}


def test_every_link_that_asks_is_in_the_table():
  folder = pathlib.Path(optim.__file__).parent
  asking = [x.read_text() for x in folder.glob('*.py')]
  asking = [text for text in asking if '*, grad_fn=None' in text]
  # Gradient Vaccine and PCGrad are one.
  assert len(asking) == len(ASK) - 1
  for name in ASK:
    assert len(link.asking(LINKS[name].init(PARAMS))) == 1
  for text in asking:
    assert text.count('link.ask(') == text.count('link.begin(') == 1


@pytest.mark.parametrize('second', LINKS)
@pytest.mark.parametrize('first', LINKS)
def test_a_pair_works_or_is_refused_as_the_readme_says(first, second):
  cells, words = table()
  cell = cells[first, second]
  tx = optax.chain(LINKS[first], LINKS[second], optax.scale(1.0))
  if cell != 'works':
    made = first if first in ASK else 'the links before it'
    says = re.sub(r'\bA\b', made, ' '.join(words[cell].split()))
    says = re.sub(r'\bB\b', second, says)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
      trace(tx)
    assert '\n' not in str(caught.value)
    return
  updates, state = updated(tx)
  found = kernel(updates)
  np.testing.assert_allclose(found, after(first, second), rtol=1e-5)
  # Both have their say.
  for name, other in ((first, second), (second, first)):
    if name == 'task_cosines':
      index = [first, second].index(name)
      assert float(state[index].count.sum()) > 0
    elif name != other or name != 'project_gradients':
      assert np.abs(found - alone(other)).max() > 1e-3, f'{name} is lost'


# Beyond pairs of our own.


@pytest.mark.parametrize(
  'ask',
  [
    lambda grad_fn, params: grad_fn(params),
    lambda grad_fn, params: grad_fn(params, sync=False),
    lambda grad_fn, params: grad_fn.clipped(params, 1.0),
    lambda grad_fn, params: grad_fn.per_task(params, 2),
    lambda grad_fn, params: grad_fn.over_groups(2, lambda f: f(params)[0]),
    lambda grad_fn, params: grad_fn.over_groups(1, lambda f: f(params)[0]),
  ],
)
def test_nothing_behind_dp_sgd_learns_more(ask):
  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del updates, extra
    return ask(grad_fn, params)[0], state

  theirs = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update_fn
  )
  tx = optax.chain(LINKS['dp_sgd'], optax.scale(0.5), theirs)
  with pytest.raises(InputError, match='behind dp_sgd'):
    trace(tx)


@pytest.mark.parametrize('name', [x for x in ASK if x != 'task_cosines'])
@pytest.mark.parametrize(
  'before',
  [
    optax.clip_by_global_norm(0.1),
    optax.add_decayed_weights(0.1),
    rehearsal.ewc(1.0),
    optim.l2_sp(0.1, head='layer'),
  ],
)
def test_what_stands_before_is_not_dropped_in_silence(name, before):
  tx = optax.chain(before, LINKS[name])
  with pytest.raises(InputError, match=f'put {name} first in the chain'):
    trace(tx)
  # What leaves the gradient alone may stand there, and anything may behind.
  trace(optax.chain(optax.identity(), LINKS[name], before))
  if name != 'dp_sgd':
    trace(optax.apply_if_finite(optax.chain(LINKS[name], before), 3))


@pytest.mark.parametrize(
  'wrap',
  [
    lambda link: optax.apply_if_finite(link, 3),
    lambda link: optax.conditionally_transform(link, lambda step: step > 0),
  ],
)
def test_no_condition_leaves_noise_out(wrap):
  tx = wrap(optax.chain(optax.identity(), LINKS['dp_sgd']))
  with pytest.raises(InputError, match=r'dp_sgd inside of .* not private'):
    tx.init(PARAMS)


def test_chains_may_share_a_grad_fn():
  names = ('sam', 'dp_sgd', 'gradient_vaccine', 'sam')

  @jax.jit
  def run(params):
    grad_fn, found = grad_fn_of(), []
    grads, _ = grad_fn(params)
    for name in names:
      state = LINKS[name].init(params)
      found.append(LINKS[name].update(grads, state, params, grad_fn=grad_fn)[0])
    return found

  for name, found in zip(names, run(PARAMS), strict=True):
    np.testing.assert_allclose(kernel(found), alone(name), rtol=1e-6)


@pytest.mark.parametrize('name', ASK)
def test_trees_that_optax_has_taken_apart_are_refused(name):
  params = {**PARAMS, 'head': {'kernel': jnp.ones((2, 2))}}
  labels = {'layer': 'train', 'head': 'stop'}
  parts = {'train': LINKS[name], 'stop': optax.set_to_zero()}
  for tx in (
    optax.masked(LINKS[name], {'layer': True, 'head': False}),
    optax.multi_transform(parts, labels),
  ):
    with pytest.raises(InputError, match='in front of') as caught:
      tx.init(params)
    assert str(caught.value).startswith(f'{name} asks grad_fn about all')


@pytest.mark.parametrize('name', [x for x in ASK if x != 'sam'])
def test_a_function_that_gives_gradients_alone_is_named(name):
  asks = 'clipped' if name == 'dp_sgd' else 'per_task'
  with pytest.raises(
    InputError, match=rf'^{name} asks grad_fn\.{asks}.*GradFn'
  ):
    LINKS[name].update(
      PARAMS, start(LINKS[name]), PARAMS, grad_fn=lambda p: (p, None)
    )


# Accumulating mini-batches: (w - t)^2 / 2 from w = 0 with t = 1 and 3, rate 1.

W = jnp.zeros(())
TARGETS = jnp.array([1.0, 3.0])


def pull(target):
  return lambda w, sync=True: (w - target, None)


def pulls(params, model_state, batch, rng):
  del rng
  return types.Losses(jnp.square(params - batch['t']) / 2, model_state, {})


def step(tx, grad_fn):
  updates, _ = tx.update(grad_fn(W)[0], tx.init(W), W, grad_fn=grad_fn)
  return float(updates)


@pytest.mark.parametrize(('rho', 'right'), [(0.0, 2.0), (0.5, 2.5)])
def test_mini_batches_together_are_one_large_batch(rho, right):
  tx = optax.chain(optim.sam(rho), optax.sgd(1.0))
  assert step(tx, optim.over_batches(pull, TARGETS)) == right
  rows = {'t': TARGETS, 'mask': jnp.ones(2)}
  both = gradients.GradFn(pulls, rows, jax.random.key(0), {}, microbatches=2)
  assert step(tx, both) == right


def test_what_accumulates_behind_a_link_has_all_mini_batches():
  tx = optax.chain(
    optim.sam(0.0),
    optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation(),
  )
  state, moved = tx.init(W), 0.0
  for target in TARGETS:
    grad_fn = pull(target)
    updates, state = tx.update(grad_fn(W)[0], state, W, grad_fn=grad_fn)
    moved += float(updates)
  assert moved == 2


@pytest.mark.parametrize('name', ASK)
def test_multi_steps_around_a_link_is_refused(name):
  inner = optax.chain(LINKS[name], optax.sgd(1.0))
  for tx in (
    optax.MultiSteps(inner, 2),
    optax.chain(optax.MultiSteps(inner, 2).gradient_transformation()),
  ):
    with pytest.raises(InputError, match=r'optim\.over_batches') as caught:
      jax.eval_shape(tx.init, PARAMS)
    assert str(caught.value).startswith(f'optax.MultiSteps around {name} loses')
  # Without such links it is what it was.
  plain = optax.MultiSteps(optax.sgd(1.0), 2)
  jax.eval_shape(plain.init, PARAMS)


# Numbers that change while it trains.


def test_the_radius_may_be_a_schedule_or_a_traced_number():
  rho = optax.linear_schedule(0.0, 1.0, 2)  # 0, 0.5, 1, 1, ...
  grad_fn = pull(3.0)

  def radii(tx):
    update = jax.jit(
      lambda state: tx.update(grad_fn(W)[0], state, W, grad_fn=grad_fn)
    )
    state, found = tx.init(W), []
    for _ in range(4):
      grads, state = update(state)
      found.append(-3 - float(grads))
    return found

  for tx in (optim.sam(rho), optax.inject_hyperparams(optim.sam)(rho=rho)):
    np.testing.assert_allclose(radii(tx), [0, 0.5, 1, 1], atol=1e-6)
  np.testing.assert_allclose(
    radii(optax.inject_hyperparams(optim.sam)(0.25)), [0.25] * 4, atol=1e-6
  )
  traced = jax.jit(
    lambda rho: optim.sam(rho).update(
      grad_fn(W)[0], optim.sam(rho).init(W), W, grad_fn=grad_fn
    )[0]
  )
  np.testing.assert_allclose(traced(0.75), -3.75, atol=1e-6)


def injected(factory, *args, static=(), **settings):
  return optax.inject_hyperparams(factory, static_args=static)(
    *args, **settings
  )


@pytest.mark.parametrize(
  ('tx', 'says'),
  [
    (injected(optim.sam, 0.1, groups=2), 'sam needs groups as a number'),
    (
      injected(
        optim.dp_sgd, 1.0, 1.0, expected_batch_size=4, key=jax.random.key(0)
      ),
      'dp_sgd needs clip_norm as a number',
    ),
    (
      injected(
        optim.dp_sgd,
        *(1.0, 1.0),
        expected_batch_size=4,
        key=jax.random.key(0),
        static=('clip_norm', 'noise_multiplier', 'expected_batch_size'),
      ),
      'dp_sgd needs rows_per_user as a number',
    ),
    (
      injected(optim.gradient_vaccine, 2),
      'gradient_vaccine needs num_tasks as a number',
    ),
    (injected(optim.pcgrad, 2), 'gradient_vaccine needs num_tasks'),
    (
      injected(
        optim.gradient_vaccine, 2, target=lambda step: 0.1, static='num_tasks'
      ),
      'gradient_vaccine needs target as a number',
    ),
    (injected(optim.task_cosines, 2), 'task_cosines needs num_tasks'),
  ],
  ids=['sam', 'dp_sgd', 'users', 'gv', 'pcgrad', 'target', 'cosines'],
)
def test_what_cannot_change_is_named(tx, says):
  with pytest.raises(InputError, match=f'^{says}'):
    jax.eval_shape(tx.init, PARAMS)


@pytest.mark.parametrize(
  'tx',
  [
    injected(optim.gradient_vaccine, 2, decay=0.5, static='num_tasks'),
    injected(rehearsal.ewc, 0.5, learning_rate=0.1),
    injected(optim.l2_sp, 0.5, head='layer'),
    injected(
      optim.layer_decay,
      0.5,
      lambda path: 1,
      num_layers=1,
      static=('layer_of', 'num_layers'),
    ),
  ],
  ids=['gradient_vaccine', 'ewc', 'l2_sp', 'layer_decay'],
)
def test_other_numbers_may_be_traced(tx):
  @jax.jit
  def run(params):
    grad_fn = grad_fn_of()
    grads, _ = grad_fn(params)
    return tx.update(grads, tx.init(params), params, grad_fn=grad_fn)[0]

  assert np.isfinite(kernel(run(PARAMS))).all()


# What is missing.


@pytest.mark.parametrize('name', ASK)
def test_what_is_missing_is_named_with_the_link(name):
  state = LINKS[name].init(PARAMS)
  call = r'call tx\.update\(grads, opt_state, params, grad_fn=grad_fn\)'
  for args, settings, missing in (
    ((PARAMS,), {}, 'grad_fn'),
    ((), {'grad_fn': lambda params: (params, None)}, 'params'),
    ((), {}, 'params and grad_fn'),
  ):
    with pytest.raises(InputError, match=f'^{name} needs {missing}: {call}'):
      LINKS[name].update(PARAMS, state, *args, **settings)


def test_a_link_without_need_of_a_grad_fn_asks_for_params_alone():
  tx = rehearsal.ewc(1.0)
  with pytest.raises(InputError, match=r'^ewc needs params: '):
    tx.update(PARAMS, tx.init(PARAMS))


def test_many_parts_are_added_up_in_float32():
  # A sum in bfloat16 stops growing at 256 ones.
  half = W.astype(jnp.bfloat16)
  ones = jnp.ones(512, jnp.bfloat16)
  grads, _ = optim.over_batches(pull, ones)(half)
  assert grads.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(grads, 'f4'), half - 1)
  rows = {'t': jnp.ones(512), 'mask': jnp.ones(512)}
  parts = gradients.GradFn(
    *(pulls, rows, jax.random.key(0), {}), microbatches=512
  )
  np.testing.assert_array_equal(np.asarray(parts(half)[0], 'f4'), half - 1)
