"""Private training as a config says: the plan, its optimizer, images."""

from typing import Any

import jax
import optax

from configs.parts import unread
from repjax import types
from repjax.data.images import oriented_gradients
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.experiments import of_images
from repjax.experiments import private
from repjax.experiments import private_sizes
from repjax.experiments import wiring
from repjax.methods import supervised
from repjax.models import mlp

# The batch_size of presets with a sampling_rate, beside which nothing reads it.
UNREAD_BATCH_SIZE = 256


def plan_of(config, num_rows: int, **changes: Any) -> private.Plan:
  """The plan of a run on `num_rows` rows or users.

  Args:
    config: With batch_size, epochs, seed, step.microbatches and the group `dp`,
      arguments of `private.plan`.
    num_rows: Of the training set, or its users.
    **changes: Arguments of `private.plan` over those of the config.

  Raises:
    InputError: If batch_size says something else than the sampling_rate.
  """
  _check_size(
    num_rows, **{'batch_size': config.batch_size, **config.dp, **changes}
  )
  plan = private.plan(
    num_rows,
    **{
      'batch_size': config.batch_size,
      'epochs': config.epochs,
      'seed': config.seed,
      'multiple': jax.device_count() * config.step.microbatches,
      'nonce': b'',  # Drawn when a run begins.
      **config.dp,
      **changes,
    },
  )
  private_sizes.check_steps(plan.steps, config.epochs, config.min_steps)
  return plan


def plan_on(config, train: source.Source) -> private.Plan:
  """The plan of a run on training rows, or on their users."""
  return plan_of(config, private.count(train, config.dp.user_column))


def _check_size(num_rows, *, batch_size, sampling_rate, **unused):
  """Refuses a batch size beside a rate that says something else."""
  del unused
  if not 0 < sampling_rate <= 1:
    return
  expected = max(1, round(sampling_rate * num_rows))
  if batch_size not in (expected, UNREAD_BATCH_SIZE):
    raise types.InputError(
      f'config.batch_size={batch_size} counts for nothing beside '
      f'config.dp.sampling_rate={sampling_rate}, by which a batch of '
      f'{num_rows} has {expected} on average: set '
      f'--config.dp.sampling_rate=0, or --config.batch_size={expected}.'
    )


def updates(
  config, plan: private.Plan, optimizer: types.Optimizer, *, rate: float
) -> optax.GradientTransformation:
  """What follows the private gradient.

  Args:
    config: With the group `tx`: decay ('linear' or 'constant') and
      weight_decay.
    plan: Of the run.
    optimizer: Like `optax.adamw`.
    rate: Its learning rate, the first one where it falls.
  """
  tx = config.tx
  if tx.decay == 'linear':
    rate = optax.linear_schedule(rate, 0.0, plan.steps)
  elif tx.decay != 'constant':
    raise types.InputError(
      f"config.tx.decay is 'linear' or 'constant'; got {tx.decay!r}."
    )
  return optimizer(rate, weight_decay=tx.weight_decay)


def chain(
  config, plan: private.Plan, optimizer: types.Optimizer
) -> optax.GradientTransformationExtraArgs:
  """The private gradient, then `updates` at the config's rate."""
  return optax.chain(
    plan.link(), updates(config, plan, optimizer, rate=config.tx.learning_rate)
  )


def images(config, optimizer: types.Optimizer) -> types.Experiment:
  """Learns the classes of images from their oriented gradients."""
  unread.refuse_text(config, 'what images are learned with reads no text')
  if config.adapter.kind != 'full':
    raise types.InputError(
      f'config.adapter.kind={config.adapter.kind!r} is for text: images are '
      "learned with a linear model; leave it 'full'."
    )
  train = of_images.load(config, config.data.train_split)
  plan = plan_on(config, train)
  seen = features(config, train)
  recipe = transforms.AS_IT_IS._replace(train=seen, evaluate=seen)
  experiment = of_images.classifier(
    config,
    of_images.Data(train, recipe, plan.steps),
    linear(config, train.num_classes, chain(config, plan, optimizer)),
    batches=plan.batches(train, **wiring.reading(config, recipe)),
  )
  return plan.guarded(experiment)


def features(config, rows: source.Source) -> transforms.Transform:
  """What a linear model sees of images."""
  rows.check_images()
  if rows.image_shape is None:
    raise types.InputError(
      f'The images of {rows.name} differ in size: '
      "config.data.kind='images' takes sets whose images have one size."
    )
  height, width, _ = rows.image_shape
  # Seven cells a side or a few more, or cells of two pixels in tiny images.
  most = max(2, height // 7)
  cell = max(x for x in range(1, most + 1) if height % x == width % x == 0)
  return oriented_gradients.oriented_gradients(cell=cell, bins=config.bins)


def linear(
  config, num_classes: int, tx: optax.GradientTransformation
) -> types.Method:
  """A linear model, trained by a private `chain`."""
  return supervised.make(mlp.Mlp(num_classes, features=()), tx, **config.step)
