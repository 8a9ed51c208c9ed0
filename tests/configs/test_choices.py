"""Fields of recipes that name one of several kinds."""

import importlib
import json
import math

import pytest

from launch.lib import recipes
from repjax import types


@pytest.mark.parametrize(
  ('paper', 'field', 'choices'),
  [
    ('mixup', 'network', 'mlp, preact_resnet, alexnet'),
    ('gpm', 'network', 'mlp, alexnet, preact_resnet'),
    ('gpm', 'data.stream', 'permuted, rotated, split, sets'),
    ('gradient_vaccine', 'data.kind', 'family, tfds'),
    ('gradient_vaccine', 'surgery.kind', 'gradvac, pcgrad, uniform'),
  ],
)
def test_a_wrong_one_is_named_with_the_right_ones(paper, field, choices):
  recipe = importlib.import_module(f'configs.{paper}')
  config = recipe.get_config('smoke')
  config.update_from_flattened_dict({field: 'blue'})
  with pytest.raises(types.InputError) as error:
    recipe.build(config)
  assert str(error.value) == f"config.{field} is one of {choices}; got 'blue'."


def test_infinity_comes_back_from_a_file():
  file = next(x for x in recipes.config_files() if x.stem == 'dp_finetuning')
  config = recipes.load_config_module(str(file)).get_config('smoke')
  stored = json.loads(json.dumps(config.to_dict()))
  stored['dp']['epsilon'] = None  # As JSON has it.
  recipes.update(config, stored)
  assert config.dp.epsilon == math.inf


@pytest.mark.parametrize(
  ('paper', 'field'),
  [
    ('flan', 'data.file'),
    ('performer', 'data.path'),
    ('rfa', 'data.path'),
    ('lp_ft', 'weights'),
    ('beit', 'pretrained'),
  ],
)
def test_what_nothing_would_read_is_refused(paper, field):
  recipe = importlib.import_module(f'configs.{paper}')
  config = recipe.get_config('smoke')
  config.update_from_flattened_dict({field: 'mine'})
  with pytest.raises(types.InputError, match=f'config.{field}=mine counts'):
    recipe.build(config)


@pytest.mark.parametrize(
  ('name', 'claims'),
  [
    ('gpm', ('bwt', 'bwt_mnist')),
    ('vit', ('gap_few', 'gap_shrinks')),
    ('mixup', ('accuracy_gain',)),
    ('tent', ('clean_cost',)),
    ('wilds_text', ('known_cost',)),
    ('performer', ('performer_over_exact', 'recovered_over_exact')),
  ],
)
def test_nothing_holds_by_networks_that_learn_nothing(name, claims):
  study = importlib.import_module(f'configs.studies.{name}')
  for claim in claims:
    needs = study.CLAIMS[claim].get('needs', ())
    assert needs, claim
    assert all(study.CLAIMS[x]['kind'] == 'first' for x in needs)
