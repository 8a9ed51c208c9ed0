"""Attacks DP-SGD runs with canaries: is epsilon what the accounting says?

    python -m launch.audit --noise_multiplier=2 --steps=4

Trains a small network on digits, every row in every step, with canaries of
which each is in with probability 1/2, and bounds epsilon from below by guessing
which ones were. Once with the noise that is claimed and once with --broken
times it: a bound above the claimed epsilon proves the claim wrong, which must
(almost) never happen to the first and should happen to the second. Writes one
JSON object a line to stdout.
"""

from absl import flags

from launch.lib import app
from repjax import files

_NOISE = flags.DEFINE_float(
  'noise_multiplier', 2.0, 'Claimed noise over the clip norm.', 1e-3
)
_BROKEN = flags.DEFINE_float(
  'broken', 0.5, 'Share of the claimed noise in the broken runs.', 1e-3, 1.0
)
_STEPS = flags.DEFINE_integer('steps', 4, 'Steps of each run.', 1)
_CANARIES = flags.DEFINE_integer('canaries', 2000, 'Canaries of each run.', 1)
_TRIALS = flags.DEFINE_integer('trials', 10, 'Runs of each kind.', 1)
_DELTA = flags.DEFINE_float('delta', 1e-5, 'Delta of the claim.', 0.0, 1.0)
_SEED = flags.DEFINE_integer('seed', 0, 'Of coins, noise and networks.', 0)
app.define_devices()


def main() -> None:
  """Audits correct runs and broken ones."""
  app.initialize()

  from repjax.protocols import canaries

  for share in (1.0, _BROKEN.value):
    result = canaries.audit(
      noise_multiplier=_NOISE.value,
      share=share,
      steps=_STEPS.value,
      num_canaries=_CANARIES.value,
      num_trials=_TRIALS.value,
      delta=_DELTA.value,
      seed=_SEED.value,
    )
    print(files.json_line(result), end='', flush=True)


if __name__ == '__main__':
  app.run(main)
