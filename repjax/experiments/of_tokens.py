"""Host side: experiments on rows of tokens."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from matplotlib import patches
import numpy as np

from repjax import plots
from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.experiments import wiring
from repjax.metrics import averages
from repjax.metrics import classification


def classifier(
  config: Any,
  method: types.Method,
  *,
  batches: types.Batches,
  sources: Callable[[str], source.Source],
  steps: int,
) -> types.Experiment:
  """An experiment that classifies rows of tokens.

  Args:
    config: With what `wiring.of_sources` reads.
    method: What is trained; `predict` gives 'logits'.
    batches: What it is trained on.
    sources: Split -> its rows.
    steps: Number of updates.
  """
  return wiring.of_sources(
    config,
    method,
    batches=batches,
    sources=sources,
    steps=steps,
    measure=lambda outputs, columns: classification.measure(
      outputs['logits'], columns['label']
    ),
    figures=lambda rows, outputs, columns: plots.of_classes(
      outputs['logits'], columns['label']
    ),
  )


def predictor(
  config: Any,
  method: types.Method,
  *,
  batches: types.Batches,
  sources: Callable[[str], source.Source],
  steps: int,
  show: Callable[[Sequence[int]], str],
  recipe: transforms.Recipe = transforms.AS_IT_IS,
) -> types.Experiment:
  """An experiment that predicts the tokens of rows, texts or not.

  Measures: 'loss', 'perplexity', 'accuracy', and 'bits_per_byte' where rows
  have 'num_bytes' (`with_bytes`).

  Args:
    config: With what `wiring.of_sources` reads.
    method: What is trained, from `language_modeling.make`.
    batches: What it is trained on: rows of 'tokens' [T].
    sources: Split -> its rows, with 'weights' [T] where not all are targets.
    steps: Number of updates.
    show: Text of one token, for figures.
    recipe: What the rows of `sources` go through.
  """

  def measure(outputs, columns):
    num_bytes = None
    if 'num_bytes' in columns:
      num_bytes = columns['num_bytes'].sum(dtype=np.float64)
    return averages.of_tokens(
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
      'text': token_losses(
        [show([i]) for i in read['tokens'][0][real]], nll[row, real]
      ),
    }

  return wiring.of_sources(
    config,
    method,
    batches=batches,
    sources=sources,
    steps=steps,
    measure=measure,
    figures=figures,
    recipe=recipe,
  )


def token_losses(
  pieces: Sequence[str], nats: np.ndarray, *, columns: int = 80
) -> plots.Figure:
  """A text whose tokens are the redder, the less they were expected.

  Args:
    pieces: Text of each token, [T].
    nats: Negative log-likelihood of each token, [T].
    columns: Characters of a line; a token that does not fit begins the next.
  """
  # Breaks are shown, and break the line.
  shown = [x.replace('\n', '¶').replace('\t', ' ') for x in pieces]
  places, row, column = [], 0, 0
  for piece, text in zip(pieces, shown, strict=True):
    if column and column + len(text) > columns:
      row, column = row + 1, 0
    places.append((row, column))
    column += len(text)
    if '\n' in piece:
      row, column = row + 1, 0
  fig = plots.Figure(figsize=(columns * 0.085, (row + 3) * 0.2))
  axes = fig.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, columns), ylim=(row + 1.5, -1.5))
  axes.axis('off')
  top = max(float(np.max(nats, initial=0)), 1e-9)
  axes.text(0, -0.7, f'white: 0, red: {top:.1f} nats a token', fontsize=7)
  for (line, start), text, value in zip(places, shown, nats, strict=True):
    share = float(value) / top
    axes.add_patch(
      patches.Rectangle(
        (start, line - 0.5),
        max(len(text), 1),
        1,
        color=(1, 1 - 0.8 * share, 1 - 0.8 * share),
      )
    )
    for i, character in enumerate(text):
      # Each on its own, since fonts differ in width; '$' would start a formula.
      axes.text(
        start + i + 0.5,
        line,
        character,
        family='monospace',
        fontsize=7,
        ha='center',
        va='center',
        parse_math=False,
      )
  return fig


def with_bytes(rows: source.Source, num_bytes: int) -> source.Source:
  """Adds 'num_bytes', those of a text, spread over rows by their targets."""
  share = rows.column('weights').sum(1)
  share = share / share.sum() * num_bytes
  return rows.with_columns(num_bytes=share.astype(np.float32))
