"""Fine-tuning of a two-layer linear network whose data leave directions out.

The theory of Kumar et al., 'Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution', ICLR 2022 (https://arxiv.org/abs/2202.10054),
as a computation: f(x) = v'Bx with features B [k, d] and a head v [k], squared
loss against f*(x) = v*'B*x, and training inputs from a subspace S of fewer than
d dimensions. Gradients of B lie in S, so that features of inputs orthogonal to
S never move; when the head has to learn at the same time, it comes to fit the
moved features of S, and is wrong for the others. Host side, float64.
"""

import functools
from typing import NamedTuple

import numpy as np

from repjax.types import InputError


class Problem(NamedTuple):
  """A target, pretrained features, and training inputs in a subspace.

  Attributes:
    weights: w* = B*'v*, [d], of norm 1.
    features: B0, orthonormal rows, [k, d].
    subspace: Orthonormal basis of S, [d, m].
    covariance: X'X / n of the n training inputs, [d, d].
  """

  weights: np.ndarray
  features: np.ndarray
  subspace: np.ndarray
  covariance: np.ndarray


class Network(NamedTuple):
  """f(x) = head' features x.

  Attributes:
    head: v, [k].
    features: B, [k, d].
  """

  head: np.ndarray
  features: np.ndarray


def problem(
  seed: int,
  *,
  feature_error: float,
  dim: int = 100,
  num_features: int = 5,
  subspace_dim: int = 20,
  num_rows: int = 200,
) -> Problem:
  """Draws a problem.

  Args:
    seed: Decides all draws.
    feature_error: min over orthogonal U of |B0 - U B*| in the spectral norm, in
      [0, sqrt(2)]; all principal angles are equal.
    dim: Dimensions d of an input.
    num_features: Number k of features, >= 1.
    subspace_dim: Dimensions m of S; k < m < d - k, as the theorem needs.
    num_rows: Number n of inputs, standard normal in S; n >= m.
  """
  if not 0 <= feature_error <= 2**0.5:
    raise InputError(
      f'Need 0 <= feature_error <= sqrt(2); got {feature_error=}'
    )
  if not num_features < subspace_dim < dim - num_features:
    raise InputError(
      'Need num_features < subspace_dim < dim - num_features; got '
      f'{num_features=}, {subspace_dim=}, {dim=}'
    )
  if num_rows < subspace_dim:
    raise InputError(f'Need num_rows >= {subspace_dim=}; got {num_rows=}')
  rng = np.random.default_rng(seed)
  # Rows of B* and as many directions that are orthogonal to them.
  both = np.linalg.qr(rng.normal(size=(dim, 2 * num_features)))[0].T
  true, other = both[:num_features], both[num_features:]
  angle = 2 * np.arcsin(feature_error / 2)
  head = rng.normal(size=num_features)
  subspace = np.linalg.qr(rng.normal(size=(dim, subspace_dim)))[0]
  inputs = rng.normal(size=(num_rows, subspace_dim)) @ subspace.T
  return Problem(
    weights=true.T @ (head / np.linalg.norm(head)),
    features=np.cos(angle) * true + np.sin(angle) * other,
    subspace=subspace,
    covariance=inputs.T @ inputs / num_rows,
  )


def probe(task: Problem) -> Network:
  """The head of least squares on the pretrained features."""
  gram = task.features @ task.covariance @ task.features.T
  target = task.features @ task.covariance @ task.weights
  return Network(np.linalg.solve(gram, target), task.features)


def random_head(task: Problem, seed: int) -> Network:
  """The pretrained features with a Gaussian head, of norm about 1 as v* is."""
  size = len(task.features)
  rng = np.random.default_rng([seed, size])
  return Network(rng.normal(size=size) / size**0.5, task.features)


def fine_tune(
  task: Problem, start: Network, *, learning_rate: float, steps: int
) -> Network:
  """Gradient descent on head and features, half of the mean squared error.

  Labels have no noise, so the n rows act through X'X / n alone.
  """
  head, features = start
  for _ in range(steps):
    slope = task.covariance @ (features.T @ head - task.weights)  # [d]
    head, features = (
      head - learning_rate * features @ slope,
      features - learning_rate * np.outer(head, slope),
    )
  return Network(head, features)


def losses(task: Problem, network: Network) -> dict[str, float]:
  """Expected squared errors.

  Returns:
    'id' for standard normal inputs in S, 'ood' for standard normal ones in all
    d dimensions.
  """
  error = network.features.T @ network.head - task.weights
  return {
    'id': float(np.square(task.subspace.T @ error).sum()),
    'ood': float(np.square(error).sum()),
  }


def movement(task: Problem, network: Network) -> dict[str, float]:
  """Root mean square movement of the features since pretraining.

  Returns:
    'id' for inputs in S, 'orthogonal' for inputs orthogonal to S, both standard
    normal.
  """
  change = network.features - task.features
  inside = change @ task.subspace
  outside = change - inside @ task.subspace.T
  return {
    'id': float(np.linalg.norm(inside)),
    'orthogonal': float(np.linalg.norm(outside)),
  }


def compare(
  *,
  feature_error: float,
  seeds: int,
  learning_rate: float,
  steps: int,
  **sizes: int,
) -> dict[str, dict[str, np.ndarray]]:
  """Probe, fine-tuning and both, on as many problems as there are seeds.

  Args:
    feature_error: Distance of B0 from B*, in [0, sqrt(2)]; see `problem`.
    seeds: Number of problems.
    learning_rate: Step size of gradient descent, > 0.
    steps: Steps of gradient descent, >= 0.
    **sizes: Other arguments of `problem`.

  Returns:
    'LP', 'FT' (from a random head) and 'LP-FT' -> the numbers of `losses` and,
    called 'moved id' and 'moved orthogonal', of `movement`; one a seed.
  """
  found: dict[str, list[dict[str, float]]] = {'LP': [], 'FT': [], 'LP-FT': []}
  tune = functools.partial(fine_tune, learning_rate=learning_rate, steps=steps)
  for seed in range(seeds):
    task = problem(seed, feature_error=feature_error, **sizes)
    start = probe(task)
    networks = {
      'LP': start,
      'FT': tune(task, random_head(task, seed)),
      'LP-FT': tune(task, start),
    }
    for name, network in networks.items():
      moved = movement(task, network)
      found[name].append(
        {
          **losses(task, network),
          **{f'moved {inputs}': x for inputs, x in moved.items()},
        }
      )
  return {
    name: {key: np.asarray([row[key] for row in rows]) for key in rows[0]}
    for name, rows in found.items()
  }
