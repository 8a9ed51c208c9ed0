"""What a launcher asks of recipes and studies."""

import pathlib
import types

import ml_collections
import pytest

from launch.lib import recipes
from launch.lib import restored
from launch.lib import results
from repjax import run
from repjax import types as repjax_types


def test_a_preset_can_have_more_seeds():
  study = types.SimpleNamespace(SEEDS=(0, 1), MORE_SEEDS=dict(quick=(5,)))
  assert recipes.seeds(study, 'small') == (0, 1)
  assert recipes.seeds(study, 'quick') == (0, 1, 5)
  # A command names the number of seeds only where it is not all of them.
  assert 'seeds' not in results.command('sam', 'quick', 3, study)
  assert results.command('sam', 'quick', 2, study).endswith(
    '--preset=quick --seeds=2'
  )
  assert recipes.seeds(types.SimpleNamespace(SEEDS=(7,)), 'quick') == (7,)


def test_a_recipe_that_was_changed_elsewhere_is_none_of_ours(tmp_path):
  own = recipes.own_recipe('configs/sam.py')
  other = tmp_path / 'configs' / 'sam.py'
  assert recipes.own_recipe(str(other)) == own  # Of a checkout that is gone.
  other.parent.mkdir()
  text = pathlib.Path(own).read_text()
  other.write_text(text)
  assert recipes.own_recipe(str(other)) == own
  other.write_text(f'{text}# Mine.\n')
  with pytest.raises(repjax_types.InputError, match=f'--config={other}'):
    recipes.own_recipe(str(other))


@pytest.mark.parametrize('paper', recipes.papers())
def test_more_seeds_are_of_presets_and_others(paper):
  study = recipes.load_study(paper)
  for preset in getattr(study, 'MORE_SEEDS', {}):
    assert results.has_preset(study, preset)
    found = recipes.seeds(study, preset)
    assert len(set(found)) == len(found) > len(study.SEEDS)


@pytest.mark.parametrize(
  ('name', 'text', 'value'),
  [
    ('features', '64', (64,)),
    ('features', '(64, 32)', (64, 32)),
    ('splits', 'train', ('train',)),
  ],
)
def test_a_trial_reads_a_tuple_as_its_flag_does(name, text, value):
  config = ml_collections.ConfigDict(dict(features=(128, 64), splits=('test',)))
  assert not recipes.field_problem(config, [name], text)
  recipes.set_field(config, name, text)
  assert config[name] == value


def test_a_config_may_have_no_group_of_data(tmp_path):
  made = ml_collections.ConfigDict(dict(seed=0, run=dict(keep=2)))
  stored = types.SimpleNamespace(config=run.identity(made))
  restored._as_trained(made, stored, tmp_path)
  assert made.seed == 0
