"""FLAN's study on real text: a cluster that no seed is trained on."""

from collections.abc import Sequence

import jax
import numpy as np

from configs.parts import instruction_tasks
from repjax import types
from repjax.data.batches import mixtures
from repjax.data.text import instruction_rows
from repjax.data.text import option_rows
from repjax.protocols import rank_classification
from repjax.protocols import side_by_side


def measure(config, seeds: Sequence[int]) -> dict[str, np.ndarray]:
  """Ranks options of other rows, before and after training.

  Args:
    config: With the group `study`, of real text.
    seeds: S of them, side by side.

  Returns:
    Name -> share of right answers, [S], over templates and tasks.
  """
  found = {}
  for told in ('instruction', 'name'):
    made = config.copy_and_resolve_references()
    made.data.told = told
    found |= {
      f'{told}, {name}': x for name, x in _arm(made, told, seeds).items()
    }
  return found


def _arm(config, told, seeds):
  data = instruction_tasks.read(config)
  model = instruction_tasks.network(config, data)
  method = instruction_tasks.method(config, model, config.min_steps)
  # As one run has them, and in an order of each seed's own.
  batches = instruction_tasks.batches(config, data)
  columns = _columns(batches.source)
  steps, size = config.min_steps, config.batch_size
  order = [
    mixtures.drawn_rows(
      np.random.default_rng([seed, steps]).random((steps * size, 2)),
      rates=batches.rates,
      sizes=batches.sizes,
    ).reshape(steps, size)
    for seed in seeds
  ]
  known = instruction_tasks.rows(config, data, data.known)
  trained = side_by_side.train(
    f'real text, {told}',
    method,
    {},
    _columns(known.select(np.arange(min(len(known), 256)))),
    seeds=seeds,
    batch_size=size,
    steps=steps,
    points=6,
    shared=columns,
    score=right,
    states=_begin(config, method, columns, seeds),
    order=np.stack(order),
  )
  suite = instruction_tasks.suite(config, fresh=True)
  tasks = {
    'held out': suite.held_out(config.data.held_out),
    'trained on': suite.training(config.data.held_out),
  }
  asked = {
    x: option_rows.by_each_template(y, cap=config.study.num_ranked)
    for x, y in tasks.items()
  }
  options = {z for x in asked.values() for y in x for z in y.options}
  ranker = rank_classification.Ranker(
    model,
    data.tokenizer,
    source_length=config.data.source_length,
    target_length=max(
      len(instruction_rows.target_ids(x, data.tokenizer)) for x in options
    ),
    batch_size=32,
  )
  untuned = _begin(config, method, columns, seeds)
  return {
    f'{when}, {name}': np.array(
      [_share(ranker, states, i, examples) for i in range(len(seeds))]
    )
    for when, states in (('untuned', untuned), ('tuned', trained.states))
    for name, examples in asked.items()
  }


def _begin(config, method, columns, seeds) -> types.TrainState:
  """Fresh states, or published weights for each seed."""
  states = side_by_side.begin(method, {}, seeds, shared=columns)
  if not config.weights:
    return states
  begun = [
    instruction_tasks.begin(config, jax.tree.map(lambda x, i=i: x[i], states))
    for i in range(len(seeds))
  ]
  return jax.tree.map(lambda *x: np.stack(x), *begun)


def right(outputs, test) -> np.ndarray:
  """Share of rows that are written right token by token, [S]."""
  del test  # Outputs say it.
  return (outputs['hits'] == outputs['tokens']).mean(-1)


def _columns(source):
  names = ('source', 'source_mask', 'tokens', 'weights')
  packed = ('segments', 'source_segments')
  columns = source.columns()
  return {k: columns[k] for k in (*names, *packed) if k in columns}


def _share(ranker, states, place, examples) -> float:
  """Right answers of one model."""
  variables = {'params': jax.tree.map(lambda x: x[place], states.params)}
  chosen = ranker.choices(
    variables, [x.source for x in examples], [x.options for x in examples]
  )
  return rank_classification.accuracy(examples, chosen)
