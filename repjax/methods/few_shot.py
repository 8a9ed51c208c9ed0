"""Device code: classifiers of an episode, on features that stay as they are.

A classifier is a function (support [N, K, D], query [M, D], rng) -> logits
[M, N]; `protocols.on_episodes` runs many of them on the same episodes.

    few_shot.on(few_shot.tukey(0.5), few_shot.logistic_regression())
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.methods import logistic_regression as regression

Classifier = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# Features [..., D] -> features [..., D].
Map = Callable[[jax.Array], jax.Array]


def logistic_regression(*, strength: float = 1.0) -> Classifier:
  """The optimum that scikit-learn finds, too, at C = `strength`."""
  types.check_range('(0, inf)', strength=strength)

  def classify(support, query, rng):
    del rng
    return fit_and_apply(*flat(support), query, strength=strength)

  return classify


def fit_and_apply(
  features: jax.Array,
  labels: jax.Array,
  query: jax.Array,
  *,
  num_classes: int = 0,
  strength: float = 1.0,
) -> jax.Array:
  """Logits [M, N] of a logistic regression on rows [R, D], labels [R]."""
  num_classes = num_classes or int(np.max(labels)) + 1
  fitted = regression.fit(
    features, labels, num_classes=num_classes, strength=strength
  )
  return fitted.logits(query)


def flat(support: jax.Array) -> tuple[jax.Array, np.ndarray]:
  """[N, K, D] -> rows [N K, D] and their labels [N K]."""
  ways, shots, width = support.shape
  return support.reshape(ways * shots, width), np.repeat(np.arange(ways), shots)


def nearest_centroid() -> Classifier:
  """Minus the squared distance to a class's mean, as prototypical networks.

  Snell, Swersky and Zemel, 2017, https://arxiv.org/abs/1703.05175, eq. 2.
  """

  def classify(support, query, rng):
    del rng
    return -_squared_distances(query, support.mean(1))

  return classify


def cosine() -> Classifier:
  """Cosine to the mean of a class's normalized rows."""

  def classify(support, query, rng):
    del rng
    centres = normalize(normalize(support).mean(1))
    return jnp.matmul(normalize(query), centres.T, precision='highest')

  return classify


def nearest_neighbours(*, neighbours: int = 1) -> Classifier:
  """How many of the nearest rows are of each class; ties go to the nearest.

  Args:
    neighbours: At most the rows of an episode's support.
  """
  types.check_range('[1, inf)', neighbours=neighbours)

  def classify(support, query, rng):
    del rng
    rows, labels = flat(support)
    if neighbours > len(labels):
      raise types.InputError(
        f'{neighbours=} of {len(labels)} rows: ask for fewer.'
      )
    nearness, places = jax.lax.top_k(
      -_squared_distances(query, rows), neighbours
    )
    votes = jax.nn.one_hot(jnp.asarray(labels)[places], len(support))
    # Less than a vote, the more the nearer the nearest one of a class is.
    order = jnp.arange(neighbours, 0, -1) / (neighbours + 1)
    del nearness
    return votes.sum(1) + (votes * order[None, :, None]).max(1)

  return classify


def _squared_distances(first, second):
  """[M, D], [R, D] -> [M, R]; differences, since the square expands badly."""
  return jnp.square(first[:, None] - second[None]).sum(-1)


def normalize(features: jax.Array) -> jax.Array:
  """To unit length, [..., D]; what is 0 stays 0."""
  norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
  return features / jnp.maximum(norms, 1e-12)


def tukey(power: float) -> Map:
  """Tukey's ladder: x^power, or log x for 0; features must not be negative.

  Yang, Liu and Xu, ICLR 2021, https://arxiv.org/abs/2101.06395, eq. 3. The
  logarithm is that of x + 1e-6, since features after a ReLU are often 0.
  """
  types.check_range('[0, inf)', power=power)

  def transform(features):
    if power == 0:
      return jnp.log(features + 1e-6)
    return features**power

  return transform


def on(transform: Map, classifier: Classifier) -> Classifier:
  """The same classifier of transformed features."""
  return lambda support, query, rng: classifier(
    transform(support), transform(query), rng
  )


def regressions(
  *, power: float | None = 0.5, strength: float = 1.0
) -> dict[str, Classifier]:
  """Logistic regressions that a method for few rows has to beat, by name.

  Features as they are, under Tukey's power, of unit length, and both: users of
  Distribution Calibration found most of its gain in the last three,
  https://github.com/ShuoYang-1998/Few_Shot_Distribution_Calibration/issues/3.

  Args:
    power: None leaves out what has one, for features that may be negative.
    strength: Of all of them.
  """
  plain = logistic_regression(strength=strength)
  found = {'logistic regression': plain, 'l2': on(normalize, plain)}
  if power is not None:
    found['power'] = on(tukey(power), plain)
    found['power and l2'] = on(tukey(power), found['l2'])
  return found
