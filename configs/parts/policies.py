"""How policies that see pictures come about: cloned, or learned by acting."""

import optax

from configs.parts import acting as acting_part
from configs.parts import control
from repjax import types
from repjax.experiments import wiring
from repjax.methods import behaviour_cloning


def cloning(config, optimizer: types.Optimizer = optax.adam) -> types.Method:
  """Cloning, and the task beside it."""
  return behaviour_cloning.make(
    control.network(config),
    optimizer(config.tx.learning_rate),
    task=control.task_loss(config),
    task_weight=config.task.weight,
    **config.step,
  )


def cloned(config, optimizer: types.Optimizer = optax.adam) -> types.Experiment:
  """A run that clones the teacher."""
  train = control.rows(config, config.data.train_split)
  return wiring.of_sources(
    config,
    cloning(config, optimizer),
    batches=wiring.shuffled(config, train),
    sources=lambda split: control.rows(config, split),
    steps=wiring.steps_of(config, len(train)),
    measure=lambda outputs, columns: {'error': float(outputs['error'].mean())},
    figures=lambda source, outputs, columns: {},
  )


def acting(config, optimizer: types.Optimizer = optax.adam) -> types.Experiment:
  """A run that learns from rewards, beside the task, from pictures."""
  weight = config.task.weight
  if weight not in (0.0, 1.0):
    raise types.InputError(
      f'config.task.weight={weight:g} weighs the task beside cloning; with '
      "config.trained_by='sac' it has an optimizer of its own: 1, or 0 for no "
      'task.'
    )
  worlds = control.worlds(config, column='image')
  dim, view = worlds.action_dim, control.view(config)
  model = control.network(config, action_dim=dim)
  learner = acting_part.learner(
    config,
    model,
    optimizer,
    action_dim=dim,
    task=control.task_loss(config, action_dim=dim) if weight else None,
    transform=control.crop(config),
    view=view,
  )
  return acting_part.experiment(config, model, learner, worlds, view=view)
