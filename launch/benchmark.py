"""Measures speed as ratios, side by side in one run.

    python -m launch.benchmark --only=loop,sam

Rounds of both sides alternate, so that what else the machine does hits both; a
ratio is the median over rounds or, of attention, decoding, pyramids, private
steps and what PyTorch measures for itself, of the best rounds. Flops and memory
are XLA's own counts and do not depend on the machine's load. Writes one JSON
object a line to stdout, or with --table rows of a markdown table that names the
device.

    python -m launch.benchmark --platform=gpu --table

runs what fills a GPU, in bfloat16: a ViT-B/16 beside timm or `transformers`,
attention over up to 65,536 positions beside cuDNN's, private steps beside
Opacus' ghost clipping, the loop, and compilers. What is not installed is said
to be not measured; PyTorch runs in a process of its own, for which JAX gives
back the memory of the card.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
import sys
from typing import Any

from absl import flags

from launch.benchmarks import adaptation_costs
from launch.benchmarks import adaptation_speed
from launch.benchmarks import adapter_costs
from launch.benchmarks import attack_speed
from launch.benchmarks import attention_speed
from launch.benchmarks import compile_times
from launch.benchmarks import contrastive_costs
from launch.benchmarks import dimension_speed
from launch.benchmarks import distillation_costs
from launch.benchmarks import explanation_speed
from launch.benchmarks import few_labels
from launch.benchmarks import first_step
from launch.benchmarks import generation_costs
from launch.benchmarks import instruction_costs
from launch.benchmarks import long_attention
from launch.benchmarks import poisoning_speed
from launch.benchmarks import privacy_costs
from launch.benchmarks import private_language
from launch.benchmarks import pyramid_speed
from launch.benchmarks import slice_discovery
from launch.benchmarks import training
from launch.benchmarks import two_sample_tests
from launch.benchmarks import unit_costs
from launch.benchmarks import vit_throughput
from launch.lib import app
from launch.lib import benchmark_table
from launch.lib import cards
from launch.lib import peers
from repjax import files
from repjax import types

_BENCHMARKS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
  'loop': training.training_loop,
  'sam': training.sam,
  'input': training.input_pipeline,
  'first_step': first_step.first_step,
  'tasks': training.task_gradients,
  'torch': training.against_torch,
  'attention': attention_speed.attention,
  'decoding': attention_speed.decoding,
  'pyramid': pyramid_speed.pyramid,
  'compile': compile_times.compile_times,
  'privacy': privacy_costs.privacy,
  'adapters': adapter_costs.adapters,
  'adaptation': adaptation_costs.adaptation,
  'deployment': adaptation_speed.deployment,
  'two_sample': two_sample_tests.two_sample,
  'dimension': dimension_speed.dimension,
  'slices': slice_discovery.slices,
  'pico': contrastive_costs.pico,
  'esvit': distillation_costs.esvit,
  'episodes': few_labels.episodes,
  'calibration': few_labels.calibration,
  'vitgan': generation_costs.vitgan,
  'attacks': attack_speed.attacks,
  'poisoning': poisoning_speed.poisoning,
  'launches': poisoning_speed.launches,
  'shapley': explanation_speed.shapley_values,
  'exemplars': unit_costs.exemplars,
  'instructions': instruction_costs.instructions,
}
# By --platform=gpu: under a name that is above, too, in the sizes of a GPU.
_OF_GPUS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
  'vit': vit_throughput.vit_throughput,
  'attention': long_attention.long_attention,
  'loop': training.training_loop,
  'privacy': private_language.private_language,
  'first_step': first_step.compile_large,
}
_ONLY = flags.DEFINE_list(
  'only',
  None,
  f'Which to run of {", ".join(_BENCHMARKS)}; by default all. With '
  f'--platform=gpu by default {", ".join(_OF_GPUS)}.',
)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds of each side.', 1)
_TABLE = flags.DEFINE_bool(
  'table', False, 'Print rows of a markdown table in place of JSON.'
)
app.define_devices()


def main() -> None:
  """Runs the chosen benchmarks one after the other."""
  on_gpu = flags.FLAGS.platform == 'gpu'
  known = {**_BENCHMARKS, **_OF_GPUS} if on_gpu else _BENCHMARKS
  names = _ONLY.value or list(_OF_GPUS if on_gpu else _BENCHMARKS)
  for name in names:
    if name not in known:
      remedy = ' It needs --platform=gpu.' if name in _OF_GPUS else ''
      raise types.InputError(
        f'--only={name}: there are {", ".join(known)}.{remedy}'
      )
  if on_gpu and flags.FLAGS.favor_peer:
    raise types.InputError('--favor_peer is not timed with --platform=gpu.')
  if on_gpu:
    peers.share_memory()
  app.initialize()
  device, about = _device()
  if _TABLE.value:
    print(benchmark_table.heading(_command(), device), flush=True)
  elif about:
    print(files.json_line({'benchmark': 'card', **about}), end='', flush=True)
  for name in names:
    try:
      result = known[name](_ROUNDS.value)
    except RuntimeError as error:
      if not benchmark_table.is_full(error):
        raise
      result = {'not measured': benchmark_table.FULL}
    if _TABLE.value:
      print(*benchmark_table.rows(name, result), sep='\n', flush=True)
    else:
      line = files.json_line({'benchmark': name, **result})
      print(line, end='', flush=True)


def _device() -> tuple[str, Mapping[str, Any]]:
  """The device in words, and as fields where it is a GPU."""
  import jax

  backend = jax.default_backend()
  if backend == 'cpu':
    return f'{os.cpu_count()} CPU cores', {}
  if backend != 'gpu':
    return jax.local_devices()[0].device_kind, {}
  card = cards.this()
  words = f'one {card.name}, bf16 peak {card.peak:.4g} TFLOP/s ({card.origin})'
  return words, {
    'card': card.name,
    'bf16 peak, TFLOP/s': card.peak,
    'peak': card.origin,
    'a product of 8192 x 8192, TFLOP/s': cards.product(8192),
  }


def _command() -> str:
  return ' '.join(['python -m launch.benchmark', *sys.argv[1:]])


if __name__ == '__main__':
  app.run(main)
