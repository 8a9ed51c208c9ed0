"""Private steps of a language model on a GPU, beside Opacus' ghost clipping."""

from typing import Any
from typing import NamedTuple

from absl import logging

from launch.benchmarks import privacy_costs
from launch.lib import peers
from launch.lib import timing


class Sizes(NamedTuple):
  """A decoder and a batch; the defaults have 93 million parameters.

  Attributes:
    batch_size: Rows.
    length: Tokens of a row.
    width: Of the network, a multiple of 64: heads are of 64.
    layers: Its blocks.
    vocabulary: Different tokens.
    steps: Of a round.
  """

  batch_size: int = 32
  length: int = 256
  width: int = 768
  layers: int = 12
  vocabulary: int = 10_000
  steps: int = 10


def private_language(rounds: int, sizes: Sizes | None = None) -> dict[str, Any]:
  """DP-Adam by ghost clipping over Adam, and over Opacus' in PyTorch.

  In float32, with products as the device does them by default (TF32), but those
  of ours that clip, which are in full precision; ours in bfloat16, too. 'peak
  GiB' of ours is XLA's count for the compiled step with state, parameters and
  batch, of Opacus what its tensors took in one step. Ours ties embeddings and
  logits, which Opacus refuses.
  """
  sizes = sizes or Sizes()
  result: dict[str, Any] = {}
  opacus = peers.run(
    'opacus_lm',
    dict(
      sizes=sizes._asdict(),
      clip_norm=privacy_costs.CLIP_NORM,
      noise_multiplier=privacy_costs.NOISE_MULTIPLIER,
      learning_rate=privacy_costs.LEARNING_RATE,
      rounds=rounds,
    ),
    needs=('torch', 'opacus'),
  )
  for dtype in ('float32', 'bfloat16'):
    result[dtype] = _ours(rounds, sizes, dtype)
  result['Opacus'] = opacus
  if not isinstance(opacus, str):
    result['Opacus'] = {**opacus, 'measured in': peers.HOW}
    ours = result['float32']
    result['speed over Opacus'] = (
      opacus['ghost, seconds'] / ours['ghost, seconds']
    )
    if opacus['ghost, peak GiB']:
      result['memory over Opacus'] = (
        ours['ghost, peak GiB'] / opacus['ghost, peak GiB']
      )
    result['Opacus, ghost over none, time'] = (
      opacus['ghost, seconds'] / opacus['none, seconds']
    )
  return result


def _ours(rounds, sizes, dtype):
  shape = privacy_costs.Shape(
    'lm',
    sizes.batch_size,
    sizes.length,
    sizes.width,
    sizes.layers,
    sizes.vocabulary,
    dtype,
  )
  result: dict[str, Any] = {}
  steps = {}
  for form in ('none', 'ghost'):
    step, compiling = timing.compiling(
      lambda form=form: privacy_costs.Step(shape, form)
    )
    step.run()  # Makes its state; the device's queue is warm.
    seconds = min(
      sum(step.run() for _ in range(sizes.steps)) / sizes.steps
      for _ in range(rounds)
    )
    steps[form] = step
    result['parameters'] = step.num_parameters
    result[f'{form}, seconds'] = seconds
    result[f'{form}, rows/s'] = sizes.batch_size / seconds
    result[f'{form}, peak GiB'] = step.peak_bytes / 2**30
    result[f'{form}, seconds to build and compile'] = compiling
    logging.info('%s, %s: %.4f s a step', dtype, form, seconds)
  result['ghost over none, time'] = (
    result['ghost, seconds'] / result['none, seconds']
  )
  result['ghost over none, temporary memory'] = (
    steps['ghost'].temporary_bytes / steps['none'].temporary_bytes
  )
  return result
