"""Distribution Calibration's runs: base classes alone, by their names."""

import numpy as np
from PIL import Image
import pytest

from configs import distribution_calibration as recipe
from configs.studies import distribution_calibration as study
from repjax.data.reading import source


@pytest.mark.parametrize('seed', range(4))
def test_files_are_predicted_by_the_names_of_base_classes(tmp_path, seed):
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'a.png')
  config = recipe.get_config('smoke')
  config.seed = seed
  rows = recipe.build(config).evals(f'inputs:{tmp_path}').source
  base, _ = recipe.classes(
    config, source.load('digits', 'train').column('label'), seed
  )
  assert len(rows) == 1
  assert rows.class_names == tuple(map(str, base))


def test_the_consistent_form_is_compared_with_a_regression_on_rows():
  names = ('logistic regression', 'power', 'l2', 'calibrated, published')
  accuracy = {
    (shots, name, mean): np.array([0.1, 0.2]) * i
    for shots, mean in ((1, None), (5, None), (1, study._AUTHORS))
    for i, name in enumerate((*names, 'calibrated, consistent'))
  }
  found = study._differences(accuracy)
  np.testing.assert_allclose(found['consistent_gain'], [0.4, 0.8])
  np.testing.assert_allclose(found['consistent_five'], [0.1, 0.2])
