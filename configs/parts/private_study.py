"""How the study of private fine-tuning compares its arms on text."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import optax

from configs.parts import private
from configs.parts import text_tasks
from repjax import plots
from repjax.data.sets import topic_tasks
from repjax.models import text_heads
from repjax.protocols import finetuned_text
from repjax.protocols import private_text


def topics(config: Any, seeds: Sequence[int]):
  """(scalars, figures) of batches and rates, and of two encoders.

  Whether the larger one is better under privacy is not measured where it is
  worse without. Each encoder is pretrained once, for all seeds: intervals are
  of heads, orders and noise, and not of pretraining.
  """
  group = config.study
  task = _task(config)
  rows = finetuned_text.hold_out(
    task.train, task.test, num_rows=group.num_held_out
  )
  encoders = dict(small=group.small, large=group.large)
  pretrained = {
    size: private_text.pretrain(
      task, encoder, seed=config.seed, **group.pretraining
    )
    for size, encoder in encoders.items()
  }

  def tune(size, batch_size, epsilon):
    plan = private.plan_of(
      config,
      len(rows.train['label']),
      batch_size=batch_size,
      sampling_rate=0.0,
      **{**group.privacy, 'epsilon': epsilon},
    )
    return private_text.trainer(
      _name(size, batch_size, epsilon),
      text_heads.Classifier(
        task.vocab_size,
        num_classes=task.num_classes,
        pool='mean',
        pooler=False,
        **encoders[size],
      ),
      lambda own: {**own, **pretrained[size]},
      rows,
      plan=plan,
      tx=private.updates(config, plan, optax.adamw, rate=1.0),
      adapter=group.adapter,
      # Of a large batch one run alone keeps all cores busy, and 15 runs side by
      # side need 15 times the memory.
      vectorize=batch_size < 512,
    )(seeds, group.rates)

  few, many = group.small_batch, group.large_batch
  noisy, plain = group.privacy.epsilon, math.inf
  arms = {
    arm: tune(*arm)
    for arm in (
      ('small', few, noisy),
      ('small', many, noisy),
      ('small', many, plain),
      ('large', many, plain),
    )
  }

  def at_best(*arm):
    return arms[arm][private_text.best_rate(arms[arm])].score

  def larger(epsilon):
    return at_best('large', many, epsilon) - at_best('small', many, epsilon)

  gain = []
  if larger(plain).mean() >= 0:
    arms['large', many, noisy] = tune('large', many, noisy)
    gain = larger(noisy)
  scalars = {
    'large_batch_gain': at_best('small', many, noisy)
    - at_best('small', few, noisy),
    'recipe_gain': arms['small', many, noisy][group.high_rate].score
    - arms['small', few, noisy][group.low_rate].score,
    'large_model_plain_gain': larger(plain),
    'large_model_gain': gain,
  }
  curves = {}
  for arm, tuned in arms.items():
    best = private_text.best_rate(tuned)
    scalars[f'text, {_name(*arm)}: rate'] = np.full(len(seeds), best)
    for rate, found in tuned.items():
      name = f'{_name(*arm)}, rate {rate:g}'
      scalars[f'text, {name}, accuracy'] = found.score
      # Over epochs, since runs have different numbers of steps.
      share, accuracy = found.curve
      if rate == best:
        curves[name] = (share * group.privacy.epochs, accuracy)
  drawn = plots.seed_curves(curves, ylabel='test accuracy', xlabel='epochs')
  return scalars, {'text_accuracy': drawn}


def _task(config):
  """Texts of `config.data` if that has any, else of `python_topics`."""
  if config.data.kind != 'sentences':
    return topic_tasks.largest_or_not(topic_tasks.read(**config.study.text))
  read = text_tasks.read(config)
  return topic_tasks.Task(
    read.tokenizer.vocab_size,
    read.num_classes,
    read.public,
    read.train.columns(),
    read.sources(config.data.eval_splits[0]).columns(),
  )


def _name(size, batch_size, epsilon):
  return f'{size} encoder, batch {batch_size}, epsilon {epsilon:g}'
