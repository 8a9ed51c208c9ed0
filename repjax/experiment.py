"""Wires methods and data sets into what the launchers run."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import metrics
from repjax import parallel
from repjax import plots
from repjax import private
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


# What draws nothing and keeps all columns.
AS_IT_IS = recipes.Recipe(None, None, None, None, None)


def of_sources(
  config: Any,
  method: types.Method,
  *,
  train: source.Source,
  sources: Callable[[str], source.Source],
  steps: int,
  measure: Callable[..., dict[str, float]],
  figures: Callable[..., dict[str, Any]],
  recipe: recipes.Recipe = AS_IT_IS,
  multiple: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
  plan: private.Plan | None = None,
) -> types.Experiment:
  """An experiment on rows of sources; what all others here are made with.

  Args:
    config: With batch_size and eval_batch_size (rows over all devices; the
      second is rounded up to fit them), seed (of the data order),
      step.microbatches, data.eval_splits and data.num_workers.
    method: What is trained.
    train: The training rows.
    sources: Split -> its rows; called once for each.
    steps: Number of updates.
    measure: See `types.Experiment`.
    figures: See `types.Experiment`.
    recipe: What rows go through; nothing by default.
    multiple: Rows that the method mixes with each other.
    warm_start: See `types.Experiment`.
    plan: Of a private run; its link must be the first of the method's chain.

  Raises:
    InputError: If the batch does not divide over the devices.
  """
  reading = dict(
    transform=recipe.train,
    decode=recipe.decode_train,
    num_workers=config.data.num_workers,
  )
  batch_size = config.batch_size
  if plan is None:
    parallel.check_batch_size(
      config.batch_size,
      microbatches=config.step.microbatches,
      multiple=multiple,
    )
    train_batches = batches.train_batches(
      train, batch_size=batch_size, seed=config.seed, **reading
    )
  else:
    train_batches = plan.batches(train, **reading)
    batch_size = round(train_batches.expected_rows)  # On average.
  sources = functools.cache(sources)
  for split in config.data.eval_splits:
    sources(split)  # A missing split is found before any compute.

  def evals(split):
    return batches.eval_batches(
      sources(split),
      batch_size=parallel.round_up(config.eval_batch_size),
      transform=recipe.evaluate,
      decode=recipe.decode_evaluate,
    )

  return types.Experiment(
    method=method,
    train=train_batches,
    evals=evals,
    eval_splits=tuple(config.data.eval_splits),
    steps=steps,
    batch_size=batch_size,
    warm_start=warm_start,
    measure=measure,
    figures=lambda split, outputs, columns: figures(
      sources(split), outputs, columns
    ),
    privacy=None if plan is None or plan.is_open else plan.statement,
  )


class Images(NamedTuple):
  """What a config of a classifier says about its data, read.

  Attributes:
    train: The training rows.
    recipe: How images become what the model sees.
    steps: Number of updates.
  """

  train: source.Source
  recipe: recipes.Recipe
  steps: int


def images(config: Any) -> Images:
  """Reads the training set that a config names.

  Args:
    config: With the groups `data` (name, dir, train_split) and `augment` (the
      arguments of `recipes.images`), and with batch_size, epochs, min_steps.
  """
  train = source.load(
    config.data.name, config.data.train_split, data_dir=config.data.dir
  )
  return Images(
    train=train,
    recipe=recipes.images(train, **config.augment),
    steps=num_steps(
      len(train),
      batch_size=config.batch_size,
      epochs=config.epochs,
      min_steps=config.min_steps,
    ),
  )


def classifier(
  config: Any,
  data: Images,
  method: types.Method,
  *,
  sources: Callable[[str], source.Source] | None = None,
  multiple: int = 1,
  warm_start: Callable[[types.TrainState], types.TrainState] = lambda x: x,
  plan: private.Plan | None = None,
) -> types.Experiment:
  """An experiment that classifies the images of one TFDS set.

  Args:
    config: With what `images` and `of_sources` read.
    data: `images(config)`, or made from it.
    method: What is trained; `predict` gives 'logits'.
    sources: Split -> its rows; by default those of the set `config.data.name`.
    multiple: Rows that the method mixes with each other.
    warm_start: See `types.Experiment`.
    plan: See `of_sources`.
  """

  def load(split):
    return source.load(config.data.name, split, data_dir=config.data.dir)

  def figures(rows, outputs, columns):
    logits, labels = outputs['logits'], columns['label']
    chosen = plots.telling(logits, labels)
    return {
      'predictions': plots.predictions(
        rows.read(columns['index'][chosen])['image'],
        logits[chosen],
        labels[chosen],
        wrong_rate=float((logits.argmax(-1) != labels).mean()),
      ),
      **_of_classes(logits, labels),
    }

  return of_sources(
    config,
    method,
    train=data.train,
    sources=load if sources is None else sources,
    steps=data.steps,
    measure=_classification,
    figures=figures,
    recipe=data.recipe,
    multiple=multiple,
    warm_start=warm_start,
    plan=plan,
  )


def token_classifier(
  config: Any,
  method: types.Method,
  *,
  train: source.Source,
  sources: Callable[[str], source.Source],
  steps: int,
  plan: private.Plan | None = None,
) -> types.Experiment:
  """An experiment that classifies rows of tokens; arguments of `of_sources`."""
  return of_sources(
    config,
    method,
    train=train,
    sources=sources,
    steps=steps,
    measure=_classification,
    figures=lambda rows, outputs, columns: _of_classes(
      outputs['logits'], columns['label']
    ),
    plan=plan,
  )


def _classification(outputs, columns):
  return metrics.classification(outputs['logits'], columns['label'])


def _of_classes(logits, labels):
  return {
    'confusion': plots.confusion(logits, labels),
    'reliability': plots.reliability({'model': logits}, labels),
  }


def language_model(
  config: Any,
  method: types.Method,
  *,
  texts: Callable[[str], Sequence[str | bytes]],
  tokenizer: tokens.Tokenizer,
  train: source.Source,
  steps: int,
) -> types.Experiment:
  """An experiment that predicts texts token by token.

  In evaluation every token of a split is predicted exactly once. Measures:
  'bits_per_byte', 'perplexity' and 'loss' (a token) and 'accuracy'.

  Args:
    config: With what `of_sources` reads, and data.length and data.eval_stride
      (tokens that the model reads, and targets of a window in evaluation; see
      `text.eval_windows`).
    method: What is trained, `language_modeling.make(..., objective='causal')`.
    texts: Split -> its texts, for example `text.load(name, split)` or
      `fasta.read(path, split=split)`.
    tokenizer: What made the tokens of `train`.
    train: Training windows, `text.train_windows(...)`.
    steps: Number of updates.

  Raises:
    InputError: If the batch does not divide over the devices, or a split has no
      text.
  """

  def windows(split):
    rows = texts(split)
    made = text.eval_windows(
      text.stream(rows, tokenizer),
      length=config.data.length,
      stride=config.data.eval_stride,
      name=split,
    )
    return with_bytes(made, text.num_bytes(rows))

  return token_predictor(
    config,
    method,
    train=train,
    sources=windows,
    steps=steps,
    show=tokenizer.decode,
  )


def with_bytes(rows: source.Source, num_bytes: int) -> source.Source:
  """Adds 'num_bytes', those of a text, spread over rows by their targets."""
  share = rows.column('weights').sum(1)
  share = share / share.sum() * num_bytes
  return rows.with_columns(num_bytes=share.astype(np.float32))


def token_predictor(
  config: Any,
  method: types.Method,
  *,
  train: source.Source,
  sources: Callable[[str], source.Source],
  steps: int,
  show: Callable[[Sequence[int]], str],
  recipe: recipes.Recipe = AS_IT_IS,
  plan: private.Plan | None = None,
) -> types.Experiment:
  """An experiment that predicts the tokens of rows, texts or not.

  Measures: 'loss', 'perplexity', 'accuracy', and 'bits_per_byte' where rows
  have 'num_bytes'.

  Args:
    config: With what `of_sources` reads.
    method: What is trained, from `language_modeling.make`.
    train: Rows of 'tokens' [T].
    sources: Split -> its rows, with 'weights' [T] where not all are targets.
    steps: Number of updates.
    show: Text of one token, for figures.
    recipe: What rows go through.
    plan: See `of_sources`.
  """

  def measure(outputs, columns):
    num_bytes = None
    if 'num_bytes' in columns:
      num_bytes = columns['num_bytes'].sum(dtype=np.float64)
    return metrics.language(
      outputs['nll'], outputs['tokens'], outputs['hits'], num_bytes
    )

  def figures(rows, outputs, columns):
    nll, counts = outputs['position_nll'], outputs['position_tokens']
    counted = np.flatnonzero(counts.sum(0))
    by_position = nll.sum(0)[counted] / counts.sum(0)[counted]
    # The row in the middle: the first and the last ones are the odd ones.
    row = len(nll) // 2
    read = rows.read(columns['index'][[row]])
    if recipe.evaluate is not None:
      read = recipe.evaluate.apply(read, np.zeros((1, 0)))
    real = np.flatnonzero(counts[row])[:1200]
    return {
      'loss_by_position': plots.lines(
        {rows.split or rows.name: (counted, by_position)},
        xlabel='tokens of context',
        ylabel='nats a token',
      ),
      'text': plots.token_losses(
        [show([i]) for i in read['tokens'][0][real]], nll[row, real]
      ),
    }

  return of_sources(
    config,
    method,
    train=train,
    sources=sources,
    steps=steps,
    measure=measure,
    figures=figures,
    recipe=recipe,
    plan=plan,
  )


def columns(rows: source.Source) -> Mapping[str, np.ndarray]:
  """All rows of a source of numbers, as studies take them."""
  return {
    name: x
    for name, x in rows.read(np.arange(len(rows))).items()
    if np.issubdtype(x.dtype, np.number)
  }
