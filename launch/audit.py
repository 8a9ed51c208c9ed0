"""Attacks private training: is epsilon what the accounting says?

    python -m launch.audit --config=configs/dp_finetuning.py:smoke

measures a recipe's own pipeline, its loss, batches and devices: what one canary
moves, in several layers, the noise, and the sampling. Exit code 1 if something
is not as claimed (`repjax/protocols/pipeline_audit.py`).

    python -m launch.audit --noise_multiplier=2 --steps=4

attacks the link of DP-SGD alone (`repjax/protocols/canaries.py`): a small
network on digits, every row in every step, with canaries of which each is in
with probability 1/2, and a lower bound of epsilon by guessing which ones were.
Once with the noise that is claimed and once with --broken times it: a bound
above the claimed epsilon proves the claim wrong, which must (almost) never
happen to the first and should happen to the second.

Both write one JSON object a line to stdout, and say what they cannot see.
"""

import math

from absl import flags
from absl import logging

from launch.lib import app
from launch.lib import recipes
from repjax import files
from repjax import types

_CONFIG = app.define_config()
_DATA_DIR = app.define_data_dir()
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
_DRAWS = flags.DEFINE_integer(
  'draws', 200, 'With --config: steps whose rows are looked at.', 2
)
app.define_devices()
# What a recipe says itself.
_OF_CANARIES = (
  *('noise_multiplier', 'broken', 'steps', 'canaries', 'trials', 'delta'),
)


def main() -> None:
  """Audits a recipe, or correct runs and broken ones."""
  if _CONFIG.value is not None:
    _refuse(_OF_CANARIES, 'is not read with --config: the recipe says it.')
  else:
    _refuse(('draws', 'data_dir'), 'needs --config.')
  app.initialize()
  if _CONFIG.value is not None:
    _audit_recipe()
    return

  from repjax.protocols import canaries

  logging.info('not seen: %s', '; '.join(canaries.CANNOT_SEE))
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


def _refuse(names, why):
  for name in names:
    if flags.FLAGS[name].present:
      raise types.InputError(f'--{name} {why}')


def _audit_recipe():
  from launch.lib import building
  from repjax.protocols import pipeline_audit

  config = _CONFIG.value
  if _DATA_DIR.value:
    config.data.dir = _DATA_DIR.value
  file, preset = app.config_name()
  experiment = building.build(
    recipes.load_config_module(file),
    config,
    preset,
    optimizer=pipeline_audit.readable,
  )
  logging.info('not seen: %s', '; '.join(pipeline_audit.CANNOT_SEE))
  findings = pipeline_audit.audit(
    experiment, seed=_SEED.value, draws=_DRAWS.value
  )
  for finding in findings:
    fields = finding._asdict()
    if math.isinf(finding.measured):  # Which JSON has no number for.
      fields['measured'] = 'infinite'
    print(files.json_line(fields), end='', flush=True)
  wrong = [x for x in findings if not x.holds]
  if wrong:
    logging.error('%d of %d are not as claimed', len(wrong), len(findings))
    raise SystemExit(app.USAGE)


if __name__ == '__main__':
  app.run(main)
