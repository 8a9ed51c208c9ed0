"""What recipes of WILDS and U-WILDS share: the algorithms' numbers, a build."""

from collections.abc import Callable
from collections.abc import Sequence

from ml_collections import config_dict

from configs import presets
from repjax import types
from repjax.benchmarks.wilds import experiment

# Those of Camelyon17, where the authors' differ between sets.
ALGORITHMS: presets.Layer = dict(
  paper=dict(
    algorithm='erm',
    # Split of the rows without labels; '' for none. Domains are those of
    # config.data.group_by, or, with such rows and as in U-WILDS, those of
    # training and the others.
    unlabelled='',
    groups_per_batch=2,
    # Runs: of 'erm', and of one that learns from rows without labels alone, of
    # which the network is started from.
    **dict(teacher='', pretrained=''),
    group_dro=dict(step_size=0.01),
    irm=dict(weight=1.0, at=500),
    coral=dict(weight=0.1),
    dann=dict(weight=0.1),
    adversary=dict(features=(1024, 1024), normalize=True),
    afn=dict(weight=0.01),
    pseudo_label=dict(threshold=0.7),
    noisy_student=dict(weight=1.0, dropout_rate=0.5),
  )
)


def build(
  config: config_dict.ConfigDict,
  method: Callable[..., types.Method],
  build_run: Callable[..., types.Experiment],
  optimizer: types.Optimizer,
  *,
  kinds: Sequence[str],
) -> types.Experiment:
  """One training run of any algorithm.

  Args:
    config: Of the recipe.
    method: That of the recipe.
    build_run: `experiment.build` or `text_runs.build`.
    optimizer: What ends the optax chain.
    kinds: What `config.data.kind` may be in the recipe.
  """
  types.check_choice('config.data.kind', config.data.kind, tuple(kinds))
  data = experiment.read(config)
  pseudo = None
  if config.algorithm == 'noisy_student':
    teacher = method(config, data, algorithm='erm')
    pseudo = experiment.taught(config, data, teacher)
  made = method(config, data, optimizer)
  return build_run(config, data, made, pseudo=pseudo)
