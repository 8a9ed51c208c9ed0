"""Instruction tuning: suites of tasks, rows of them, the model, evaluations."""

from collections.abc import Sequence
import dataclasses
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
from repjax.data.reading import prepared
from repjax.data.reading import source as sources
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import option_rows
from repjax.data.text import packing
from repjax.data.text import tokens
from repjax.experiments import kept_tokens
from repjax.experiments import wiring
from repjax.layers import adapters
from repjax.methods import finetuning
from repjax.methods import instruction_tuning
from repjax.models import t5
from repjax.models import t5_block

# Rows of evaluation have seeds of their own.
EVALUATION = 1_000_003


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
  if config.data.file and config.data.kind != 'jsonl':
    raise types.InputError(
      f'config.data.file={config.data.file} counts for nothing with '
      f'config.data.kind={config.data.kind}: set --config.data.kind=jsonl.'
    )
  kinds = dict(digit_maps=_suites, text=_suites, jsonl=_jsonl)
  return presets.choose('data.kind', config.data.kind, kinds)(config)


def _suites(config):
  data = config.data
  train, fresh = (suite(config, fresh=x) for x in (False, True))
  training = train.training(data.held_out)
  examples = {x.name: x.examples(cap=data.cap) for x in training}
  return Data(
    examples,
    [y for x in fresh.training(data.held_out) for y in x.examples()],
    [y for x in fresh.held_out(data.held_out) for y in x.examples()],
    digit_words(data.told)
    if data.kind == 'digit_maps'
    else _tokenizer(config, examples),
  )


def suite(config, *, fresh: bool) -> instructions.Suite:
  """Tasks with rows to train on, or with others."""
  data = config.data
  count = data.num_eval_rows if fresh else data.num_rows
  seed = config.seed + EVALUATION * fresh
  if data.kind == 'digit_maps':
    from repjax.data.sets import digit_maps

    return digit_maps.suite(told=data.told, num_rows=count, seed=seed)
  from repjax.data.sets import text_tasks

  return text_tasks.suite(
    'validation' if fresh else 'train',
    told=data.told,
    num_rows=count,
    seed=seed,
    data_dir=data.dir,
  )


def digit_words(told: str) -> tokens.Tokenizer:
  """All words of digit_maps; ten rows have every digit and template."""
  from repjax.data.sets import digit_maps
  from repjax.data.text import words

  tasks = digit_maps.suite(told=told, num_rows=30, seed=0).tasks
  texts = (y for x in tasks for z in x.examples() for y in z[:2])
  return words.Words.of(texts, bare=False)


