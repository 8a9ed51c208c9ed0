"""Presets: how layers of numbers become a config, and the layers of all images.

A layer is preset -> fields. `small` lies on `paper`, and `smoke` on both; any
other preset says what it lies on: `mnist=dict(on='small', data=...)`. A recipe
lays its own numbers over a layer here, and a study may lay its own over those.
"""

from collections.abc import Mapping
from typing import Any
from typing import TypeVar

from ml_collections import config_dict

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
    **RUN['paper'],
    min_steps=0,
    augment=dict(size=0, padding=0, flip=False),
  ),
  small=dict(data=dict(name='digits')),
  smoke=RUN['smoke'],
)


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
    raise ValueError(f'presets are {", ".join(known)}; got {preset!r}')
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
