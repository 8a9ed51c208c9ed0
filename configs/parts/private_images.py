"""How the study of private fine-tuning learns images, and compares batches."""

from collections.abc import Sequence
from typing import Any

import optax

from configs.parts import private
from configs.parts import private_rates
from repjax import plots
from repjax.experiments import of_images
from repjax.protocols import finetuned_text
from repjax.protocols import private_runs
from repjax.protocols import side_by_side


def accuracy(
  config: Any, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of learning with noise and without."""
  train = of_images.load(config, config.data.train_split)
  test = of_images.load(config, config.data.eval_splits[0])
  features = private.features(config, train)
  columns = side_by_side.per_seed(side_by_side.rows(train, features), seeds)
  trained = {}
  for name, epsilon in (
    (f'epsilon {config.dp.epsilon:g}', config.dp.epsilon),
    ('without noise', float('inf')),
  ):
    plan = private.plan_of(config, len(train), epsilon=epsilon)
    trained[name] = private_runs.train(
      f'{config.data.name}, {name}',
      private.linear(
        config, train.num_classes, private.chain(config, plan, optax.adamw)
      ),
      columns,
      side_by_side.rows(test, features),
      plan=plan,
      seeds=seeds,
    )
  noisy, plain = (x.score for x in trained.values())
  scalars = {'image_accuracy': noisy, 'image_cost': plain - noisy}
  if config.data.name.startswith('mnist'):
    scalars['mnist_accuracy'] = noisy
  curves = {name: x.curve for name, x in trained.items()}
  drawn = plots.seed_curves(curves, ylabel='test accuracy', xlabel='step')
  return scalars, {'image_accuracy': drawn}


def batches(
  config: Any, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of small and of large batches of images, all rates."""
  group = config.study.batches
  train = of_images.load(config, config.data.train_split)
  test = of_images.load(config, config.data.eval_splits[0])
  features = private.features(config, train)
  rows = finetuned_text.hold_out(
    side_by_side.rows(train, features),
    side_by_side.rows(test, features),
    num_rows=group.num_held_out,
  )
  scalars, best = {}, {}
  for size in group.sizes:
    found = private_rates.choose(
      config,
      f'batches of {size}',
      rows,
      num_classes=train.num_classes,
      rates=group.rates,
      seeds=seeds,
      batch_size=size,
      epochs=group.epochs,
    )
    best[size] = found.scores
    scalars[f'batches of {size}: rate'] = [found.rate]
    for rate, scores in zip(group.rates, found.all_scores, strict=True):
      scalars[f'batches of {size}, rate {rate:g}: test accuracy'] = scores
  few, many = (best[size] for size in group.sizes)
  return {'image_large_batch_gain': many - few, **scalars}, {}
