"""How the study of private fine-tuning learns images, and compares batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from configs.parts import private
from repjax import plots
from repjax.experiments import of_images
from repjax.protocols import private_runs
from repjax.protocols import rate_search
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
  rows, test = (side_by_side.rows(x, features) for x in (train, test))
  count = len(train) - group.num_held_out
  held_out = {name: x[count:] for name, x in rows.items()}
  rows = {name: x[:count] for name, x in rows.items()}
  scalars, best = {}, {}
  for size in group.sizes:
    plan = private.plan_of(
      config, count, batch_size=size, epochs=group.epochs, sampling_rate=0.0
    )._replace(method='ghost')  # Runs side by side.
    tx = side_by_side.swept(
      private.updates(config, plan, optax.adamw, rate=1.0)
    )
    method = private.linear(
      config, train.num_classes, optax.chain(plan.link(), tx)
    )
    chosen, tested = [], []
    for seed in seeds:
      runs = (seed,) * len(group.rates)
      trained = private_runs.train(
        f'batches of {size}, seed {seed}',
        method,
        side_by_side.per_seed(rows, runs),
        held_out,
        plan=plan,
        seeds=runs,
        rates=group.rates,
        points=4,
      )
      chosen.append(trained.score)
      outputs = side_by_side.predict_fn(method)(trained.states, test)
      tested.append(side_by_side.accuracy(outputs, test))
    place = rate_search.best_mean(np.transpose(chosen))
    best[size] = np.asarray(tested)[:, place]
    scalars[f'batches of {size}: rate'] = [group.rates[place]]
    for rate, scores in zip(group.rates, np.transpose(tested), strict=True):
      scalars[f'batches of {size}, rate {rate:g}: test accuracy'] = scores
  few, many = (best[size] for size in group.sizes)
  return {'image_large_batch_gain': many - few, **scalars}, {}
