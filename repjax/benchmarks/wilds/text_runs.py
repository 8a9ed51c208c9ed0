"""Host side: what a config of WILDS or U-WILDS says of texts, for one run.

`experiment` reads data and makes batches of both, texts and images.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import plots
from repjax import start
from repjax import types
from repjax.benchmarks.wilds import experiment
from repjax.data.reading import source as sources
from repjax.data.text import tokens
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import language_modeling
from repjax.models import text_heads


def vocab_size(config: Any) -> int:
  """Number of tokens of a config's texts, and one more, which hides others."""
  if config.data.kind == 'shops':
    from repjax.benchmarks.wilds import shops

    return shops.VOCAB_SIZE + 1
  from repjax.benchmarks.wilds import text_sets

  return text_sets.tokenizer(config.data.tokenizer).vocab_size + 1


def build(
  config: Any,
  data: experiment.Data,
  method: types.Method,
  *,
  pseudo: dict[str, np.ndarray] | None = None,
) -> types.Experiment:
  """An experiment on texts that reports what WILDS does, split by split.

  Args:
    config: With what `wiring.of_sources` and `experiment.batches` read, and
      pretrained: a run of 'masked_lm' that others start from, or ''.
    data: `experiment.read(config)`.
    method: What is trained; of 'masked_lm' that of
      `pretraining.masked_language_model`.
    pseudo: Labels of a teacher, as columns of the rows without labels.
  """
  types.check_choice('config.data.kind', config.data.kind, experiment.TEXTS)
  batches = experiment.batches(config, data, pseudo=pseudo)

  def rows(split):
    return data.labelled.subset(split).source()

  if config.algorithm == 'masked_lm':
    if config.pretrained:
      raise types.InputError(
        f'config.pretrained={config.pretrained} is what other algorithms start '
        "from: leave it '' with config.algorithm=masked_lm, or take another."
      )
    return of_tokens.predictor(
      config,
      method,
      batches=batches,
      sources=lambda split: with_gaps(rows(split), vocab_size(config)),
      steps=data.steps,
      show=functools.partial(_show, config),
    )
  return wiring.of_sources(
    config,
    method,
    batches=batches,
    sources=rows,
    steps=data.steps,
    measure=experiment.measure(data.labelled),
    figures=lambda rows, outputs, columns: plots.of_classes(
      outputs['logits'], columns['label']
    ),
    warm_start=start.begin_from(
      config.pretrained, without=text_heads.OF_MASKED_LM
    ),
  )


def with_gaps(rows: sources.Source, vocab_size: int) -> sources.Source:
  """Rows of a split with gaps that are the same at every evaluation.

  Args:
    rows: With 'tokens' and, where some are padding, 'token_mask'.
    vocab_size: Number of tokens; the last one hides others.
  """
  columns = rows.columns()
  gapped = language_modeling.mask_tokens(
    {
      k: jnp.asarray(columns[k])
      for k in ('tokens', 'token_mask')
      if k in columns
    },
    jax.random.key(0),
    vocab_size=vocab_size - 1,
    mask_id=vocab_size - 1,
    num_special=len((tokens.PAD, tokens.START, tokens.END)),
  )
  return rows.with_columns(
    **{k: np.asarray(gapped[k]) for k in ('inputs', 'weights')}
  )


def _show(config, ids):
  if config.data.kind == 'shops':
    from repjax.benchmarks.wilds import shops

    return ''.join(f'{shops.word(int(i))} ' for i in ids)
  from repjax.benchmarks.wilds import text_sets

  return text_sets.tokenizer(config.data.tokenizer).decode(ids)
