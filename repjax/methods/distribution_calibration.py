"""Distribution calibration: what base classes lend to a class of few rows.

Yang, Liu and Xu, 'Free Lunch for Few-shot Learning: Distribution Calibration',
ICLR 2021, https://arxiv.org/abs/2101.06395. A row of a new class takes the mean
and covariance of the base classes that are nearest to it, features are drawn
from that distribution, and a logistic regression learns from rows and draws.

    base = calibration.statistics(features, labels)
    classifier = calibration.classifier(base, num_drawn=750)

Two things are otherwise than one may think:

- The authors' code takes the base classes' statistics on features as they are,
  and compares them with rows under Tukey's power, which are on another scale.
  `of='raw'` is that; `of='transformed'` takes both under the power.
- `alpha` is added to every entry of the covariance (eq. 6, and the code), which
  is one random offset, the same in all dimensions; `on='diagonal'` is what it
  is often taken for.

Classes lend factors of their covariances, from which draws are made without a
decomposition. Where two classes have more rows than features have dimensions,
many draws from factors cost more than a Cholesky decomposition and draws from
it; singular values of 640 x 640, as the authors' code computes for every row,
cost 50 times as much as that.
"""

import dataclasses
from typing import Literal
from typing import NamedTuple

import jax
from jax import tree_util
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.methods import few_shot

# Where `alpha` is added.
_ON = ('entries', 'diagonal')


class Base(NamedTuple):
  """Statistics of C base classes.

  Attributes:
    means: [C, D].
    factors: A with A^T A the covariance (with n - 1), [C, R, D].
    covariances: [C, D, D]; None for classes of few rows, which need none.
    isotropic: Standard deviation of a part beside the factors that is equal in
      all dimensions, [C]; None if nothing is drawn of it.
    power: Tukey's, of features that these are statistics of; 1 for raw ones.
  """

  means: jax.Array
  factors: jax.Array
  covariances: jax.Array | None
  isotropic: jax.Array | None
  power: float


