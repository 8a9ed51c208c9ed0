"""Actor and critic share all convolutions; the task has its last for itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pad as recipe
from configs.parts import acting
from configs.parts import control
from configs.parts import policies
from repjax import trees
from repjax import types
from repjax.adapt import pad

_DIM = 2


def _config(**agent):
  """The preset `paper`, tiny: the task branches off after two convolutions."""
  config = recipe.get_config('paper')
  small = dict(
    channels=(4,) * 4,
    strides=(2, 1, 1, 1),
    own_channels=(4, 4),
    own_width=6,
    features=(8,),
  )
  config.update(
    agent={**small, **agent}, pad=dict(copies=2, crop=20), sac=dict(every=2)
  )
  return config


def _params(config, size):
  image, action = jnp.zeros((1, size, size, 9)), jnp.zeros((1, _DIM))
  network = control.network(config, action_dim=_DIM)
  return jax.jit(network.init)(jax.random.key(0), image, action)['params']


def _batch(size=24, num=4):
  rng = np.random.default_rng(0)
  images = rng.random((2, num, size, size, 9), np.float32)
  return dict(
    image=images[0],
    next_image=images[1],
    action=rng.uniform(-1, 1, (num, _DIM)).astype(np.float32),
    reward=rng.random(num, np.float32),
    discount=np.ones(num, np.float32),
    mask=np.ones(num, np.float32),
  )


def _learner(config, **settings):
  return acting.learner(
    config,
    control.network(config, action_dim=_DIM),
    action_dim=_DIM,
    transform=control.crop(config),
    view=control.view(config),
    **settings,
  )


def _moved(before, after):
  """'/'-joined module paths of which a leaf is not the same bits."""
  after = trees.flatten(after)
  return {
    '/'.join(path[:-1])
    for path, x in trees.flatten(before).items()
    if not np.array_equal(x, after[path])
  }


def _is_of_task(module):
  """What the task trains: the shared convolutions and its own head."""
  return module.startswith('task/') or module in (
    'encoder/conv_0',
    'encoder/conv_1',
  )


def test_the_paper_has_eleven_convolutions_and_three_of_the_task():
  params = jax.eval_shape(lambda: _params(recipe.get_config('paper'), 84))
  kernels = [
    path[:-1] for path, x in trees.flatten(params).items() if len(x.shape) == 4
  ]
  assert set(kernels) == {
    *[('encoder', f'conv_{i}') for i in range(11)],
    *[('task', 'projection', 'own', f'conv_{i}') for i in range(3)],
  }
  for head in ('actor', 'critic', 'task'):  # The authors' 21 x 21 x 32.
    dense = params[head]['projection']['dense']['kernel']
    assert dense.shape == (21 * 21 * 32, 100)


def test_the_actor_trains_no_convolution():
  method = _learner(_config())
  update = jax.jit(method.update)
  start = jax.jit(method.init)(jax.random.key(0), _batch())
  waiting = start.replace(step=jnp.ones((), jnp.int32))  # Not its turn.
  acts, _ = update(start, _batch(), jax.random.key(1))
  waits, _ = update(waiting, _batch(), jax.random.key(1))
  changed = _moved(waits.params, acts.params)
  assert changed
  assert all(module.startswith('actor/') for module in changed)
  # The critic trains all that the actor sees through.
  by_critic = _moved(start.params, waits.params)
  assert {f'encoder/conv_{i}' for i in range(4)} <= by_critic
  assert not any(x.startswith(('actor/', 'task/')) for x in by_critic)


def test_the_task_trains_what_it_shares_and_its_own():
  config = _config()
  task = control.task_loss(config, action_dim=_DIM)
  start = jax.jit(_learner(config).init)(jax.random.key(0), _batch())
  alone, both = (
    jax.jit(method.update)(start, _batch(), jax.random.key(1))[0].params
    for method in (_learner(config), _learner(config, task=task))
  )
  expected = {'/'.join(x[:-1]) for x in trees.flatten(start.params)}
  assert _moved(alone, both) == set(filter(_is_of_task, expected))


def test_deployment_adapts_what_the_task_trains():
  config = _config()
  params, batch = _params(config, 20), _batch()
  adapter = control.adapter(config, action_dim=_DIM)
  state = adapter.init(params, 1e-3)
  update = jax.jit(adapter.update)
  for i in range(2):
    seen = pad.Transition(
      *[batch[name][i] for name in ('image', 'action', 'next_image')]
    )
    state, _ = update(state, seen, jax.random.key(i))
  every = {'/'.join(x[:-1]) for x in trees.flatten(params)}
  assert _moved(params, state.params) == set(filter(_is_of_task, every))


def test_without_own_convolutions_the_task_reads_what_the_actor_reads():
  config = _config(own_channels=())
  network = control.network(config, action_dim=_DIM)
  params, image = _params(config, 20), _batch(20)['image']
  seen = jax.jit(network.encoder.apply)({'params': params['encoder']}, image)
  guess = jax.jit(network.task.apply)({'params': params['task']}, seen, seen)
  guess_of = jax.jit(functools.partial(network.apply, method='guess'))
  chex.assert_trees_all_close(
    guess_of({'params': params}, image, image), guess, rtol=1e-5
  )
  names = {path[-2] for path in trees.flatten(params['task'])}
  assert not any(name.startswith('conv') for name in names)


def test_more_convolutions_of_its_own_than_there_are_is_refused():
  with pytest.raises(types.InputError, match='own_channels'):
    control.network(_config(own_channels=(4,) * 5))


def test_fields_that_agents_do_not_read_are_refused():
  config = _config()
  config.task.weight = 0.5
  with pytest.raises(types.InputError, match=r'config.task.weight=0.5'):
    policies.acting(config)
  config.step.ema_decay = 0.9
  with pytest.raises(types.InputError, match=r'config.step.ema_decay=0.9'):
    acting.experiment(config, None, None, None)


def test_without_a_weight_there_is_no_task(monkeypatch):
  given = []
  monkeypatch.setattr(control, 'worlds', lambda *_, **__: _Worlds())
  monkeypatch.setattr(
    policies.acting_part,
    'learner',
    lambda *_, task, **__: given.append(task),
  )
  monkeypatch.setattr(policies.acting_part, 'experiment', lambda *_, **__: None)
  for weight in (0.0, 1.0):
    config = _config()
    config.task.weight = weight
    policies.acting(config)
  assert given[0] is None and callable(given[1])


class _Worlds:
  action_dim = _DIM
