"""PAD (Hansen et al., ICLR 2021): a deployed policy adapts by itself.

    python -m launch.reproduce --papers=pad

measures the claims (`configs/studies/pad.py`): what a policy earns in worlds
that look otherwise than in training, with and without the adaptation, and what
that costs in the world of training. https://arxiv.org/abs/2007.04309

paper: the authors' networks and deployment (11 convolutions, 32 crops of one
  transition, Adam). Their worlds are those of the DeepMind Control suite; there
  is no reader of them here, and the preset says so.
small: a point that circles a mark, in pictures of 16 x 16 pixels. The policy is
  cloned from a teacher, beside the same self-supervised task. All heads share
  one projection, and adaptation is plain gradient descent on one transition.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import control
from repjax import types
from repjax.experiments import wiring
from repjax.methods import behaviour_cloning

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=500,
    epochs=0.0,
    min_steps=500_000,
    data=dict(name='dm_control', eval_splits=('validation',)),
    world=dict(size=100, num_steps=250),
    # Eleven convolutions, of which the task shares the first eight, and a
    # projection for each head.
    agent=dict(
      channels=(32,) * 8,
      strides=(2,) + (1,) * 7,
      width=0,
      own_channels=(32,) * 3,
      own_width=100,
      features=(1024, 1024),
      unfolded=False,
    ),
    task=dict(name='inverse_dynamics', weight=1.0),
    tx=dict(learning_rate=1e-3),
    pad=dict(optimizer='adam', copies=32, crop=84, padding=0),
    run=dict(best='validation/error', best_mode='min'),
  ),
  small=dict(
    batch_size=128,
    min_steps=2000,
    data=dict(name='point_mass', episodes=60, noise=0.5, random=0.3),
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
    run=dict(log_every=200, eval_every=500, save_every=500),
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
  """One run: clones the teacher, beside the task."""
  train = control.rows(config, config.data.train_split)
  return wiring.of_sources(
    config,
    method(config, optimizer),
    batches=wiring.shuffled(config, train),
    sources=lambda split: control.rows(config, split),
    steps=wiring.steps_of(config, len(train)),
    measure=lambda outputs, columns: {'error': float(outputs['error'].mean())},
    figures=lambda source, outputs, columns: {},
  )


def method(config, optimizer: types.Optimizer = optax.adam) -> types.Method:
  """Cloning, and the task beside it."""
  return behaviour_cloning.make(
    control.network(config),
    optimizer(config.tx.learning_rate),
    task=control.task_loss(config),
    task_weight=config.task.weight,
    **config.step,
  )
