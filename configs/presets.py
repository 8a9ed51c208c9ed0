"""Presets: how layers of numbers become a config, and the layers of all images.

A layer is preset -> fields. `small` lies on `paper`, and `smoke` on both; any
other preset says what it lies on: `mnist=dict(on='small', data=...)`. A recipe
lays its own numbers over a layer here, and a study may lay its own over those.
"""

from collections.abc import Mapping
import math
from typing import Any
from typing import TypeVar

from ml_collections import config_dict

from repjax import trees
from repjax import types

_T = TypeVar('_T')

Layer = Mapping[str, Mapping[str, Any]]

_UNDER = {'paper': (), 'small': ('paper',), 'smoke': ('small',)}

RUN: Layer = dict(
  paper=dict(
    seed=0,
    data=dict(dir='', train_split='train', num_workers=0),
    step=dict(microbatches=1, compute_dtype='float32', ema_decay=0.0),
    run=dict(
      log_every=100, eval_every=2000, save_every=1000, keep=2, best_mode='max'
    ),
  ),
  smoke=dict(run=dict(log_every=4, eval_every=4, save_every=4)),
)

IMAGES: Layer = dict(
  paper=dict(
    **RUN['paper'], min_steps=0, augment=dict(size=0, padding=0, flip=False)
  ),
  small=dict(data=dict(name='digits')),
  smoke=RUN['smoke'],
)


# Of value / 255, over all pixels of the training images.
CIFAR10 = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))

# What numbers with these names may be, in all recipes and groups. The ranges of
# others are known to what they are handed to; infinite are only those of which
# it is said here.
LIMITS = {
  'seed': '[0, 4294967295]',
  'batch_size': '[1, inf)',
  'eval_batch_size': '[1, inf)',
  'epochs': '[0, inf)',
  'min_steps': '[0, inf)',
  'pretraining.steps': '[0, inf)',
  'data.num_workers': '[0, 1024]',
  'data.num_tasks': '[1, inf)',
  'model.hidden_dim': '[1, inf)',
  'model.mlp_dim': '[1, inf)',
  'model.num_heads': '[1, inf)',
  'model.num_layers': '[1, 10000]',
  'tokenizer.hidden_dim': '[1, inf)',
  'tokenizer.vocab_size': '[1, inf)',
  'tokenizer.num_blocks': '[0, inf)',
  'patch_grid': '[1, inf)',
  'step.microbatches': '[1, inf)',
  'step.ema_decay': '[0, 1)',
  'step.l2': '[0, inf)',
  'step.label_smoothing': '[0, 1)',
  'tx.learning_rate': '(0, inf)',
  'tx.end': '[0, 1]',
  'tx.layer_decay': '(0, 1]',
  'tx.weight_decay': '[0, inf)',
  'tx.momentum': '[0, 1)',
  'tx.warmup': '[0, 1)',
  'tx.clip': '[0, inf)',
  'mixup.alpha': '[0, inf)',
  'dp.epsilon': '(0, inf]',
  'run.log_every': '[1, inf)',
  'run.eval_every': '[0, inf)',
  'run.save_every': '[0, inf)',
  'run.keep': '[1, inf)',
}
_LARGEST = 2**31  # Of whole numbers, but of seeds.


def get_config(preset: str, *layers: Layer) -> config_dict.ConfigDict:
  """The numbers of a preset.

  Args:
    preset: One that a layer has.
    *layers: Each lies over those before it, preset by preset.

  Raises:
    ValueError: If no layer has the preset, or one holds claims, which are no
      numbers of a run.
  """
  config = config_dict.ConfigDict()
  for name in _chain(preset, layers):
    for layer in layers:
      fields = {k: x for k, x in layer.get(name, {}).items() if k != 'on'}
      if 'claims' in fields:
        raise ValueError(
          f'preset {name!r} holds claims: they stand in configs/studies, where '
          'no flag can change them'
        )
      config.update(fields)
  return config


def fields(config: config_dict.ConfigDict) -> dict[str, Any]:
  """All fields of a config by their names, 'a.b'."""
  found = {}
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      found.update({f'{name}.{x}': y for x, y in fields(value).items()})
    else:
      found[name] = value
  return found


def check(config: config_dict.ConfigDict) -> None:
  """Refuses numbers that no recipe can use.

  Raises:
    InputError: A number is not finite, too large, or outside of `LIMITS`.
  """
  for name, value in fields(config).items():
    limits = next(
      (y for x, y in LIMITS.items() if f'.{name}'.endswith(f'.{x}')), None
    )
    for x in value if isinstance(value, tuple) else (value,):
      if isinstance(x, float) and not math.isfinite(x) and limits is None:
        raise types.InputError(f'config.{name}={value} is no number.')
      if isinstance(x, int) and abs(x) >= _LARGEST and name != 'seed':
        raise types.InputError(
          f'config.{name}={value} is too large: whole numbers are below 2^31.'
        )
    if limits is not None:
      types.check_range(limits, **{f'config.{name}': value})
    if name == 'data.eval_splits' and (
      not value or not all(isinstance(x, str) for x in value)
    ):
      raise types.InputError(
        f"config.{name} names splits, such as ('test',); got {value}."
      )
    if name == 'run.best_mode':
      types.check_choice(f'config.{name}', value, ('max', 'min'))


def names(*layers: Layer) -> tuple[str, ...]:
  """All presets of some layers: paper, small, smoke, and the others."""
  return tuple(dict.fromkeys([*_UNDER, *(x for y in layers for x in y)]))


def choose(field: str, name: str, choices: Mapping[str, _T]) -> _T:
  """What a field of a config names.

  Args:
    field: Of the config, such as 'data.kind'.
    name: What the field holds.
    choices: What it may hold, and what each stands for.

  Raises:
    InputError: If it holds none of them.
  """
  if name not in choices:
    raise types.InputError(
      f'config.{field} is one of {", ".join(choices)}; got {name!r}.'
    )
  return choices[name]


def _chain(preset: str, layers) -> tuple[str, ...]:
  """Presets that lie under one, the lowest first, and itself."""
  known = names(*layers)
  if preset not in known:
    near = trees.nearest(preset, known)
    raise ValueError(f'presets are {", ".join(known)}; got {preset!r}.{near}')
  under = _UNDER.get(preset)
  if under is None:
    said = [x[preset]['on'] for x in layers if 'on' in x.get(preset, {})]
    if not said:
      raise ValueError(
        f"preset {preset!r} says no on='...': what lies under it"
      )
    under = (said[-1],) if isinstance(said[-1], str) else tuple(said[-1])
  lower = [x for name in under for x in _chain(name, layers)]
  return (*dict.fromkeys(lower), preset)
