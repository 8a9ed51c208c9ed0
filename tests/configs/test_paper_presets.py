"""What a paper's own numbers need is said in one line, by recipe and study."""

import importlib

import pytest

from launch.lib import recipes
from repjax import types

# What needs no set and no weights: its paper draws all rows.
_ALONE = ('sample_efficiency',)
_PRESETS = [
  (paper, preset)
  for paper in recipes.papers()
  if paper not in _ALONE
  for preset in importlib.import_module(f'configs.{paper}').PRESETS
  if preset.startswith('paper')
]
_TELLS = ('launch.prepare', '--config.', '--preset=small', 'config.weights')


@pytest.mark.parametrize(('paper', 'preset'), _PRESETS)
@pytest.mark.parametrize('room', ['configs', 'configs.studies'])
def test_what_is_missing_is_said_in_one_line(room, paper, preset, tmp_path):
  module = importlib.import_module(f'{room}.{paper}')
  with pytest.raises(types.InputError) as error:
    config = module.get_config(preset)
    config.data.dir = str(tmp_path)
    if room == 'configs':
      module.build(config)
    else:
      module.run(config, (0,))
  assert '\n' not in str(error.value)
  assert any(text in str(error.value) for text in _TELLS), error.value