def _jsonl(config):
  data = config.data
  if not data.file:
    raise types.InputError(
      '--config.data.file names the JSONL file with the examples (a line each: '
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
  other = [x for name in sorted(held) for x in found[name]]
  return Data(train, known, other, _tokenizer(config, train))


def _tokenizer(config, train) -> tokens.Tokenizer:
  """That of published weights, or one that is learned from these texts."""
  if config.weights:
    from repjax.data.text import published_tokens
    from repjax.weights import packaged

    return published_tokens.Published.load(packaged.folder(config.weights))
  return kept_tokens.learn(
    config, lambda: [y for rows in train.values() for x in rows for y in x[:2]]
  )


def rows(
  config, data: Data, examples: Sequence[instructions.Example]
) -> sources.Source:
  """Examples as rows of the model.

  Raises:
    InputError: There are none.
  """
  if not examples:
    raise types.InputError(
      'there are no examples to train on or to evaluate: name tasks of '
      'config.data.held_out, raise config.data.num_rows (num_eval_rows) to the '
      "number of templates, or set config.data.eval_splits=('known',)"
    )
  return instruction_rows.encoded(
    examples, data.tokenizer, **_shape(config, data)
  )


def _shape(config, data):
  return dict(
    source_length=config.data.source_length,
    target_length=config.data.target_length,
    tasks=data.names,
  )


def split_of(config, data: Data, split: str) -> sources.Source:
  """Rows of 'held_out' or 'known' tasks; of 'held_out_ranked', each option."""
  if split.partition(':')[0] in (prepared.INPUTS, prepared.LABELLED):
    raise types.InputError(
      'Runs of this recipe take no files to predict: they are judged by the '
      'splits held_out, known, held_out_ranked and known_ranked.'
    )
  splits = dict(
    held_out=lambda: rows(config, data, data.held_out),
    known=lambda: rows(config, data, data.known),
    held_out_ranked=lambda: _ranked(config, data, held_out=True),
    known_ranked=lambda: _ranked(config, data, held_out=False),
  )
  return presets.choose('data.eval_splits', split, splits)()


def _ranked(config, data, *, held_out):
  """Rows by all templates, each option a row; those of a file have no more."""
  if config.data.kind == 'jsonl':
    examples = data.held_out if held_out else data.known
  else:
    fresh = suite(config, fresh=True)
    select = fresh.held_out if held_out else fresh.training
    examples = option_rows.by_each_template(select(config.data.held_out))
  return option_rows.encoded(examples, data.tokenizer, **_shape(config, data))


def batches(config, data: Data) -> in_order.TrainBatches:
  """Tasks in proportion to their rows, up to data.mixing_cap."""
  parts = [rows(config, data, x) for x in data.train.values()]
  sizes = np.array([len(x) for x in parts])
  rates = instructions.mixing_rates(sizes, cap=config.data.mixing_cap)
  if config.data.packed:
    parts = [
      packing.packed(
        x.columns(),
        source_length=config.data.source_length,
        target_length=config.data.target_length,
      )
      for x in parts
    ]
    # A place holds several examples of its task.
    places = np.array([len(x) for x in parts])
    rates, sizes = rates * places / sizes, places
  plain = in_order.train_batches(
    mixtures.union(parts),
    batch_size=config.batch_size,
    seed=config.seed,
    **wiring.reading(config),
  )
  return plain.extended(mixtures.MixtureBatches, rates=rates, sizes=sizes)


def network(config, data: Data) -> t5.T5:
  """T5, of published weights or of the config's size."""
  if config.weights:
    from repjax.weights import packaged
    from repjax.weights import t5_weights

    made = t5_weights.model(packaged.folder(config.weights))
    form = dataclasses.replace(made.config, remat=config.model.remat)
    made = made.clone(config=form)
    own = vars(made.config) | vars(made)
    # So that a run's config.json tells what was trained.
    config.model.update({x: own[x] for x in config.model})
    return made
  layer = config.model.to_dict()
  stack = ('num_layers', 'num_decoder_layers', 'num_positions')
  fields = {x: layer.pop(x) for x in stack}
  longest = max(config.data.source_length, config.data.target_length)
  if 0 < fields['num_positions'] < longest:
    raise types.InputError(
      f'config.model.num_positions={fields["num_positions"]} has no place for '
      f'texts of {longest} tokens (config.data.source_length and '
      'target_length): raise it, or set it to 0'
    )
  return t5.T5(
    data.tokenizer.vocab_size, config=t5_block.LayerConfig(**layer), **fields
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
  # Neither, where the optimizer begins with a link of its own (`dp_sgd`).
  links = [optim.sam(config.sam.rho)] if config.sam.rho else []
  links += [optax.clip_by_global_norm(tx.clip)] if tx.clip else []
  return instruction_tuning.make(
    finetuning.adapt(model, **config.adapter),
    optax.chain(*links, optimizer(rate, weight_decay=tx.weight_decay)),
    mean=config.mean,
    **config.step,
  )


def begin(config, state: types.TrainState) -> types.TrainState:
  """From published weights, where there are any."""
  if not config.weights:
    return state
  from repjax.weights import packaged
  from repjax.weights import t5_weights

  folder = packaged.folder(config.weights)
  adapted = finetuning.adapt(t5_weights.model(folder), **config.adapter)
  return start.fill(
    state,
    functools.partial(t5_weights.load, folder),
    keep=adapters.added(adapted),
  )


def measure(outputs, columns, *, names: Sequence[str] = ()) -> dict[str, float]:
  """How often a whole target is the likeliest, token by token; loss in nats.

  Of ranked options: how often the right one is the likeliest
  (`option_rows.measure`), of tasks with these names.
  """
  if 'option' in columns:
    return option_rows.measure(outputs['log_likelihood'], columns, names)
  return {
    'accuracy': float((outputs['hits'] == outputs['tokens']).mean()),
    'loss': float(
      -outputs['log_likelihood'].sum() / max(outputs['tokens'].sum(), 1)
    ),
  }


def tables(split, outputs, columns, *, names: Sequence[str]):
  """Of ranked options: each task by each template."""
  del split  # It is told by the columns.
  if 'option' not in columns:
    return {}
  found = option_rows.shares(outputs['log_likelihood'], columns, names)
  lines = [[*key, *value] for key, value in found.items()]
  return {'templates': (['task', 'template', 'rows', 'right'], lines)}
