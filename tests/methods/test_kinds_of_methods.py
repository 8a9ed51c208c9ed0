"""What kinds of methods the contract holds without a change, one of each.

A method with two losses and two optimizers, one with a momentum teacher, one
with a queue, and one with several networks; written as a paper's file would be.
"""

import collections
import functools
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import checkpoint
from repjax import gradients
from repjax import loop
from repjax import parallel
from repjax import types
from repjax.methods import step as steps

STEPS, ROWS, CLASSES, LATENT, DIM, QUEUE = 6, 8, 3, 2, 3, 10


class Net(nn.Module):
  """Rows [B, D] -> [B, outputs]."""

  outputs: int

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(5, name='hidden')(x))
    return nn.Dense(self.outputs, name='head')(x)

  def fresh(self, rng, dim):
    return self.init(rng, jnp.zeros((1, dim)))['params']

  def of(self, params, x):
    return self.apply({'params': params}, x)


def gan(generator, discriminator, tx_generator, tx_discriminator):
  """Two losses, two optimizers (Goodfellow et al., 2014)."""
  txs = {'generator': tx_generator, 'discriminator': tx_discriminator}

  def discriminator_loss(params, model_state, batch, rng):
    del rng  # Latents are a row's, so that no number of devices changes them.
    real, fake = (
      discriminator.of(params, batch[x])[:, 0] for x in ('features', 'fake')
    )
    return types.Losses(nn.softplus(-real) + nn.softplus(fake), model_state, {})

  def generator_loss(params, model_state, batch, rng, *, judge):
    del rng
    fake = discriminator.of(judge, generator.of(params, batch['latent']))
    return types.Losses(nn.softplus(-fake[:, 0]), model_state, {})

  def init(rng, batch):
    rng_generator, rng_discriminator = jax.random.split(rng)
    dim = batch['features'].shape[1]
    params = {
      'generator': generator.fresh(rng_generator, LATENT),
      'discriminator': discriminator.fresh(rng_discriminator, dim),
    }
    opt_state = {name: tx.init(params[name]) for name, tx in txs.items()}
    return types.TrainState(jnp.zeros((), jnp.int32), params, opt_state, {}, ())

  def update(state, batch, rng):
    params, opt_state = dict(state.params), dict(state.opt_state)
    keys = parallel.row_rngs(rng, len(batch['mask']))
    latent = jax.vmap(lambda key: jax.random.normal(key, (LATENT,)))(keys)
    fake = generator.of(params['generator'], latent)
    batch, sums = {**batch, 'latent': latent, 'fake': fake}, {}

    def descend(name, loss_fn):
      grad_fn = gradients.GradFn(loss_fn, batch, rng, state.model_state)
      params[name], opt_state[name], aux = steps.descend(
        txs[name], grad_fn, params[name], opt_state[name]
      )
      sums[name] = aux.sums['loss']

    descend('discriminator', discriminator_loss)
    judge = params['discriminator']
    descend('generator', functools.partial(generator_loss, judge=judge))
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return state, {'loss': sums['discriminator'], **sums}

  def predict(state, batch):
    params = state.params['discriminator']
    return {'score': discriminator.of(params, batch['features'])[:, 0]}

  return types.Method(init, update, predict)


class TeacherState(NamedTuple):
  """Parameters of the momentum teacher."""

  params: types.PyTree


def taught(model, tx, momentum):
  """A student that agrees with its own average (Tarvainen, Valpola, 2017)."""

  def loss_fn(params, model_state, batch, rng):
    del rng  # The noise of a view comes with its row.
    view = batch['features'] + batch['noise']
    error = model.of(params, view) - batch['target']
    return types.Losses(jnp.square(error).mean(-1), model_state, {})

  step = steps.make(loss_fn, tx)

  def init(rng, batch):
    params = model.fresh(rng, batch['features'].shape[1])
    state = step.init({'params': params})
    return state.replace(extra=TeacherState(params))

  def update(state, batch, rng):
    keys = parallel.row_rngs(rng, len(batch['mask']))
    shape = batch['features'].shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    target = model.of(state.extra.params, batch['features'])
    state, sums = step.learn(
      state, {**batch, 'noise': noise, 'target': target}, rng
    )
    teacher = optax.incremental_update(
      state.params, state.extra.params, 1 - momentum
    )
    return state.replace(extra=TeacherState(teacher)), sums

  def predict(state, batch):
    return {'output': model.of(state.extra.params, batch['features'])}

  return types.Method(init, update, predict)


