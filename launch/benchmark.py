"""Measures speed as ratios, side by side in one run.

    python -m launch.benchmark --only=loop,sam

Rounds of both sides alternate, so that what else the machine does hits both;
a ratio is the median over rounds. Flops and memory are XLA's own counts and do
not depend on the machine's load. Writes one JSON object a line to stdout.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from absl import flags

from launch.benchmarks import adaptation_costs
from launch.benchmarks import adaptation_speed
from launch.benchmarks import adapter_costs
from launch.benchmarks import attention_speed
from launch.benchmarks import compile_times
from launch.benchmarks import contrastive_costs
from launch.benchmarks import dimension_speed
from launch.benchmarks import distillation_costs
from launch.benchmarks import explanation_speed
from launch.benchmarks import few_labels
from launch.benchmarks import generation_costs
from launch.benchmarks import instruction_costs
from launch.benchmarks import poisoning_speed
from launch.benchmarks import privacy_costs
from launch.benchmarks import pyramid_speed
from launch.benchmarks import slice_discovery
from launch.benchmarks import training
from launch.benchmarks import two_sample_tests
from launch.benchmarks import unit_costs
from launch.lib import app
from repjax import files
from repjax import types

_BENCHMARKS: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
  'loop': training.training_loop,
  'sam': training.sam,
  'input': training.input_pipeline,
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
  'poisoning': poisoning_speed.poisoning,
  'shapley': explanation_speed.shapley_values,
  'exemplars': unit_costs.exemplars,
  'instructions': instruction_costs.instructions,
}
_ONLY = flags.DEFINE_list('only', list(_BENCHMARKS), 'Which to run.')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Rounds of each side.', 1)
app.define_devices()


def main() -> None:
  """Runs the chosen benchmarks one after the other."""
  for name in _ONLY.value:
    if name not in _BENCHMARKS:
      raise types.InputError(
        f'--only={name}: there are {", ".join(_BENCHMARKS)}.'
      )
  app.initialize()
  for name in _ONLY.value:
    result = _BENCHMARKS[name](_ROUNDS.value)
    print(files.json_line({'benchmark': name, **result}), end='', flush=True)


if __name__ == '__main__':
  app.run(main)
