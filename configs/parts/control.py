"""Worlds to act in, a teacher's rows, and agents that adapt there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import presets
from repjax import types
from repjax.adapt import pad
from repjax.data.environments import environment
from repjax.data.environments import pendulum
from repjax.data.environments import point_mass
from repjax.data.environments import worlds as worlds_lib
from repjax.data.images import crops
from repjax.data.reading import source
from repjax.methods import inverse_dynamics
from repjax.methods import rotation
from repjax.models import agent as agents


def world(config) -> environment.Environment:
  """Where the policy acts.

  Raises:
    InputError: If there is no such world here.
  """
  if config.data.name != 'point_mass':
    raise types.InputError(
      f'config.data.name={config.data.name!r}: the only world with pictures '
      'here is point_mass; run --preset=small, or deploy your own by '
      'repjax.adapt.pad.'
    )
  return point_mass.make(**config.world)


def worlds(config, *, column: str) -> worlds_lib.Worlds:
  """Worlds side by side, to learn in.

  Args:
    config: With data.name, world and what `world` needs.
    column: What an observation is, 'image' or 'features'.
  """
  settings = dict(config.world)
  num = settings.pop('num')
  env, look = pendulum.make(num_steps=config.world.num_steps), pendulum.LOOK
  return worlds_lib.Simulated(env, look, num=num, column=column)


def rows(config, split: str) -> source.Source:
  """What the teacher did, with errors, and what it would have done.

  Columns are 'image', 'next_image', 'action' (done) and 'target' (the
  teacher's).
  """
  types.check_choice(
    'A split (config.data.train_split, config.data.eval_splits)',
    split,
    ('train', 'validation'),
  )
  env, data = world(config), config.data

  def one(state, key):
    rng_noise, rng_random, rng_pick = jax.random.split(key, 3)
    noise = data.noise * jax.random.normal(rng_noise, (env.action_dim,))
    anything = jax.random.uniform(rng_random, (env.action_dim,), minval=-1.0)
    is_random = jax.random.bernoulli(rng_pick, data.random)
    action = jnp.clip(point_mass.expert(state) + noise, -1.0, 1.0)
    return jnp.where(is_random, anything, action)

  @jax.jit
  def walk(rng):
    looks = environment.repeat(point_mass.make_look(), data.episodes)
    walked = environment.walk_of_states(
      env,
      lambda states, seen, keys: jax.vmap(one)(states, keys),
      looks,
      rng,
    )
    target = jax.vmap(jax.vmap(point_mass.expert))(walked.state)
    return walked, target

  # All seeds of a study learn from the same rows.
  walked, target = walk(jax.random.key(int(split == 'validation')))
  columns = dict(
    image=walked.observation,
    next_image=walked.next_observation,
    action=walked.action,
    target=target,
  )
  flat = {
    k: np.asarray(x).reshape(-1, *x.shape[2:]) for k, x in columns.items()
  }
  return source.from_arrays('point_mass', flat, split=split)


def network(config) -> agents.Agent:
  """An encoder, an actor and the task's head."""
  net = config.agent

  def projection():
    own = None
    if net.own_channels:
      own = agents.Encoder(net.own_channels, (1,) * len(net.own_channels))
    return agents.Projection(net.own_width, own)

  is_rotation = _task(config) is rotation.make
  return agents.Agent(
    encoder=agents.Encoder(
      net.channels, net.strides, width=net.width, unfolded=net.unfolded
    ),
    actor=agents.Actor(projection(), agents.Trunk(4, net.features)),
    task=agents.Task(
      projection(),
      agents.Trunk(4 if is_rotation else 2, net.features),
      num_inputs=1 if is_rotation else 2,
    ),
  )


def task_loss(config) -> types.LossFn:
  """What is learned beside the policy, and alone after deployment."""
  return _task(config)(network(config))


def _task(config):
  kinds = dict(inverse_dynamics=inverse_dynamics.make, rotation=rotation.make)
  return presets.choose('task.name', config.task.name, kinds)


def adapter(config) -> pad.Adapter:
  """How the policy adapts; its rate is said where it is deployed."""
  settings = config.pad
  kinds = dict(adam=optax.adam, sgd=optax.sgd)
  optimizer = presets.choose('pad.optimizer', settings.optimizer, kinds)

  def crop(batch, rng):
    return crops.of_transitions(
      batch, rng, size=settings.crop, padding=settings.padding
    )

  return pad.make(
    task_loss(config),
    optimizer(1.0),
    copies=settings.copies,
    transform=crop if settings.crop else None,
  )