class QueueState(NamedTuple):
  """Unit embeddings of the latest rows, [QUEUE, DIM], oldest first."""

  embeddings: jax.Array


def queued(model, tx):
  """Contrast with past embeddings (He et al., 'MoCo', 2020)."""

  def embed(params, x):
    x = model.of(params, x)
    # Of padding, where all is 0, a norm alone would have no gradient.
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)

  def loss_fn(params, model_state, batch, rng, *, past):
    del rng
    query = embed(params, batch['features'] * 1.1)
    own = (query * batch['key']).sum(-1, keepdims=True)
    logits = jnp.concatenate([own, query @ past.T], 1)
    loss = jax.nn.logsumexp(logits, 1) - own[:, 0]
    return types.Losses(loss, model_state, {})

  def init(rng, batch):
    params = model.fresh(rng, batch['features'].shape[1])
    queue = QueueState(jnp.zeros((QUEUE, DIM)))
    return types.TrainState(
      jnp.zeros((), jnp.int32), params, tx.init(params), {}, queue
    )

  def update(state, batch, rng):
    past = state.extra.embeddings
    key = embed(state.params, batch['features'])
    grad_fn = gradients.GradFn(
      functools.partial(loss_fn, past=past), {**batch, 'key': key}, rng, {}
    )
    params, opt_state, aux = steps.descend(
      tx, grad_fn, state.params, state.opt_state
    )
    keys, mask = parallel.all_gather((key, batch['mask']))
    rows = jnp.concatenate([past, keys])
    real = jnp.concatenate([jnp.ones(QUEUE), mask]) > 0
    # Padding goes to the front, and so leaves first.
    latest = jnp.argsort(real, stable=True)[-QUEUE:]
    queue = QueueState(rows[latest])
    return types.TrainState(
      state.step + 1, params, opt_state, {}, queue
    ), aux.sums

  def predict(state, batch):
    return {'embedding': embed(state.params, batch['features'])}

  return types.Method(init, update, predict)


def co_trained(first, second, tx):
  """Two networks, each with half of the columns, that agree (Qiao, 2018)."""

  def both(params, batch):
    halves = jnp.split(batch['features'], 2, axis=1)
    nets = ('first', first), ('second', second)
    return [
      nn.log_softmax(net.of(params[name], half))
      for (name, net), half in zip(nets, halves, strict=True)
    ]

  def loss_fn(params, model_state, batch, rng):
    del rng
    a, b = both(params, batch)
    label = nn.one_hot(batch['label'], CLASSES)
    supervised = -(label * (a + b)).sum(-1)
    agreement = ((jnp.exp(a) - jnp.exp(b)) * (a - b)).sum(-1)
    return types.Losses(
      supervised + agreement, model_state, {'agreement': agreement}
    )

  step = steps.make(loss_fn, tx)

  def init(rng, batch):
    dim = batch['features'].shape[1] // 2
    return step.init(
      {
        'params': {
          'first': first.fresh(jax.random.fold_in(rng, 0), dim),
          'second': second.fresh(jax.random.fold_in(rng, 1), dim),
        }
      }
    )

  def predict(state, batch):
    return {'logits': sum(both(steps.variables(state)['params'], batch))}

  return types.Method(init, step.update, predict)


# Built once: a method of its own is a program of its own.
METHODS = {
  'two losses': gan(
    Net(4), Net(1), optax.adam(0.02), optax.sgd(0.1, momentum=0.5)
  ),
  'teacher': taught(Net(DIM), optax.sgd(0.1, momentum=0.9), momentum=0.7),
  'queue': queued(Net(DIM), optax.adam(0.02)),
  'two networks': co_trained(Net(CLASSES), Net(CLASSES), optax.adam(0.02)),
}


def batch_of(step):
  rng = np.random.default_rng(step)
  mask = np.ones(ROWS, np.float32)
  mask[ROWS - 1 - step % 4 :] = 0  # Of some devices all rows.
  return {
    'features': rng.normal(size=(ROWS, 4)).astype(np.float32),
    'label': rng.integers(0, CLASSES, ROWS),
    'mask': mask,
  }


def fit(method, until=STEPS, **settings):
  def batches(start):
    return map(batch_of, range(start, STEPS))

  return loop.fit(method, batches, steps=until, seed=0, **settings)


