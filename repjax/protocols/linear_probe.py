"""Protocol: logistic regression on frozen features, to convergence.

The probe of Kumar et al., 'Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution', ICLR 2022 (https://arxiv.org/abs/2202.10054),
as in the authors' code (`log_reg_sk.py`): one mean and standard deviation for
all features, a grid of regularization strengths gone through from strong to
weak, each fit starting at the last one, the first of the best on held-out rows
of the training distribution. Weights are mapped back to features as they are.

Two solvers of the same problem: scikit-learn's on the host, in float64, and
`regularization_path`, device code that can be jitted and vectorized.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple
import warnings

from absl import logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax import loop
from repjax import types
from repjax.methods import logistic_regression
from repjax.methods import lp_ft
from repjax.methods import model_inputs
from repjax.types import InputError


class Head(NamedTuple):
  """A linear classifier, as `lp_ft.with_head` takes it.

  Attributes:
    kernel: [D, C].
    bias: [C].
  """

  kernel: np.ndarray
  bias: np.ndarray


class Probe(NamedTuple):
  """The best head of a path of K regularization strengths.

  Attributes:
    head: For features as they are. Classes without rows have zeros.
    chosen: Its place in the path.
    strengths: Inverse regularization C, [K].
    accuracy: On the held-out rows, [K].
    converged: Whether the solver reached its tolerance, [K].
  """

  head: Head
  chosen: int
  strengths: np.ndarray
  accuracy: np.ndarray
  converged: np.ndarray


def strengths(num: int = 50, low: float = -7.0, high: float = 2.0):
  """The authors' grid of C, log-spaced from 10^low to 10^high, [num]."""
  if num < 1 or low > high:
    raise InputError(
      f'Need num >= 1 and low <= high; got {num=}, {low=}, {high=}'
    )
  return np.logspace(low, high, num)


