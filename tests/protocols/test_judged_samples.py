"""Distances by published weights are of images in these weights' units."""

import numpy as np
import pytest

from repjax import types
from repjax.protocols import judged_samples


@pytest.mark.parametrize('image', [np.zeros((2, 8, 8, 3), np.uint8), [3.0]])
def test_images_in_other_units_are_refused_before_weights_are_read(image):
  with pytest.raises(types.InputError, match=r'floats in \[-1, 1\]'):
    judged_samples.inception('nowhere.npz', np.asarray(image))
