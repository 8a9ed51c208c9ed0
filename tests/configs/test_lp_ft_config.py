"""Where a run of configs/lp_ft.py begins."""

import chex
import numpy as np
from PIL import Image
import pytest

from configs import lp_ft as recipe
from configs.studies import lp_ft as study
from repjax import loop
from repjax import start
from repjax import types
from repjax.data.reading import decode


def began(stage='lp_ft'):
  config = recipe.get_config('smoke')
  config.stage = stage
  experiment = recipe.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), seed=0)
  return experiment, state, experiment.warm_start(state)


def test_a_run_begins_at_a_pretrained_backbone_and_a_probe():
  experiment, fresh, probed = began()
  assert not np.allclose(
    probed.params['hidden_0']['kernel'], fresh.params['hidden_0']['kernel']
  )
  evaluator = loop.Evaluator(experiment.method)
  accuracy = {}
  for name, state in (('fresh', fresh), ('probed', probed)):
    outputs, columns = evaluator(state, experiment.evals('val'))
    accuracy[name] = experiment.measure(outputs, columns)['accuracy']
  assert accuracy['probed'] > 0.5 > accuracy['fresh']
  # The sets of each name: the same test digits in other colours.
  inputs, others = (
    next(iter(experiment.evals(split))) for split in ('test', 'ood')
  )
  np.testing.assert_array_equal(inputs['label'], others['label'])
  assert inputs['image'][..., 1:].max() == 0 == others['image'][..., 0].max()


def test_a_probe_by_sgd_begins_at_the_backbone_and_trains_the_head_alone():
  _, fresh, tuned = began('ft')
  _, _, probing = began('lp')
  assert set(probing.params) == {'head'}
  both = start.parameters(probing)
  chex.assert_trees_all_equal(both, tuned.params)
  chex.assert_trees_all_equal(both['head'], fresh.params['head'])


def test_what_cannot_be_run_is_named():
  config = recipe.get_config('smoke')
  config.stage = 'both'
  with pytest.raises(types.InputError, match=r'config\.stage'):
    recipe.build(config)
  with pytest.raises(types.InputError, match='preset=small'):
    study.run(study.get_config('paper'))


def test_the_papers_images_are_resized_alone():
  augment = recipe.get_config('paper').augment
  rng = np.random.default_rng(0)
  picture = decode.to_picture(rng.integers(0, 256, (32, 32, 3), np.uint8))
  crop = decode.inception_crop(augment.size, area=tuple(augment.area))
  whole = decode.resize(augment.size)
  for _ in range(20):
    np.testing.assert_array_equal(
      crop.apply(picture, rng.random(crop.num_draws)),
      whole.apply(picture, np.empty(0)),
    )
  assert not augment.flip


def test_movement_is_from_where_training_began():
  config = study.get_config('smoke')
  config.study.rates = (1e-9, 2e-9)
  with np.errstate(all='ignore'):  # Of ratios of nothing.
    found = study.run(config, seeds=(0, 1)).scalars
  for name in ('FT', 'L2-SP', 'scratch'):
    for inputs in ('ID', 'OOD'):
      assert found[f'{name}, {inputs} movement'].max() < 1e-3


def test_files_are_read_as_rows_to_predict(tmp_path):
  Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / 'a.png')
  made = recipe.build(recipe.get_config('smoke'))
  found = made.evals(f'inputs:{tmp_path}')
  assert found.source.split == f'inputs:{tmp_path}' and len(found.source) == 1
  image = found.batch(0)['image'][0]
  assert image.shape == (8, 8, 3) and image[..., 1:].max() == 0 < image.max()
