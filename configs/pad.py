"""PAD (Hansen et al., ICLR 2021): a deployed policy adapts by itself.

    python -m launch.reproduce --papers=pad

measures the claims (`configs/studies/pad.py`): what a policy earns in worlds
that look otherwise than in training, with and without the adaptation, and what
that costs in the world of training. https://arxiv.org/abs/2007.04309

paper: the authors' networks, soft actor-critic and deployment (11 convolutions,
  32 crops of one transition, Adam), in the DeepMind Control suite (extra
  `dmcontrol`; config.data.name is a domain and a task); its study deploys runs
  that were trained before (--data_dir, `configs/parts/suite_study.py`).
paper_cartpole: the same in cartpole, where actions are repeated 8 times.
small: a point that circles a mark, in pictures of 16 x 16 pixels. The policy is
  cloned from a teacher, beside the same self-supervised task. All heads share
  one projection, and adaptation is plain gradient descent on one transition.
sac: the same point; its policy is learned from rewards, and after 4,000 steps
  earns 95 (by chance 9, the teacher 90).
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import policies
from repjax import types

PRESETS: presets.Layer = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=500,
    epochs=0.0,
    min_steps=500_000,
    data=dict(name='walker-walk', eval_splits=('validation',)),
    trained_by='sac',
    world=dict(num=1, size=100, num_steps=250, action_repeat=4, stack=3),
    # Actor and critic share eleven convolutions, of which the task shares the
    # first eight and has the last three for itself; each has a projection.
    agent=dict(
      channels=(32,) * 11,
      strides=(2,) + (1,) * 10,
      width=0,
      own_channels=(32,) * 3,
      own_width=100,
      features=(1024, 1024),
      unfolded=False,
    ),
    task=dict(name='inverse_dynamics', weight=1.0),
    tx=dict(learning_rate=1e-3, temperature_rate=1e-4, temperature_b1=0.5),
    sac=dict(
      discount=0.99,
      temperature=0.1,
      critic_decay=0.99,
      encoder_decay=0.95,
      every=2,
    ),
    act=dict(first=1000, steps=1, updates=1, capacity=500_000, episodes=10),
    pad=dict(optimizer='adam', copies=32, crop=84, padding=0),
    run=dict(
      eval_every=100_000, save_every=20_000, best='return', best_mode='max'
    ),
  ),
  small=dict(
    batch_size=128,
    min_steps=2000,
    data=dict(name='point_mass', episodes=60, noise=0.5, random=0.3),
    trained_by='behaviour_cloning',
    world=dict(size=16, num_steps=100),
    agent=dict(
      channels=(8, 16, 16),
      strides=(2, 2, 1),
      width=32,
      own_channels=(),
      own_width=0,
      features=(64,),
      unfolded=True,
    ),
    pad=dict(optimizer='sgd', copies=1, crop=0),
    run=dict(
      log_every=200,
      eval_every=500,
      save_every=500,
      best='validation/error',
      best_mode='min',
    ),
  ),
  paper_cartpole=dict(
    on='paper',
    data=dict(name='cartpole-swingup'),
    world=dict(num_steps=125, action_repeat=8),
  ),
  sac=dict(
    on='small',
    trained_by='sac',
    min_steps=4000,
    world=dict(num=4),
    act=dict(first=250, steps=1, updates=4, capacity=20_000, episodes=20),
    run=dict(
      log_every=500,
      eval_every=1000,
      save_every=1000,
      best='return',
      best_mode='max',
    ),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    data=dict(episodes=2),
    world=dict(num_steps=20),
    agent=dict(channels=(4, 4), strides=(2, 2), width=8, features=(8,)),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adam
) -> types.Experiment:
  """One run: clones the teacher or learns by acting, beside the task."""
  kinds = dict(behaviour_cloning=policies.cloned, sac=policies.acting)
  kind = presets.choose('trained_by', config.trained_by, kinds)
  return kind(config, optimizer)
