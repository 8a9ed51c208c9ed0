"""What runs that classify images say of their pixels, for who changes them."""

from typing import Any

import numpy as np

from launch.lib import restored
from repjax import types


def scale(flag, network) -> tuple[Any, Any]:
  """(mean, standard deviation) by which a run scales its pixels."""
  augment = network.config.to_dict().get('augment', {})
  if 'mean' not in augment or 'std' not in augment:
    raise types.InputError(
      f'{flag}={network.workdir} is a run that does not classify images by '
      'config.augment.mean and config.augment.std: only such can be attacked.'
    )
  return (
    np.asarray(augment['mean'], np.float32),
    np.asarray(augment['std'], np.float32),
  )


def shape(network) -> tuple[int, ...] | None:
  """(H, W, C) of what a run is evaluated on, or None if that is no image."""
  image = restored.batch_of(network.experiment).get('image')
  return None if image is None else image.shape[1:]