@functools.cache
def trajectory(kind):
  """States before the first and after every step, on the host."""
  method = METHODS[kind]
  states = [jax.device_get(loop.init(method, batch_of(0), seed=0))]
  sums = []

  def keep(step, state, now):
    states.append(jax.device_get(state))
    sums.append(jax.device_get(now))

  last = fit(method, hooks=(keep,))
  return states, sums, last


@pytest.fixture(params=METHODS)
def kind(request):
  return request.param


@pytest.mark.devices(4)
def test_it_trains_and_its_replicas_agree(kind):
  states, sums, last = trajectory(kind)
  chex.assert_tree_all_finite((states, sums))
  assert int(last.step) == STEPS
  for leaf in jax.tree.leaves(last):
    replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(replicas) == 4
    for replica in replicas[1:]:
      np.testing.assert_array_equal(replica, replicas[0])
  # All there is moves: every parameter, and what is kept beside them.
  unmoved = jax.tree.map(np.array_equal, states[0], states[-1])
  assert not any(jax.tree.leaves(unmoved)), unmoved


@pytest.mark.devices(4)
def test_one_device_equals_four(kind):
  last = fit(METHODS[kind], devices=jax.local_devices()[:1])
  chex.assert_trees_all_close(
    jax.device_get(last), trajectory(kind)[0][-1], rtol=1e-4, atol=1e-5
  )


def test_a_resumed_run_is_the_same_bit_for_bit(kind, tmp_path):
  method, (states, _, last) = METHODS[kind], trajectory(kind)
  store = checkpoint.Checkpoints(str(tmp_path))
  store.save(fit(method, until=STEPS // 2), {})
  store.wait()
  restored, _ = store.restore(loop.init(method, batch_of(0), seed=1))
  store.close()
  chex.assert_trees_all_equal(restored, states[STEPS // 2])
  resumed = fit(method, state=restored)
  chex.assert_trees_all_equal(jax.device_get(resumed), states[-1])
  evaluate = loop.Evaluator(method)
  found, expected = (evaluate(x, [batch_of(0)]) for x in (resumed, last))
  chex.assert_trees_all_equal(found, expected)
  assert len(found[0].popitem()[1]) == batch_of(0)['mask'].sum()


def test_each_optimizer_trains_its_own_network():
  # Its state, Adam's or momentum's, is shaped like that network alone.
  states, _, _ = trajectory('two losses')
  opt_state = states[-1].opt_state
  for name, moments in (
    ('generator', opt_state['generator'][0].mu),
    ('discriminator', opt_state['discriminator'][0].trace),
  ):
    chex.assert_trees_all_equal_shapes(moments, states[0].params[name])


def test_the_teacher_is_the_average_of_the_student():
  states, _, _ = trajectory('teacher')
  average = states[0].params
  chex.assert_trees_all_equal(states[0].extra.params, average)
  for state in states[1:]:
    average = jax.tree.map(
      lambda a, p: 0.7 * a + 0.3 * p, average, state.params
    )
    chex.assert_trees_all_close(state.extra.params, average, rtol=1e-4)


def test_the_queue_holds_the_latest_real_rows_oldest_first():
  states, _, _ = trajectory('queue')
  queue = collections.deque(np.zeros((QUEUE, DIM)), maxlen=QUEUE)
  embed = jax.jit(METHODS['queue'].predict)
  for step, state in enumerate(states[:-1]):
    batch = batch_of(step)
    rows = np.asarray(embed(state, batch)['embedding'])
    queue.extend(rows[batch['mask'] > 0])
    np.testing.assert_allclose(
      states[step + 1].extra.embeddings, np.stack(queue), atol=1e-5
    )


def test_two_networks_learn_from_each_other():
  # The gradient of one network's parameters depends on the other's outputs.
  update, state = (
    METHODS['two networks'].update,
    trajectory('two networks')[0][0],
  )
  second = jax.tree.map(lambda x: x + 1.0, state.params['second'])
  changed = state.replace(params={**state.params, 'second': second})
  (one, _), (other, _) = (
    jax.jit(update)(x, batch_of(0), jax.random.key(0)) for x in (state, changed)
  )
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(
      one.opt_state[0].mu['first'], other.opt_state[0].mu['first'], atol=1e-4
    )
