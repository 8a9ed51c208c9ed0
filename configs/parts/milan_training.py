"""Trains what MILAN's study needs: encoder, describers, classifiers.

Hernandez et al., ICLR 2022. https://arxiv.org/abs/2201.11114
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import numpy as np
import optax

from configs.parts import described_units as parts
from configs.parts import encoders
from configs.parts import milan_subjects as subjects
from configs.parts import planted_captions
from repjax import trees
from repjax import types
from repjax.analysis import milan
from repjax.data.sets import scenes
from repjax.experiments import wiring
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Trained(NamedTuple):
  """What is trained for all seeds.

  Attributes:
    encoder: One for all.
    units: Planted units with captions, of each seed.
    describers: States, of each seed.
    method: Of the classifiers.
    clean: States of classifiers to which letters tell nothing.
    marked: States of those to which they tell the class.
  """

  encoder: encoders.Encoder
  units: list[planted_captions.Captioned]
  describers: list[types.TrainState]
  method: types.Method
  clean: list[types.TrainState]
  marked: list[types.TrainState]

  def subject(self, config, i: int):
    """Of seed i: what describes, what predicts, and its two classifiers."""
    describe = describe_fn(config, self.units[i], self.describers[i])
    return describe, self.method.predict, (self.clean[i], self.marked[i])


def everything(config, seeds: Sequence[int]) -> Trained:
  """Trains all of it, seeds side by side."""
  planted_captions.check(config)
  seen_by = encoder(config)
  units = [planted_captions.draw(config, seen_by, seed) for seed in seeds]
  states = describers(config, units, seeds)
  method = subjects.classifier(config, 'subject', subjects.num_classes(config))
  clean, marked = (
    classifiers(config, method, seeds, tells=x) for x in (False, True)
  )
  return Trained(seen_by, units, states, method, clean, marked)


def encoder(config) -> encoders.Encoder:
  """One network, trained to tell things apart."""
  chosen = config.teacher
  if config.data.name == 'scenes':
    shown = scenes.draw(
      chosen.rows,
      seed=[7, chosen.rows],
      num_things=1,
      noise=config.planted.noise,
    )
    images = subjects.Marked(shown.image, subjects.kinds_and_fillings(shown))
  else:
    images = subjects.labelled(config, 'train', 7, chosen.rows)
  rows = subjects.rows_of(config, images)
  trained = side_by_side.train(
    'encoder',
    subjects.classifier(config, 'teacher', config.encoder.num_classes),
    {},
    {name: x[:500] for name, x in rows.items()},
    seeds=(0,),
    batch_size=config.batch_size,
    steps=chosen.steps,
    points=2,
    shared=rows,
    vectorize=False,
  )
  state = jax.tree.map(lambda x: x[0], trained.states)
  return encoders.build(config, {'params': state.params, **state.model_state})


def describers(
  config,
  units: Sequence[planted_captions.Captioned],
  seeds: Sequence[int],
) -> list[types.TrainState]:
  """States of the two models, one a seed, side by side."""
  count = min(len(x.train['tokens']) for x in units)
  rng = np.random.default_rng(0)
  chosen = [rng.permutation(len(x.train['tokens']))[:count] for x in units]
  columns = {
    name: np.stack(
      [x.train[name][rows] for x, rows in zip(units, chosen, strict=True)]
    )
    for name in units[0].train
  }
  steps = wiring.steps_of(config, count)
  method = parts.method(config, units[0], steps, optax.adamw)
  fresh = side_by_side.begin(method, columns, seeds)
  order = seed_loop.epochs(
    count, seeds, steps=steps, batch_size=config.batch_size
  )
  *_, (_, states, means) = seed_loop.fit(
    method, fresh, columns, order, seeds=seeds, every=steps
  )
  logging.info('describers: loss %.3f', means['loss'].mean())
  return trees.unstack(states)


def classifiers(
  config, method: types.Method, seeds: Sequence[int], *, tells: bool
) -> list[types.TrainState]:
  """States of classifiers, one a seed; letters tell classes or nothing."""
  rows = [
    subjects.rows_of(
      config, subjects.marked_part(config, 'train', x, tells=tells)
    )
    for x in seeds
  ]
  trained = side_by_side.train(
    f'letters tell {"the class" if tells else "nothing"}',
    method,
    {name: np.stack([x[name] for x in rows]) for name in rows[0]},
    {name: x[:200] for name, x in rows[0].items()},
    seeds=seeds,
    batch_size=config.batch_size,
    steps=config.subject.steps,
    points=2,
    vectorize=False,
  )
  return trees.unstack(trained.states)


def describe_fn(
  config, units: planted_captions.Captioned, state: types.TrainState
):
  """Features of exemplars [U, K, D] -> their descriptions, by PMI."""

  def describe(features):
    return milan.describe(
      parts.model(config, units.tokenizer.vocab_size),
      {'params': state.params},
      features,
      units.tokenizer,
      length=config.units.length - 1,
      width=config.describing.width,
      strength=config.describing.strength,
    )

  return describe
