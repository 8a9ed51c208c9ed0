"""Soft actor-critic (Haarnoja et al., 2018): acts, remembers, learns.

    python -m launch.train --config=configs/sac.py:small --workdir=runs/swing

trains an agent that swings a pendulum up, and

    python -m launch.reproduce --papers=sac

measures what it takes (`configs/studies/sac.py`).
https://arxiv.org/abs/1812.05905

paper: networks, rates and one update a step as in the paper, on states of the
  DeepMind Control suite in place of Gym's (extra `dmcontrol`; config.data.name
  is a domain and a task, such as walker-walk).
small: the pendulum, in JAX.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import acting
from configs.parts import control
from repjax import types
from repjax.models import agent as agents

PRESETS = dict(
  paper=dict(
    batch_size=256,
    min_steps=1_000_000,
    data=dict(name='cheetah-run'),
    # Worlds side by side, and steps that an action is repeated for.
    world=dict(num=1, num_steps=1000, action_repeat=1),
    # Table 1; the range is PAD's, and how many steps go by chance is not there.
    agent=dict(features=(256, 256), log_std=(-10.0, 2.0)),
    tx=dict(learning_rate=3e-4, temperature_rate=3e-4, temperature_b1=0.9),
    sac=dict(discount=0.99, temperature=1.0, critic_decay=0.995, every=1),
    act=dict(first=10_000, steps=1, updates=1, capacity=1_000_000, episodes=10),
    run=dict(eval_every=10_000, save_every=10_000, best='return'),
  ),
  small=dict(
    batch_size=128,
    min_steps=8000,
    data=dict(name='pendulum'),
    world=dict(num=4, num_steps=200, action_repeat=1),
    agent=dict(features=(64, 64)),
    tx=dict(learning_rate=1e-3, temperature_rate=1e-3),
    # Four updates for four worlds' step.
    act=dict(first=250, steps=1, updates=4, capacity=20_000, episodes=20),
    run=dict(log_every=500, eval_every=1000, save_every=1000),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=12,
    world=dict(num_steps=10),
    agent=dict(features=(8,)),
    act=dict(first=5, capacity=100, episodes=2),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One run: an agent that acts in its worlds beside its updates."""
  worlds = control.worlds(config, column='features')
  model = network(config, worlds.action_dim)
  method = acting.learner(
    config,
    model,
    optimizer,
    action_dim=worlds.action_dim,
    column='features',
  )
  return acting.experiment(config, model, method, worlds)


def network(config, action_dim: int) -> agents.Agent:
  """An actor and two critics of features."""
  net = config.agent

  def trunk(out):
    return agents.Trunk(out, net.features)

  none = agents.Projection(0)
  return agents.Agent(
    agents.Flat(),
    agents.Actor(none, trunk(2 * action_dim), log_std_range=net.log_std),
    agents.Critic(none, trunk(1), trunk(1)),
  )
