"""Host side: measures of forecasts, over all numbers that were measured."""

from collections.abc import Mapping

import numpy as np
from scipy import special


def measure(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Measures of 'forecast' and of each '<name> forecast'.

  Args:
    outputs: 'forecast', 'target' and 'target_observed' [N, H, C], 'centre' and
      'scale' [N, C]; perhaps 'deviation' and '<name> forecast' [N, H, C].

  Returns:
    'mse' and 'mae' in scaled units, as in papers, and 'mse_units'
    and 'mae_units' in those of the source, where columns with large numbers
    count most; 'nrmse', 'nd' (of the source's units, over the mean size of the
    truth) and 'crps' (scaled units; of a forecast without deviations it is the
    mean absolute error); and '<name>_mse', '<name>_mae'. {} where nothing was
    measured: of the future.
  """
  observed = outputs['target_observed'] > 0
  if not observed.any():
    return {}
  target = outputs['target'].astype(np.float64)
  scale = outputs['scale'][:, None].astype(np.float64)
  truth = target * scale + outputs['centre'][:, None]
  error = outputs['forecast'] - target
  size = abs(truth)[observed].mean()
  numbers = {
    'mse': np.square(error)[observed].mean(),
    'mae': abs(error)[observed].mean(),
    'mse_units': np.square(error * scale)[observed].mean(),
    'mae_units': abs(error * scale)[observed].mean(),
  }
  numbers['nrmse'] = np.sqrt(numbers['mse_units']) / size
  numbers['nd'] = numbers['mae_units'] / size
  numbers['crps'] = numbers['mae']
  if 'deviation' in outputs:
    numbers['crps'] = crps_of_gaussians(error, outputs['deviation'])[
      observed
    ].mean()
  for name in outputs:
    title, _, rest = name.rpartition(' ')
    if rest == 'forecast' and title:
      error = outputs[name] - target
      numbers[f'{title}_mse'] = np.square(error)[observed].mean()
      numbers[f'{title}_mae'] = abs(error)[observed].mean()
  return {name: float(x) for name, x in numbers.items()}


def crps_of_gaussians(error: np.ndarray, deviation: np.ndarray) -> np.ndarray:
  """Continuous ranked probability score of Gaussian forecasts.

  Gneiting and Raftery, 'Strictly Proper Scoring Rules', JASA 2007, section 4.2
  (https://doi.org/10.1198/016214506000001437).

  Args:
    error: Mean minus truth, [...].
    deviation: Standard deviations > 0, [...].

  Returns:
    [...], in the units of the error.
  """
  deviation = deviation.astype(np.float64)
  z = error / deviation
  density = np.exp(-0.5 * np.square(z)) / np.sqrt(2 * np.pi)
  return deviation * (
    z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)
  )


def mse(
  outputs: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Mean squared error in scaled units, one a seed.

  Args:
    outputs: 'forecast', [S, N, H, C].
    rows: 'target' and 'target_observed', [N, H, C].

  Returns:
    [S].
  """
  return _mean(np.square(outputs['forecast'] - rows['target']), rows)


def mae(
  outputs: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Mean absolute error, one a seed; arguments of `mse`."""
  return _mean(abs(outputs['forecast'] - rows['target']), rows)


def _mean(values, rows):
  observed = np.asarray(rows['target_observed'])
  total = np.where(observed > 0, values, 0).sum((1, 2, 3), dtype=np.float64)
  return total / observed.sum(dtype=np.float64)
