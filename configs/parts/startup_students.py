"""Students of STARTUP, all seeds side by side, and what judges them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import startup as recipe
from configs.parts import teachers
from configs.parts import two_domains
from repjax import trees
from repjax.data.images import views
from repjax.layers import layer_inputs
from repjax.methods import few_shot
from repjax.methods import startup
from repjax.protocols import on_episodes
from repjax.protocols import self_training
from repjax.protocols import side_by_side

SHOTS = (1, 5)
_CLASSIFIER = few_shot.logistic_regression()

# Weights of supervision, of distillation and of self-supervision.
TERMS = {
  'base rows alone': (1, 0, 0),
  'distillation alone': (0, 1, 0),
  'self-supervision alone': (0, 0, 1),
  'without self-supervision': (1, 1, 0),
  'without distillation': (1, 0, 1),
  'STARTUP': (1, 1, 1),
}


def student(config, name, learned, judged, taught, seeds, steps):
  """`seeing` of a student, states at the rate that was chosen for each, it."""
  temperature = config.objective.temperature
  objective = startup.Objective(*TERMS[name], temperature=temperature)
  tx = side_by_side.swept(teachers.links(config, 1.0, steps))
  method = recipe.method(config, tx, objective)
  begin = functools.partial(self_training.begin, take=config.student.take)
  loss = startup.held_out(
    two_domains.network(config),
    views=views.random_views(**config.views),
    objective=objective,
    projection_dim=config.student.projection_dim,
  )
  loss = jax.jit(jax.vmap(loss, (0, 0, None)))
  judged = {**judged, 'mask': np.ones(judged['label'].shape, np.float32)}
  states, chosen = self_training.train(
    name,
    method,
    jax.vmap(begin)(
      side_by_side.begin(method, learned, seeds), teachers.variables(taught)
    ),
    learned,
    held_out=lambda states: loss(states, judged, jax.random.key(0)),
    seeds=seeds,
    rates=config.rates,
    updates=config.study.updates,
    steps=steps,
    batch_size=config.batch_size,
    vectorize=False,
  )
  return seeing(method), states, chosen.rates


def seeing(method, change=lambda predict: predict):
  """(state, columns) -> 'logits', and 'features' that the head sees.

  Args:
    method: What predicts.
    change: What its predictions go through.
  """

  def predict(state, batch):
    outputs, features = layer_inputs.with_input_of(
      lambda: method.predict(state, batch), 'head'
    )
    return {'features': features, 'logits': outputs['logits']}

  @jax.jit
  def see(state, image, mask):
    return change(predict)(state, {'image': image, 'mask': mask})

  return lambda state, columns: jax.device_get(
    see(state, columns['image'], jnp.ones(len(columns['image'])))
  )


def judge(config, target, seeds, name, see, states):
  """Accuracy over episodes, (name, shots) -> [S]; the same for all names."""
  features = [
    see(state, rows)['features']
    for state, rows in zip(trees.unstack(states), target, strict=True)
  ]
  return {
    (name, shots): np.asarray(
      [
        on_episodes.mean_accuracy(
          x,
          rows['label'],
          _CLASSIFIER,
          shots=shots,
          seed=seed,
          **config.episodes,
        )
        for x, rows, seed in zip(features, target, seeds, strict=True)
      ]
    )
    for shots in SHOTS
  }
