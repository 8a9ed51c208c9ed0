"""Instruction tuning: suites of tasks, rows of them, the model, evaluations."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np
import optax

from configs import presets
from repjax import optim
from repjax import start
from repjax import types
from repjax.data.batches import in_order
from repjax.data.batches import mixtures
from repjax.data.reading import source as sources
from repjax.data.sets import digit_maps
from repjax.data.text import instructions
from repjax.data.text import published_tokens
from repjax.data.text import tokens
from repjax.experiments import wiring
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import instruction_tuning
from repjax.models import t5
from repjax.models import t5_block
from repjax.weights import packaged
from repjax.weights import t5_weights

# Rows of evaluation have seeds of their own.
_EVALUATION = 1_000_003


class Data(NamedTuple):
  """What a config says about its data, read.

  Attributes:
    train: Examples of each task that is trained on.
    known: Other rows of these tasks.
    held_out: Rows of the tasks that are not trained on.
    tokenizer: What makes ids of them.
  """

  train: dict[str, list[instructions.Example]]
  known: list[instructions.Example]
  held_out: list[instructions.Example]
  tokenizer: tokens.Tokenizer

  @property
  def names(self) -> list[str]:
    """All tasks, in the order of their numbers."""
    return sorted({*self.train, *(x.task for x in self.held_out)})


def read(config) -> Data:
  """The tasks of a config, without those that are held out."""
  kinds = dict(digit_maps=_digit_maps, jsonl=_jsonl)
  return presets.choose('data.kind', config.data.kind, kinds)(config)


def _digit_maps(config):
  data, size = config.data, config.data.num_rows

  def suite(seed, num_rows):
    return digit_maps.suite(told=data.told, num_rows=num_rows, seed=seed)

  training = suite(config.seed, size).training(data.held_out)
  training = training[: data.num_tasks or None]
  held_out, known = evaluated(config, num_rows=data.num_eval_rows)
  return Data(
    {x.name: x.examples(cap=data.cap) for x in training},
    [y for x in known for y in x.examples()],
    [y for x in held_out for y in x.examples()],
    _learned(config, suite(0, 20).tasks),
  )


def evaluated(
  config, *, num_rows: int
) -> tuple[list[instructions.Task], list[instructions.Task]]:
  """Tasks of digit_maps with new rows: (held out, trained on)."""
  data = config.data
  suite = digit_maps.suite(
    told=data.told, num_rows=num_rows, seed=config.seed + _EVALUATION
  )
  trained = suite.training(data.held_out)[: data.num_tasks or None]
  return suite.held_out(data.held_out), trained


def _jsonl(config):
  data = config.data
  if not data.file:
    raise types.InputError(
      'config.data.file names the JSONL file with the examples (a line each: '
      'inputs, targets, task, options)'
    )
  found = instructions.read_jsonl(data.file)
  held = {x.strip() for x in data.held_out.split(',') if x.strip()}
  if not held <= set(found) or held == set(found):
    raise types.InputError(
      f'config.data.held_out={sorted(held)} must be some of the tasks of '
      f'{data.file}, and not all: {sorted(found)}'
    )
  train, known = {}, []
  for name, rows in found.items():
    if name not in held:
      # The last ones of each task are kept for evaluation.
      count = min(data.num_eval_rows, len(rows) // 5)
      train[name] = rows[: len(rows) - count][: data.cap]
      known += rows[len(rows) - count :]
  tokenizer: tokens.Tokenizer
  if config.weights:
    tokenizer = published_tokens.Published.load(packaged.folder(config.weights))
  else:
    texts = [y for rows in train.values() for x in rows for y in x[:2]]
    tokenizer = tokens.Subwords.train(texts, vocab_size=data.vocab_size)
  return Data(
    train, known, [x for name in sorted(held) for x in found[name]], tokenizer
  )


def _learned(config, tasks):
  texts = [y for task in tasks for x in task.examples() for y in x[:2]]
  return tokens.Subwords.train(texts, vocab_size=config.data.vocab_size)


def rows(
  config, data: Data, examples: Sequence[instructions.Example]
) -> sources.Source:
  """Examples as rows of the model."""
  return instructions.encoded(
    examples,
    data.tokenizer,
    source_length=config.data.source_length,
    target_length=config.data.target_length,
    tasks=data.names,
  )


def batches(config, data: Data) -> in_order.TrainBatches:
  """Tasks in proportion to their rows, up to data.mixing_cap."""
  parts = [rows(config, data, x) for x in data.train.values()]
  sizes = np.array([len(x) for x in parts])
  plain = in_order.train_batches(
    mixtures.union(parts),
    batch_size=config.batch_size,
    seed=config.seed,
    **wiring.reading(config),
  )
  rates = instructions.mixing_rates(sizes, cap=config.data.mixing_cap)
  return plain.extended(mixtures.MixtureBatches, rates=rates, sizes=sizes)


def network(config, data: Data) -> t5.T5:
  """T5, of published weights or of the config's size."""
  if config.weights:
    return t5_weights.model(packaged.folder(config.weights))
  model = config.model.to_dict()
  layers = {
    x: model.pop(x) for x in ('num_layers', 'num_decoder_layers') if x in model
  }
  return t5.T5(
    data.tokenizer.vocab_size, config=t5_block.LayerConfig(**model), **layers
  )


def method(
  config,
  model: t5.T5,
  steps: int,
  optimizer: types.Optimizer = optax.adamw,
) -> types.Method:
  """Cross-entropy of targets, at a rate that falls as a cosine."""
  tx = config.tx
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=0.0
  )
  return instruction_tuning.make(
    finetuning.adapt(model, **config.adapter),
    optax.chain(
      optim.sam(config.sam.rho) if config.sam.rho else optax.identity(),
      optax.clip_by_global_norm(tx.clip),
      optimizer(rate, weight_decay=tx.weight_decay),
    ),
    mean=config.mean,
    **config.step,
  )


def begin(config, state: types.TrainState) -> types.TrainState:
  """From published weights, where there are any."""
  if not config.weights:
    return state
  folder = packaged.folder(config.weights)
  adapted = finetuning.adapt(t5_weights.model(folder), **config.adapter)
  return start.fill(
    state,
    functools.partial(t5_weights.load, folder),
    keep=adapters.added(adapted),
  )


def measure(outputs, columns) -> dict[str, float]:
  """How often a whole target is the likeliest, token by token; loss in nats."""
  del columns
  return {
    'accuracy': float((outputs['hits'] == outputs['tokens']).mean()),
    'loss': float(
      -outputs['log_likelihood'].sum() / max(outputs['tokens'].sum(), 1)
    ),
  }