def of_model(
  model: nn.Module,
  state: types.TrainState,
  *,
  train: Iterable[types.HostBatch],
  val: Iterable[types.HostBatch],
  num_classes: int,
  head: str = 'head',
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> Probe:
  """Fits the head of a network; features come from all devices.

  Args:
    model: Of the state.
    state: Its backbone is what the features are made by.
    train: Host batches of one pass (`data.batches.in_order.eval_batches`), with
      'label'.
    val: Such batches of held-out rows of the same distribution.
    num_classes: C.
    head: Module names of the head, joined by '/'.
    inputs: What the model is called with, in place of images.
    **settings: Arguments of `fit`; no intercept where the head has no bias.
  """
  predict = lp_ft.features(model, layer=head, inputs=inputs)
  evaluator = loop.Evaluator(types.Predictor(predict))
  rows, columns = evaluator(state, train)
  val_rows, val_columns = evaluator(state, val)
  leaf = state.params
  for name in head.split('/'):
    leaf = leaf[name]
  return fit(
    rows['features'],
    columns['label'],
    val_features=val_rows['features'],
    val_labels=val_columns['label'],
    num_classes=num_classes,
    intercept='bias' in leaf,
    **settings,
  )


def fit(
  features: np.ndarray,
  labels: np.ndarray,
  *,
  val_features: np.ndarray,
  val_labels: np.ndarray,
  num_classes: int,
  grid: Sequence[float] | np.ndarray | None = None,
  max_iter: int = 200,
  tol: float = 1e-4,
  intercept: bool = True,
  solver: Literal['sklearn', 'jax'] = 'sklearn',
) -> Probe:
  """Multinomial logistic regression along a path of strengths.

  With C = strength it minimizes C * sum of cross-entropies + |W|^2 / 2 over
  standardized features; the intercept is free. Two classes share one weight
  vector w, as scikit-learn has it, which becomes the rows (-w / 2, w / 2).

  Args:
    features: [N, D].
    labels: Integers in [0, num_classes), [N].
    val_features: Held-out rows of the same distribution, [M, D].
    val_labels: [M].
    num_classes: C; classes without rows get zeros, as in the authors' code.
    grid: Strengths in rising order; `strengths()` if None.
    max_iter: Steps of the solver for each strength.
    tol: Largest entry of the gradient of the mean loss at which to stop.
    intercept: Whether there is a bias. Without it features are only scaled.
    solver: 'sklearn' (float64), or 'jax' (float32, one compiled call).

  Returns:
    The first head of the path that is best on the held-out rows.

  Raises:
    InputError: Rows do not fit, are not finite, all equal or of one class, or
      the grid is none.
  """
  solve = {'sklearn': _sklearn_path, 'jax': _jax_path}.get(solver)
  if solve is None:
    raise InputError(f"solver is 'sklearn' or 'jax'; got {solver=}")
  grid = strengths() if grid is None else np.asarray(grid, np.float64)
  inside = np.isfinite(grid) & (grid > 0)
  if grid.ndim != 1 or not len(grid) or not inside.all():
    raise InputError(f'grid must be positive and finite numbers; got {grid=}')
  if (np.diff(grid) < 0).any():
    raise InputError(f'grid must rise, from strong to weak; got {grid=}')
  features, labels = _check('', features, labels, num_classes)
  val_features, val_labels = _check(
    'val_', val_features, val_labels, num_classes
  )
  if features.shape[1] != val_features.shape[1]:
    raise InputError(
      f'features have {features.shape[1]} columns, val_features '
      f'{val_features.shape[1]}.'
    )
  present, places = np.unique(labels, return_inverse=True)
  if len(present) < 2:
    raise InputError(
      f'All rows have the label {present[0]}: a probe needs two classes.'
    )
  mean = features.mean() if intercept else 0.0
  std = features.std()
  if std == 0:
    raise InputError('All features are equal: there is nothing to probe.')
  kernels, biases, converged = solve(
    (features - mean) / std,
    places,
    grid,
    intercept=intercept,
    max_iter=max_iter,
    tol=tol,
  )
  heads = [
    _head(*x, mean, std, present, num_classes)
    for x in zip(kernels, biases, strict=True)
  ]
  hits = [_guess(x, val_features, present) == val_labels for x in heads]
  accuracy = np.asarray([x.mean() for x in hits])
  chosen = int(accuracy.argmax())
  if not converged[chosen]:
    logging.warning(
      f'The chosen probe (C = {grid[chosen]:.3g}) stopped after {max_iter} '
      f'steps, before its gradient was below {tol:.3g}.'
    )
  return Probe(heads[chosen], chosen, grid, accuracy, np.asarray(converged))


def _check(prefix, features, labels, num_classes):
  features = np.asarray(features, np.float64)
  labels = np.asarray(labels)
  fits = features.ndim == 2 and labels.shape == features.shape[:1]
  if not fits or not len(labels):
    raise InputError(
      f'{prefix}features must be [N, D] and {prefix}labels [N] with N > 0; got '
      f'{features.shape} and {labels.shape}.'
    )
  if not np.isfinite(features).all():
    rows = np.flatnonzero(~np.isfinite(features).all(1))
    raise InputError(
      f'{prefix}features are not finite in {len(rows)} rows, the first of them '
      f'{rows[0]}: check the backbone.'
    )
  integers = np.issubdtype(labels.dtype, np.integer)
  if not integers or labels.min() < 0 or labels.max() >= num_classes:
    raise InputError(
      f'{prefix}labels must be integers in [0, {num_classes}); got '
      f'{labels.dtype} from {labels.min()} to {labels.max()}.'
    )
  return features, labels


def _head(kernel, bias, mean, std, present, num_classes):
  """Undoes the standardization and the numbering of classes."""
  kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
  if kernel.shape[1] == 1:  # sigmoid(z) is the softmax of (-z / 2, z / 2).
    kernel = np.concatenate([-kernel / 2, kernel / 2], 1)
    bias = np.concatenate([-bias / 2, bias / 2])
  kernel = kernel / std
  bias = bias - mean * kernel.sum(0)
  full = Head(np.zeros((len(kernel), num_classes)), np.zeros(num_classes))
  full.kernel[:, present] = kernel
  full.bias[present] = bias
  return full


def _guess(head, features, present):
  """Among classes that had rows: a zero is no score that could win."""
  logits = features @ head.kernel + head.bias
  return present[logits[:, present].argmax(1)]


def _sklearn_path(features, labels, grid, *, intercept, max_iter, tol):
  from sklearn import exceptions
  from sklearn import linear_model

  model = linear_model.LogisticRegression(
    warm_start=True, fit_intercept=intercept, max_iter=max_iter, tol=tol
  )
  kernels, biases, converged = [], [], []
  for strength in grid:
    model.C = strength
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
      model.fit(features, labels)
    kernels.append(model.coef_.T.copy())
    biases.append(np.broadcast_to(model.intercept_, len(model.coef_)).copy())
    converged.append(int(np.max(model.n_iter_)) < max_iter)
  return kernels, biases, converged


def _jax_path(features, labels, grid, *, intercept, max_iter, tol):
  path = _compiled_path(
    jnp.asarray(features, jnp.float32),
    jnp.asarray(labels),
    jnp.asarray(grid, jnp.float32),
    num_classes=int(labels.max()) + 1,
    intercept=intercept,
    max_iter=max_iter,
    tol=tol,
  )
  kernels, biases, steps = jax.device_get(path)
  return kernels, biases, steps < max_iter


def regularization_path(
  features: jax.Array,
  labels: jax.Array,
  grid: jax.Array,
  *,
  num_classes: int,
  intercept: bool = True,
  max_iter: int = 200,
  tol: float = 1e-4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Fits heads by Newton's method: device code, for jit and vmap.

  Args:
    features: Standardized, [N, D].
    labels: Integers in [0, num_classes), [N]; every class should have rows.
    grid: Strengths, [K].
    num_classes: C >= 2.
    intercept: Whether there is a bias.
    max_iter: Steps for each strength.
    tol: Largest entry of the gradient of the mean loss at which to stop.

  Returns:
    (kernels [K, D, C], biases [K, C], steps [K]); the last axis of the first
    two is 1 for two classes.
  """

  def solve(start, strength):
    fitted = logistic_regression.fit(
      features,
      labels,
      num_classes=num_classes,
      strength=strength,
      start=start,
      intercept=intercept,
      max_iter=max_iter,
      tol=tol,
    )
    return fitted, fitted

  num_outputs = num_classes if num_classes > 2 else 1
  start = logistic_regression.zeros(features.shape[1], num_outputs)
  _, path = jax.lax.scan(solve, start, grid)
  return tuple(path)


_compiled_path = jax.jit(
  regularization_path,
  static_argnames=('num_classes', 'intercept', 'max_iter', 'tol'),
)