def statistics(
  features: np.ndarray,
  labels: np.ndarray,
  *,
  of: Literal['raw', 'transformed'] = 'raw',
  power: float = 0.5,
  shrinkage: float = 0.0,
) -> Base:
  """Means and covariances of base classes (eq. 1 and 2).

  Args:
    features: Of rows of base classes, [R, D].
    labels: Their classes, integers [R].
    of: 'raw' features, as published, or those 'transformed' by the power.
    power: Tukey's, >= 0.
    shrinkage: In [0, 1]: covariances become (1 - s) S + s tr(S) / D I, for
      classes with fewer rows than dimensions.

  Raises:
    InputError: If shapes do not fit, labels are no integers, features are not
      finite, or negative under a power, or a class has a single row.
  """
  types.check_range('[0, inf)', power=power)
  types.check_range('[0, 1]', shrinkage=shrinkage)
  types.check_choice('of', of, ('raw', 'transformed'))
  features = np.asarray(features, np.float64)
  labels = np.asarray(labels)
  if features.ndim != 2 or labels.shape != features.shape[:1]:
    raise types.InputError(
      'features must be [R, D] and labels [R]; got '
      f'{features.shape} and {labels.shape}.'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise types.InputError(f'labels must be integers; got {labels.dtype}.')
  if not np.isfinite(features).all():
    raise types.InputError('Base features are not all finite.')
  check_power(features, power)
  if of == 'transformed':
    features = np.asarray(few_shot.tukey(power)(jnp.asarray(features)))
  present, counts = np.unique(labels, return_counts=True)
  if counts.min() < 2:
    raise types.InputError(
      f'Base class {present[counts.argmin()]} has a single row, and so no '
      'covariance: leave it out.'
    )
  classes = [features[labels == x] for x in present]
  means = jnp.asarray([x.mean(0) for x in classes], jnp.float32)
  width = features.shape[1]
  factors, isotropic = _factors(classes, shrinkage)
  covariances = None
  if 2 * counts.min() > width:
    covariances = jnp.asarray(
      [_shrunk(np.cov(x.T, ddof=1), shrinkage) for x in classes], jnp.float32
    )
  return Base(
    means=means,
    factors=factors,
    covariances=covariances,
    isotropic=isotropic,
    power=power if of == 'transformed' else 1.0,
  )


def _shrunk(covariance, shrinkage):
  covariance = np.atleast_2d(covariance)
  width = len(covariance)
  return (1 - shrinkage) * covariance + (
    shrinkage * np.trace(covariance) / width * np.eye(width)
  )


def _factors(classes, shrinkage):
  """Factors [C, R, D], and the deviations that shrinkage adds, [C] or None."""
  counts, width = [len(x) for x in classes], classes[0].shape[1]
  factors, isotropic = [], []
  for rows in classes:
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    # Rows beyond D say nothing more.
    factor = np.linalg.qr(centred, mode='r') if len(rows) > width else centred
    factors.append(
      np.pad(factor, ((0, min(width, max(counts)) - len(factor)), (0, 0)))
      * np.sqrt(1 - shrinkage)
    )
    isotropic.append(np.sqrt(shrinkage * np.square(centred).sum() / width))
  return (
    jnp.asarray(factors, jnp.float32),
    jnp.asarray(isotropic, jnp.float32) if shrinkage else None,
  )


def check_power(features: np.ndarray, power: float) -> None:
  """Raises InputError for negative features under a power other than 1."""
  lowest = np.min(features)
  if power != 1 and lowest < 0:
    raise types.InputError(
      f'Features are negative (down to {lowest:.3g}), and have no power '
      f'{power}: take those after a ReLU, or power=1.'
    )


@jax.default_matmul_precision('highest')
def calibrated(
  base: Base,
  row: jax.Array,
  *,
  neighbours: int = 2,
  alpha: float = 0.21,
  on: Literal['entries', 'diagonal'] = 'entries',
) -> tuple[jax.Array, jax.Array]:
  """Mean [D] and covariance [D, D] that one row [D] gets (eq. 5 and 6).

  `drawn` is what is used; this is what it draws from.

  Raises:
    InputError: If the row has not the features of the base.
  """
  types.check_choice('on', on, _ON)
  places = _nearest(base, row, neighbours)
  mean = (base.means[places].sum(0) + row) / (neighbours + 1)
  if base.covariances is not None:
    covariance = base.covariances[places].sum(0)
  else:
    factors = base.factors[places]
    covariance = jnp.einsum('krd,kre->de', factors, factors)
    if base.isotropic is not None:
      shared = jnp.square(base.isotropic[places]).sum()
      covariance = covariance + shared * jnp.eye(len(row))
  added = jnp.ones((len(row),) * 2) if on == 'entries' else jnp.eye(len(row))
  return mean, covariance / neighbours + alpha * added


@jax.default_matmul_precision('highest')
def drawn(
  rng: jax.Array,
  base: Base,
  row: jax.Array,
  *,
  num_drawn: int,
  neighbours: int = 2,
  alpha: float = 0.21,
  on: Literal['entries', 'diagonal'] = 'entries',
) -> jax.Array:
  """Features [num_drawn, D] from N(mean, covariance) of `calibrated`."""
  types.check_choice('on', on, _ON)
  of_factors, of_rest, of_alpha = jax.random.split(rng, 3)
  places = _nearest(base, row, neighbours)
  mean = (base.means[places].sum(0) + row) / (neighbours + 1)
  # Fewer draws cost less than the decomposition (D = 640, on two cores).
  covariances = base.covariances if 3 * num_drawn >= len(row) else None
  if covariances is not None:
    # One after another: XLA's sum of what is gathered takes 50 times as long on
    # a CPU, twice the decomposition.
    covariance = sum(covariances[place] for place in places)
    spread = _from_covariance(of_factors, covariance / neighbours, num_drawn)
  else:
    factors = base.factors[places].reshape(-1, len(row)) / np.sqrt(neighbours)
    normal = jax.random.normal(of_factors, (num_drawn, len(factors)))
    spread = normal @ factors
  draws = mean[None] + spread
  width = len(row) if on == 'diagonal' else 1
  offset = jax.random.normal(of_alpha, (num_drawn, width))
  draws = draws + np.sqrt(alpha) * offset
  if covariances is not None or base.isotropic is None:
    return draws
  rest = jnp.sqrt(jnp.square(base.isotropic[places]).mean())
  return draws + rest * jax.random.normal(of_rest, draws.shape)


def _from_covariance(rng, covariance, num_drawn):
  """Draws [num_drawn, D] from N(0, covariance), which may be singular."""
  width = len(covariance)
  variances = jnp.diagonal(covariance)
  # More than float32 loses of a correlation matrix: what is singular becomes
  # definite by it (a third of it is too little where all dimensions are equal);
  # deviations grow by 6e-4 of themselves, at D = 640. The last term is for
  # dimensions without any spread.
  added = 16 * width * jnp.finfo(jnp.float32).eps * variances + 1e-30
  lower = jax.lax.linalg.cholesky(
    covariance + jnp.diag(added), symmetrize_input=False
  )
  normal = jax.random.normal(rng, (num_drawn, width))
  # In two parts: a quarter of the triangle's square is left out.
  half = width // 2
  return jnp.concatenate(
    [normal[:, :half] @ lower[:half, :half].T, normal @ lower[half:].T], 1
  )


def _nearest(base, row, neighbours):
  if row.shape != base.means.shape[1:]:
    raise types.InputError(
      f'A row has the {base.means.shape[1]} features of the base; got '
      f'{row.shape}.'
    )
  distances = jnp.square(base.means - row[None]).sum(1)
  return jax.lax.top_k(-distances, neighbours)[1]


def classifier(
  base: Base,
  *,
  num_drawn: int = 750,
  power: float = 0.5,
  neighbours: int = 2,
  alpha: float = 0.21,
  on: Literal['entries', 'diagonal'] = 'entries',
  strength: float = 1.0,
) -> few_shot.Classifier:
  """Logistic regression on rows under the power, and on draws around them.

  Args:
    base: Statistics of base classes, as `statistics` gives them.
    num_drawn: Draws a class, shared among its rows (750, as published), >= 1;
      each row has one at the least. Without any it would be
      `few_shot.logistic_regression`.
    power: Tukey's, of rows and queries (.5).
    neighbours: k, base classes that lend to a row (2).
    alpha: Added to the covariance (.21).
    on: Every entry of it, as published, or its 'diagonal'.
    strength: Of the logistic regression, > 0.

  Raises:
    InputError: If there are fewer base classes than `neighbours`, the base is
      under another power, or a setting is out of range.
  """
  types.check_range('[1, inf)', num_drawn=num_drawn, neighbours=neighbours)
  for name, number in dict(num_drawn=num_drawn, neighbours=neighbours).items():
    if not isinstance(number, int | np.integer):
      raise types.InputError(f'{name} must be a whole number; got {number!r}')
  types.check_range('[0, inf)', alpha=alpha, power=power)
  types.check_range('(0, inf)', strength=strength)
  types.check_choice('on', on, _ON)
  if neighbours > len(base.means):
    raise types.InputError(
      f'{neighbours=} of {len(base.means)} base classes: ask for fewer.'
    )
  if base.power not in (1.0, power):
    raise types.InputError(
      f'The base is under the power {base.power}, the classifier under {power}.'
    )
  # A pytree: another base with the same settings compiles nothing anew.
  return tree_util.Partial(
    _Classify(num_drawn, power, neighbours, alpha, on, strength), base
  )


@dataclasses.dataclass(frozen=True)
class _Classify:
  num_drawn: int
  power: float
  neighbours: int
  alpha: float
  on: Literal['entries', 'diagonal']
  strength: float

  def __call__(self, base, support, query, rng):
    classify = self._classify
    if jax.default_backend() == 'cpu':
      # Side by side, all rows of all episodes are read anew in each step of the
      # solver; those of one stay in a core's cache: several times faster.
      classify = jax.custom_batching.sequential_vmap(classify)
    return classify(base, support, query, rng)

  def _classify(self, base, support, query, rng):
    transform = few_shot.tukey(self.power)
    support, query = transform(support), transform(query)
    ways, shots, width = support.shape
    each = max(1, self.num_drawn // shots)
    rows, labels = few_shot.flat(support)

    def around(key, row):
      return drawn(
        key,
        base,
        row,
        num_drawn=each,
        neighbours=self.neighbours,
        alpha=self.alpha,
        on=self.on,
      )

    draws = jax.vmap(around)(jax.random.split(rng, len(rows)), rows)
    return few_shot.fit_and_apply(
      jnp.concatenate([rows, draws.reshape(-1, width)]),
      np.concatenate([labels, np.repeat(labels, each)]),
      query,
      num_classes=ways,
      strength=self.strength,
    )
