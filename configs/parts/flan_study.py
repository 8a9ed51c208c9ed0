"""FLAN's study on digits: tasks told in one way, learned and asked for."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from configs.parts import instruction_tasks
from repjax import types
from repjax.data.sets import digit_maps
from repjax.data.text import instructions
from repjax.protocols import rank_classification
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Told(NamedTuple):
  """Tasks that are told in one way.

  Attributes:
    kind: How.
    suite: With rows to train on.
    data: The same, read.
    columns: Rows of all tasks as the model sees them.
    method: What learns them.
    ranker: What is asked for answers.
  """

  kind: digit_maps.Told
  suite: instructions.Suite
  data: instruction_tasks.Data
  columns: Mapping[str, np.ndarray]
  method: types.Method
  ranker: rank_classification.Ranker


def told(config, kind: digit_maps.Told) -> Told:
  """Rows of all tasks, whatever a seed holds out: they are written once."""
  suite = digit_maps.suite(
    told=kind, num_rows=config.data.num_rows, seed=config.seed
  )
  data = instruction_tasks.Data(
    train={x.name: x.examples() for x in suite.tasks},
    known=[],
    held_out=[],
    tokenizer=instruction_tasks.digit_words(kind),
  )
  model = instruction_tasks.network(config, data)
  return Told(
    kind,
    suite,
    data,
    _columns(config, data, [y for x in data.train.values() for y in x]),
    instruction_tasks.method(config, model, config.min_steps),
    rank_classification.Ranker(
      model,
      data.tokenizer,
      source_length=config.data.source_length,
      target_length=config.data.target_length,
      batch_size=256,
    ),
  )


def _columns(config, data, examples):
  columns = instruction_tasks.rows(config, data, examples).columns()
  return {k: x for k, x in columns.items() if k not in ('template', 'row')}


def arm(
  config, told: Told, seeds: Sequence[int], name: str, count: int
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
  """Trains on some of the tasks, all seeds side by side.

  Args:
    config: With the group `study`.
    told: The tasks.
    seeds: S of them; each holds out a cluster of its own.
    name: For the progress lines.
    count: Of the tasks that are trained on.

  Returns:
    (curve of held-out tasks, as `side_by_side.Trained` has it; name -> share of
    right answers, [S]).
  """
  suite, data = told.suite, told.data
  # A cluster of each seed's own.
  clusters = [suite.clusters[x % len(suite.clusters)] for x in seeds]
  trained_on = [[x.name for x in suite.training(y)[:count]] for y in clusters]
  order = np.stack(
    [
      order_of(config, told, names, seed)
      for names, seed in zip(trained_on, seeds, strict=True)
    ]
  )
  fresh = {
    seed: digit_maps.suite(
      told=told.kind,
      num_rows=2 * config.study.num_ranked,
      seed=seed + instruction_tasks.EVALUATION,
    )
    for seed in seeds
  }
  some = [y for x in fresh[seeds[0]].tasks for y in x.examples()]
  test = _columns(config, data, some)
  hidden = np.stack(
    [
      np.isin(test['task'], _numbers(data, [x.name for x in suite.held_out(y)]))
      for y in clusters
    ]
  )

  def held_out(outputs, test):
    del test  # What is hidden differs between seeds.
    right = outputs['hits'] == outputs['tokens']
    return (right * hidden).sum(1) / hidden.sum(1)

  trained = side_by_side.train(
    name,
    told.method,
    {},
    test,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=config.min_steps,
    points=6,
    shared=told.columns,
    score=held_out,
    order=order,
  )
  rows = [
    _ranked(
      told.ranker,
      {'params': jax.tree.map(lambda x, i=i: x[i], trained.states.params)},
      fresh[seed].held_out(clusters[i]),
      [x for x in fresh[seed].tasks if x.name in trained_on[i][:6]],
      config.study.num_ranked,
    )
    for i, seed in enumerate(seeds)
  ]
  return trained.curve, {x: np.array([y[x] for y in rows]) for x in rows[0]}


def _numbers(data, names):
  return [data.names.index(x) for x in names]


def order_of(config, told, names, seed):
  """Shuffled epochs of the rows of some tasks, [T, B]."""
  rows = np.flatnonzero(
    np.isin(told.columns['task'], _numbers(told.data, names))
  )
  epochs = seed_loop.epochs(
    len(rows), [seed], steps=config.min_steps, batch_size=config.batch_size
  )
  return rows[epochs[0]]


def _ranked(ranker, variables, other, known, half):
  """Right answers of one model among options: name -> share."""

  def by_template(tasks, rows):
    examples = [
      [y for x in tasks for y in x.told_by(number)[rows]]
      for number in range(len(tasks[0].templates))
    ]
    flat = [x for part in examples for x in part]
    chosen = ranker.choices(
      variables, [x.source for x in flat], [x.options for x in flat]
    )
    hits = [x.options[i] == x.target for x, i in zip(flat, chosen, strict=True)]
    return np.reshape(hits, (len(examples), -1)).mean(1)

  scores = by_template(other, slice(half))
  best = by_template(other, slice(half, None)).argmax()
  return {
    'held out': scores.mean(),
    'best template': scores[best],
    'trained on': by_template(known, slice(half)).mean(),
  }
