"""Speed of acting and adapting in one scan."""

import time
from typing import Any

import numpy as np

_EPISODES = 16


def deployment(rounds: int) -> dict[str, Any]:
  """Steps of a world a second, 16 episodes side by side, the preset small.

  'cost' is the time of acting and adapting over that of acting alone.
  """
  import jax
  import jax.numpy as jnp

  from configs import pad as recipe
  from configs.parts import control
  from launch.lib import timing
  from repjax.adapt import pad
  from repjax.data.environments import environment
  from repjax.data.environments import point_mass

  config = recipe.get_config('small')
  env, model = control.world(config), control.network(config)
  adapter = control.adapter(config)
  looks = environment.repeat(point_mass.make_look(gain=0.5), _EPISODES)
  image = jnp.zeros((1, config.world.size, config.world.size, 3))
  action = jnp.zeros((1, env.action_dim))
  params = model.init(jax.random.key(0), image, action)['params']

  def mode(params, seen):
    variables = {'params': params}
    return jnp.tanh(model.apply(variables, seen, method='policy').mean)

  @jax.jit
  def adapting(rng):
    return pad.deploy(
      env,
      lambda params, seen, rng: mode(params, seen[None])[0],
      adapter,
      params,
      looks,
      rng,
      rate=1e-3,
    ).reward

  @jax.jit
  def acting(rng):
    return environment.walk(
      env, lambda seen, rngs: mode(params, seen), looks, rng
    ).reward

  seconds = []

  def run(fn):
    start = time.perf_counter()
    jax.block_until_ready(fn(jax.random.key(0)))
    seconds.append(time.perf_counter() - start)
    return seconds[-1]

  cost = timing.alternate(rounds, lambda: run(adapting), lambda: run(acting))
  steps = _EPISODES * env.num_steps
  return {
    'steps_per_second': round(steps / float(np.median(seconds[2::2]))),
    'cost': round(cost, 2),
  }
