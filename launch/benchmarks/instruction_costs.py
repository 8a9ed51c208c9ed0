"""Instructions: how full packed rows are, and options ranked many at a time."""

import time
from typing import Any

from absl import logging
import numpy as np

from launch.lib import timing

_NUM_ROWS, _SOURCE, _TARGET = 5_000, 512, 128
_PROMPTS = 16


def instructions(rounds: int) -> dict[str, Any]:
  """Packing of 5,000 texts of many lengths, ranking of 16 prompts by a T5.

  Lengths are log-normal, of sources about 60 tokens and of targets a sixth of
  it. Ranking has prompts of 128 tokens with 10 and with 50 options, by a T5 of
  two and two layers of width 128, over a call for each option of each prompt.
  """
  padded, filled = _fill()
  result = {
    'tokens that are no padding, packed': filled,
    'tokens that are no padding, a text a row': padded,
  }
  for count in (10, 50):
    batched, single = _rankers(count)
    result[f'ranking {count} options over one at a time, speed'] = (
      timing.alternate(rounds, single, batched)
    )
  logging.info('instructions: %s', result)
  return result


def _fill():
  """Share of a source's tokens that are text: (a text a row, packed)."""
  from repjax.data.text import packing

  rng = np.random.default_rng(0)
  source = np.clip(rng.lognormal(4.0, 0.7, _NUM_ROWS), 8, _SOURCE).astype(int)
  target = np.clip(source // 6, 2, _TARGET - 1)

  def mask(lengths, width, first=0):
    place = np.arange(width)
    inside = (place < lengths[:, None]) & (place >= first)
    return inside.astype(np.float32)

  rows = {
    'source_mask': mask(source, _SOURCE),
    'weights': mask(target, _TARGET, first=1),
  }
  rows['source'] = rows['source_mask'].astype(np.int32)
  rows['tokens'] = mask(target, _TARGET).astype(np.int32)
  packed = packing.packed(rows, source_length=_SOURCE, target_length=_TARGET)
  return tuple(
    float(x.mean()) for x in (rows['source_mask'], packed.column('source_mask'))
  )


def _rankers(num_options):
  """Two calls that give the seconds of ranking all options."""
  import jax
  import jax.numpy as jnp

  from repjax.data.text import tokens
  from repjax.models import t5
  from repjax.models import t5_block
  from repjax.protocols import rank_classification

  tokenizer = tokens.Bytes()
  model = t5.T5(
    tokenizer.vocab_size,
    config=t5_block.LayerConfig(
      hidden_dim=128, head_dim=32, mlp_dim=256, num_heads=4
    ),
    num_layers=2,
  )
  row = jnp.zeros((1, 2), jnp.int32)
  variables = jax.jit(
    lambda rng: model.init(rng, row, source=row, train=False)
  )(jax.random.key(0))
  prompts = [
    f'what comes after {i} in a row ? '.ljust(128, '.') for i in range(_PROMPTS)
  ]
  options = [f'{i}' for i in range(num_options)]

  def ranker(batch_size):
    return rank_classification.Ranker(
      model,
      tokenizer,
      source_length=128,
      target_length=4,
      batch_size=batch_size,
    )

  whole, one = ranker(_PROMPTS), ranker(1)
  found = {}

  def timed(name, fn):
    start = time.perf_counter()
    found[name] = fn()
    return time.perf_counter() - start

  def batched():
    return timed(
      'whole',
      lambda: np.stack(
        whole.scores(variables, prompts, [options] * len(prompts))
      ),
    )

  def single():
    return timed(
      'single',
      lambda: np.array(
        [
          [one.scores(variables, [x], [[y]])[0][0] for y in options]
          for x in prompts
        ]
      ),
    )

  batched(), single()  # Compiles both, which must agree.
  np.testing.assert_allclose(found['whole'], found['single'], atol=1e-3)
  return batched, single
