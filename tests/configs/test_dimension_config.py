"""Which rows a run of the intrinsic dimension's recipe learns from."""

import pytest

from configs import intrinsic_dimension
from configs.parts import dimension_study as parts
from configs.studies import intrinsic_dimension as study
from repjax import types
from repjax.experiments import of_images


def _config(**changes):
  config = intrinsic_dimension.get_config('smoke')
  config.images = 'set'
  config.update_from_flattened_dict(changes)
  return config


def test_rows_are_those_of_the_split_that_is_named():
  split = 'train[:10%]'
  config = _config(**{'data.train_split': split, 'num_rows': 100})
  named = of_images.load(config, split).column('image')
  learnt = intrinsic_dimension.rows(config, split).column('image')
  kinds = {x.tobytes() for x in named}
  assert len(learnt) == 100 < len(named)
  assert all(x.tobytes() in kinds for x in learnt)
  assert len(intrinsic_dimension.rows(config, 'test')) == 355
  # Of the run, too, which knows how many rows it has.
  config.update_from_flattened_dict({'min_steps': 0, 'epochs': 64.0})
  assert intrinsic_dimension.build(config).steps == 100


@pytest.mark.parametrize('num_rows', [-5, 0, 100_000])
def test_a_set_has_no_more_rows_than_it_has(num_rows):
  with pytest.raises(types.InputError, match=r'config.num_rows must be in \[1'):
    intrinsic_dimension.build(_config(num_rows=num_rows))


@pytest.mark.parametrize('preset', ['small', 'smoke'])
def test_each_seed_asks_anchors_of_its_own(preset):
  config = study.get_config(preset)
  images = parts.images_of_set(config)
  first, other = (parts.describe(config, images, seed) for seed in (0, 1))
  assert abs(first.curve['k-1'] - other.curve['k-1']).min() > 1e-6
  assert abs(first.two_nn - other.two_nn) > 1e-6
