"""Worlds to act in, a teacher's rows, and agents that adapt there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import presets
from repjax import types
from repjax.adapt import pad
from repjax.data.environments import control_suite
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
  """The point mass, where policies are cloned and deployed in compiled scans.

  Raises:
    InputError: If the config's world is another.
  """
  if config.data.name != 'point_mass':
    raise types.InputError(
      f'config.data.name={config.data.name!r} has no teacher: set '
      "config.trained_by='sac', or run --preset=small."
    )
  return _point_mass(config.world.size, config.world.num_steps)


@functools.lru_cache(maxsize=8)
def _point_mass(size, num_steps):
  """One world for equal settings, so that programs of it are shared."""
  return point_mass.make(size=size, num_steps=num_steps)


def worlds(
  config, *, column: str, look: str = 'training', video=()
) -> worlds_lib.Worlds:
  """Worlds side by side, to learn in.

  Args:
    config: With data.name, 'pendulum', 'point_mass' or a task of the DeepMind
      Control suite; and world (num, num_steps, of the suite action_repeat, and
      of pictures size and stack).
    column: What an observation is, 'image' or 'features'.
    look: Of the suite; see `control_suite`.
    video: Pictures of that look.
  """
  settings = config.world

  def simulated(env, look_of_all):
    return worlds_lib.Simulated(
      env, look_of_all, num=settings.num, column=column
    )

  if config.data.name == 'pendulum':
    env = pendulum.make(num_steps=settings.num_steps)
    return simulated(env, pendulum.LOOK)
  if config.data.name == 'point_mass':
    return simulated(world(config), point_mass.make_look())
  seen = dict(stack=1)
  if column == 'image':
    seen = dict(size=settings.size, stack=settings.stack)
  return control_suite.ControlSuite(
    config.data.name,
    num=settings.num,
    num_steps=settings.num_steps,
    action_repeat=settings.action_repeat,
    column=column,
    look=look,
    video=video,
    **seen,
  )


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
  data = config.data
  walk = _teaching(world(config), data.noise, data.random, data.episodes)
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


@functools.lru_cache(maxsize=8)
def _teaching(env, noise, random, episodes):
  """Key -> walks of the teacher, and what it would have done; compiled once."""

  def one(state, key):
    rng_noise, rng_random, rng_pick = jax.random.split(key, 3)
    error = noise * jax.random.normal(rng_noise, (env.action_dim,))
    anything = jax.random.uniform(rng_random, (env.action_dim,), minval=-1.0)
    is_random = jax.random.bernoulli(rng_pick, random)
    action = jnp.clip(point_mass.expert(state) + error, -1.0, 1.0)
    return jnp.where(is_random, anything, action)

  @jax.jit
  def walk(rng):
    walked = environment.walk_of_states(
      env,
      lambda states, seen, keys: jax.vmap(one)(states, keys),
      environment.repeat(point_mass.make_look(), episodes),
      rng,
    )
    return walked, jax.vmap(jax.vmap(point_mass.expert))(walked.state)

  return walk


def network(config, *, action_dim: int = 2) -> agents.Agent:
  """An encoder, an actor, the task's head, and a critic where it is learned.

  Raises:
    InputError: If the task has more convolutions of its own than there are.
  """
  net = config.agent
  depth, own = None, None
  if net.own_channels:
    depth = len(net.channels) - len(net.own_channels)
    if depth < 0:
      raise types.InputError(
        f'config.agent.own_channels={net.own_channels} stand in for the last '
        f'of config.agent.channels={net.channels}, and are more.'
      )
    own = agents.Encoder(
      net.own_channels, net.strides[depth:], unfolded=net.unfolded
    )

  def projection():
    return agents.Projection(net.own_width)

  def trunk(out):
    return agents.Trunk(out, net.features)

  is_rotation = _task(config) is rotation.make
  is_cloned = config.trained_by == 'behaviour_cloning'
  return agents.Agent(
    encoder=agents.Encoder(
      net.channels, net.strides, width=net.width, unfolded=net.unfolded
    ),
    actor=agents.Actor(projection(), trunk(2 * action_dim)),
    critic=None
    if is_cloned
    else agents.Critic(projection(), trunk(1), trunk(1)),
    task=agents.Task(
      agents.Projection(net.own_width, own),
      trunk(4 if is_rotation else action_dim),
      num_inputs=1 if is_rotation else 2,
      depth=depth,
    ),
  )


def task_loss(config, *, action_dim: int = 2) -> types.LossFn:
  """What is learned beside the policy, and alone after deployment."""
  return _task(config)(network(config, action_dim=action_dim))


def _task(config):
  kinds = dict(inverse_dynamics=inverse_dynamics.make, rotation=rotation.make)
  return presets.choose('task.name', config.task.name, kinds)


def crop(config):
  """(batch, key) -> batch of random windows; None where there are none."""
  settings = config.pad
  if not settings.crop:
    return None
  return lambda batch, rng: crops.of_transitions(
    batch, rng, size=settings.crop, padding=settings.padding
  )


def view(config):
  """What the policy sees of pictures: where windows are drawn, the middle."""
  if not config.pad.crop or config.pad.padding:
    return lambda image: image
  return lambda image: crops.center_crop(image, size=config.pad.crop)


def adapter(config, *, action_dim: int = 2) -> pad.Adapter:
  """How the policy adapts; its rate is said where it is deployed."""
  settings = config.pad
  kinds = dict(adam=optax.adam, sgd=optax.sgd)
  optimizer = presets.choose('pad.optimizer', settings.optimizer, kinds)
  return pad.make(
    task_loss(config, action_dim=action_dim),
    optimizer(1.0),
    copies=settings.copies,
    transform=crop(config),
  )
