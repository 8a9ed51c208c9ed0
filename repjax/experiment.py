"""Wires methods and data sets into what the launchers run."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import numpy as np

from repjax import metrics
from repjax import parallel
from repjax import plots
from repjax import types
from repjax.data import batches
from repjax.data import recipes
from repjax.data import source
from repjax.data import text
from repjax.data import tokens


def num_steps(num_rows: int, *, batch_size: int, epochs: float, min_steps: int):
  """Steps of `epochs` passes over the rows, but at least `min_steps`.

  >>> num_steps(60_000, batch_size=64, epochs=6, min_steps=2_000)
  5625
  >>> num_steps(1_442, batch_size=64, epochs=6, min_steps=2_000)
  2000
  """
  return max(min_steps, round(epochs * num_rows / batch_size))


def classifier(
  method: types.Method,
  *,
  data: Mapping[str, Any],
  train_source: source.Source,
  batch_size: int,
  eval_batch_size: int,
  steps: int,
  seed: int,
  recipe: recipes.Recipe,
  multiple: int = 1,
  microbatches: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment that classifies the images of one TFDS set.

  Args:
    method: What is trained; `predict` gives 'logits'.
    data: The config's data group: name, dir, train_split, eval_splits,
      num_workers.
    train_source: The training rows, `source.load(...)` or made from it.
    batch_size: Rows of a step over all devices.
    eval_batch_size: The same for evaluation, rounded up to fit the devices.
    steps: Number of updates.
    seed: Seed of the data order.
    recipe: How images become what the model sees, `recipes.images(...)`.
    multiple: Rows that the method mixes with each other.
    microbatches: The method's microbatches.
    warm_start: See `types.Experiment`.

  Raises:
    InputError: If the batch does not divide over the devices.
  """
  parallel.check_batch_size(
    batch_size, microbatches=microbatches, multiple=multiple
  )
  train = batches.train_batches(
    train_source,
    batch_size=batch_size,
    seed=seed,
    transform=recipe.train,
    decode=recipe.decode_train,
    num_workers=data['num_workers'],
  )

  @functools.cache
  def split_source(split):
    return source.load(data['name'], split, data_dir=data['dir'])

  def evals(split):
    return batches.eval_batches(
      split_source(split),
      batch_size=parallel.round_up(eval_batch_size),
      transform=recipe.evaluate,
      decode=recipe.decode_evaluate,
    )

  for split in data['eval_splits']:
    split_source(split)  # A missing split is found before any compute.

  def figures(split, outputs, columns):
    logits, labels = outputs['logits'], columns['label']
    chosen = plots.telling(logits, labels)
    images = split_source(split).read(columns['index'][chosen])['image']
    return {
      'predictions': plots.predictions(
        images,
        logits[chosen],
        labels[chosen],
        wrong_rate=float((logits.argmax(-1) != labels).mean()),
      ),
      'confusion': plots.confusion(logits, labels),
      'reliability': plots.reliability({'model': logits}, labels),
    }

  return types.Experiment(
    method=method,
    train=train,
    evals=evals,
    eval_splits=tuple(data['eval_splits']),
    steps=steps,
    batch_size=batch_size,
    warm_start=warm_start,
    measure=lambda outputs, columns: metrics.classification(
      outputs['logits'], columns['label']
    ),
    figures=figures,
  )


def language_model(
  method: types.Method,
  *,
  texts: Callable[[str], Sequence[str | bytes]],
  tokenizer: tokens.Tokenizer,
  train_source: source.Source,
  eval_splits: Sequence[str],
  length: int,
  batch_size: int,
  eval_batch_size: int,
  steps: int,
  seed: int,
  eval_stride: int | None = None,
  microbatches: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
) -> types.Experiment:
  """An experiment that predicts texts token by token.

  In evaluation every token of a split is predicted exactly once. Measures:
  'bits_per_byte', 'perplexity' and 'loss' (a token) and 'accuracy'.

  Args:
    method: What is trained, `language_modeling.make(..., objective='causal')`.
    texts: Split -> its texts, for example `text.load(name, split)` or
      `fasta.read(path, split=split)`.
    tokenizer: What made the tokens of `train_source`.
    train_source: Training windows, `text.train_windows(...)`.
    eval_splits: See `types.Experiment`.
    length: Tokens that the model reads in evaluation, as in `train_windows`.
    batch_size: Rows of a step over all devices.
    eval_batch_size: The same for evaluation, rounded up to fit the devices.
    steps: Number of updates.
    seed: Seed of the data order.
    eval_stride: See `text.eval_windows`.
    microbatches: The method's microbatches.
    warm_start: See `types.Experiment`.

  Raises:
    InputError: If the batch does not divide over the devices, or a split has no
      text.
  """
  parallel.check_batch_size(batch_size, microbatches=microbatches)
  train = batches.train_batches(train_source, batch_size=batch_size, seed=seed)

  @functools.cache
  def windows(split):
    rows = texts(split)
    made = text.eval_windows(
      text.stream(rows, tokenizer),
      length=length,
      stride=eval_stride,
      name=split,
    )
    # Bytes of the split, spread over rows by their numbers of tokens.
    share = made.column('weights').sum(1)
    num_bytes = share / share.sum() * text.num_bytes(rows)
    return made.with_columns(num_bytes=num_bytes.astype(np.float32))

  def evals(split):
    return batches.eval_batches(
      windows(split), batch_size=parallel.round_up(eval_batch_size)
    )

  for split in eval_splits:
    windows(split)  # A missing split is found before any compute.

  def measure(outputs, columns):
    return metrics.language(
      outputs['nll'],
      outputs['tokens'],
      outputs['hits'],
      columns['num_bytes'].sum(dtype=np.float64),
    )

  def figures(split, outputs, columns):
    nll, counts = outputs['position_nll'], outputs['position_tokens']
    counted = np.flatnonzero(counts.sum(0))
    by_position = nll.sum(0)[counted] / counts.sum(0)[counted]
    # The row in the middle: the first and the last ones are the odd ones.
    row = len(nll) // 2
    ids = windows(split).read(columns['index'][[row]])['tokens'][0]
    real = np.flatnonzero(counts[row])
    return {
      'loss_by_position': plots.lines(
        {split: (counted, by_position)},
        xlabel='tokens of context',
        ylabel='nats a token',
      ),
      'text': plots.token_losses(
        [tokenizer.decode([i]) for i in ids[real][:1200]],
        nll[row, real][:1200],
      ),
    }

  return types.Experiment(
    method=method,
    train=train,
    evals=evals,
    eval_splits=tuple(eval_splits),
    steps=steps,
    batch_size=batch_size,
    warm_start=warm_start,
    measure=measure,
    figures=figures,
  )
