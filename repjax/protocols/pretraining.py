"""Protocol: small text models, pretrained on the spot."""

from collections.abc import Mapping
import functools
from typing import Any

from absl import logging
import jax
import numpy as np
import optax

from repjax import optim
from repjax import types
from repjax.data.text import tokens
from repjax.methods import language_modeling
from repjax.metrics import averages
from repjax.models import text_heads
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


def masked_language_model(
  vocab_size: int,
  encoder: Mapping[str, Any],
  *,
  steps: int,
  learning_rate: float,
  **settings: Any,
) -> types.Method:
  """Fills gaps of texts (BERT, https://arxiv.org/abs/1810.04805), by AdamW.

  Args:
    vocab_size: Number of tokens; the last one hides others.
    encoder: Further fields of `transformer.Encoder`.
    steps: Number of updates.
    learning_rate: At its peak.
    **settings: Of `language_modeling.make`, such as microbatches, compute_dtype
      and ema_decay.
  """
  mask_id = vocab_size - 1
  return language_modeling.make(
    text_heads.MaskedLM(vocab_size, **encoder),
    optax.adamw(optim.warmup_cosine(learning_rate, steps=steps, warmup=0.1)),
    objective='masked',
    transform=functools.partial(
      language_modeling.mask_tokens,
      vocab_size=mask_id,
      mask_id=mask_id,
      num_special=len((tokens.PAD, tokens.START, tokens.END)),
    ),
    **settings,
  )


def denoising(
  rows: Mapping[str, np.ndarray], *, rate: float, seed: int
) -> dict[str, np.ndarray]:
  """Targets of pairs, to be written from what is left of them.

  Tokens are left out at random, which is one of BART's noises ('token
  deletion', https://arxiv.org/abs/1910.13461).

  Args:
    rows: 'tokens' [N, T] and 'weights' [N, T], 1 for the tokens after the first
      one, as `labelled_text.pairs` gives them.
    rate: Probability that a token is left out, in (0, 1).
    seed: Of the noise, which is drawn once.

  Returns:
    'source' [N, T], 'source_mask', 'tokens' and 'weights'.
  """
  weights = rows['weights'] > 0
  last = weights & ~np.roll(weights, -1, axis=1)  # The end always stays.
  last[:, -1] = weights[:, -1]
  drawn = np.random.default_rng(seed).random(weights.shape) >= rate
  kept = weights & (drawn | last)
  # Those that stay go first, in their order.
  order = np.argsort(~kept, axis=1, kind='stable')
  mask = np.take_along_axis(kept, order, axis=1)
  source = np.take_along_axis(rows['tokens'], order, axis=1)
  return {
    'source': np.where(mask, source, tokens.PAD).astype(np.int32),
    'source_mask': mask.astype(np.float32),
    'tokens': rows['tokens'],
    'weights': rows['weights'],
  }


def run(
  method: types.Method,
  rows: Mapping[str, np.ndarray],
  *,
  steps: int,
  batch_size: int,
  seed: int,
  vectorize: bool = False,
) -> types.PyTree:
  """Trains a model on rows drawn with replacement.

  Args:
    method: What is trained.
    rows: Name -> [N, ...].
    steps: Number of updates.
    batch_size: Rows of a step.
    seed: Of everything random.
    vectorize: Whether seeds go side by side, or one after the other.

  Returns:
    The parameters.
  """
  num_rows = len(next(iter(rows.values())))
  order = np.random.default_rng(seed).integers(
    0, num_rows, (1, steps, batch_size)
  )
  for step, states, means in seed_loop.fit(
    method,
    side_by_side.begin(method, {}, (seed,), shared=rows),
    {},
    order,
    seeds=(seed,),
    every=max(1, steps // 4),
    shared=rows,
    vectorize=vectorize,
  ):
    params = states.params
    logging.info(
      'pretraining: step %s/%s  %s',
      f'{step:,}',
      f'{steps:,}',
      averages.summary({name: float(x.mean()) for name, x in means.items()}),
    )
  return jax.tree.map(lambda x: x[0], params)
