"""The page about slices in which the CLIP of a recipe misreads images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from configs.parts import worded_pairs
from repjax import types
from repjax.analysis import domino
from repjax.analysis import slice_report
from repjax.analysis import slice_scores
from repjax.analysis import slice_words


def check(config, num_classes: int) -> None:
  """Raises InputError for settings with which no slices could be found."""
  types.check_range(
    '[1, inf)', **{'config.clip.features': config.clip.features}
  )
  for split in config.data.eval_splits:
    rows = worded_pairs.num_evaluated(config, split)
    half = (rows + 1) // 2
    try:
      domino.check_settings(
        half, config.clip.features, num_classes, **config.slices
      )
    except types.InputError as error:
      raise types.InputError(
        f'config.slices, of half of the {rows} rows of {split}: {error}'
      ) from error


def figures(
  config, pairs: worded_pairs.Worded, made: types.Experiment
) -> Callable[..., dict[str, Any]]:
  """Figures of an experiment, and 'slices'."""

  def draw(split, outputs, columns):
    rows = worded_pairs.evaluated(config, split)
    return {
      **made.figures(split, outputs, columns),
      'slices': slice_report.figure(
        report(config, pairs, outputs, columns),
        rows.read(columns['index'])['image'],
      ),
    }

  return draw


def report(
  config, pairs: worded_pairs.Worded, outputs, columns
) -> slice_report.Page:
  """Slices of the zero-shot classification: found on half, told of the rest.

  Args:
    config: With slices and seed.
    pairs: What `worded_pairs.read` gave.
    outputs: What `predict` says of N rows.
    columns: Their 'label' and 'index', [N], and 'row', the image that each is
      drawn from, where several are drawn of one.
  """
  probs = scipy.special.softmax(outputs['logits'], -1)
  embeddings, labels = outputs['image_embedding'], columns['label']
  # By image: each is drawn in several inks and places.
  half = np.asarray(columns.get('row', columns['index'])) % 2 == 0
  found = domino.discover(
    embeddings[half],
    labels[half],
    probs[half],
    seed=config.seed,
    **config.slices,
  )
  new = ~half
  odds = domino.log_odds(found, embeddings[new], labels[new], probs[new])
  return slice_report.page(
    odds,
    labels[new],
    probs[new],
    rows=np.flatnonzero(new),
    class_names=pairs.names,
    words=slice_words.of_cosines(
      scipy.special.expit(odds),
      outputs['phrase_logits'][new],
      labels[new],
      pairs.phrases,
    ),
    audits=slice_scores.audit(
      domino.scores(found, embeddings[new]),
      probs[new].argmax(-1) != labels[new],
    ),
  )
