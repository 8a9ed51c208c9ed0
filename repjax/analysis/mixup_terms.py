"""Device code: what mixup adds to the loss, term by term.

Zhang, Deng, Kawaguchi, Ghorbani and Zou, 'How Does Mixup Help With Robustness
and Generalization?', ICLR 2021 (https://arxiv.org/abs/2010.04819). The losses
are those of the paper, l(x, y) = h(f(x)) - y f(x) with a scalar f; h(u) =
log(1 + e^u) is the logistic loss with y in {0, 1}, and h(u) = u^2 / 2 the
squared loss up to y^2 / 2.

Use float64 (`jax_enable_x64`) to compare small terms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from repjax.types import InputError

# One input [...] -> f(x), a scalar.
ScoreFn = Callable[[jax.Array], jax.Array]
# h, scalar -> scalar: `logistic`, `squared` or another one.
LinkFn = Callable[[jax.Array], jax.Array]


class MixupTerms(NamedTuple):
  """The expansion of lemma 3.1, all scalars.

  Attributes:
    standard: The loss without mixup.
    first: R1, first order in f: shrinks scores towards the mean input.
    second: R2, penalty on the gradient of f along the spread of the inputs.
    curvature: R3, on the Hessian of f; 0 for a linear f and, almost
      everywhere, for a network of relus.
  """

  standard: jax.Array
  first: jax.Array
  second: jax.Array
  curvature: jax.Array


def logistic(score: jax.Array) -> jax.Array:
  """The h of the logistic loss."""
  return jax.nn.softplus(score)


def squared(score: jax.Array) -> jax.Array:
  """The h of the squared loss."""
  return jnp.square(score) / 2


def mixup_terms(
  score_fn: ScoreFn,
  inputs: jax.Array,
  labels: jax.Array,
  *,
  alpha: float,
  link: LinkFn = logistic,
) -> MixupTerms:
  """Second-order expansion of the mixup loss (lemma 3.1).

  Exact for a linear f and the squared loss. All pairs are summed over, a row
  with itself included, as in the paper. The Hessian of f is never formed: R3
  takes one second directional derivative a pair.

  Args:
    score_fn: The network f, one input [...] -> a scalar.
    inputs: [N, ...].
    labels: y, [N].
    alpha: lambda ~ Beta(alpha, alpha), > 0.
    link: The h of the loss, scalar -> scalar.

  Returns:
    The four terms; their sum approximates `mixup_loss`.
  """
  _check(inputs, labels, alpha)
  first_moment, second_moment = _moments(alpha)
  labels = labels.astype(inputs.dtype)

  def terms(args):
    x, label = args
    score = score_fn(x)
    residual = jax.grad(link)(score) - label  # h'(f) - y
    convexity = jax.grad(jax.grad(link))(score)  # h''(f)

    def along(direction):
      """First and second derivative of f from x."""

      def slope(x):
        return jax.jvp(score_fn, (x,), (direction,))[1]

      return jax.jvp(slope, (x,), (direction,))

    slopes, bends = jax.vmap(along)(
      inputs - x[None]
    )  # One for each partner, [N].
    return MixupTerms(
      standard=link(score) - label * score,
      first=first_moment * residual * slopes.mean(),
      second=second_moment / 2 * convexity * jnp.square(slopes).mean(),
      curvature=second_moment / 2 * residual * bends.mean(),
    )

  rows = jax.lax.map(terms, (inputs, labels))
  return MixupTerms(*(term.mean() for term in rows))


def mixup_loss(
  score_fn: ScoreFn,
  inputs: jax.Array,
  labels: jax.Array,
  *,
  alpha: float,
  link: LinkFn = logistic,
  num_nodes: int = 32,
) -> jax.Array:
  """The mixup loss itself, over all N^2 pairs and all lambda.

  Args:
    score_fn: The network f, one input [...] -> a scalar.
    inputs: [N, ...].
    labels: y, [N].
    alpha: lambda ~ Beta(alpha, alpha), > 0.
    link: The h of the loss, scalar -> scalar.
    num_nodes: Nodes of the Gauss-Jacobi rule for lambda; the integral is exact
      for polynomials in lambda of degree 2 `num_nodes` - 1.

  Returns:
    The loss, a scalar.
  """
  _check(inputs, labels, alpha)
  labels = labels.astype(inputs.dtype)
  # The rule is for (1 - t)^(alpha - 1) (1 + t)^(alpha - 1) on [-1, 1].
  nodes, weights = scipy.special.roots_jacobi(num_nodes, alpha - 1, alpha - 1)
  nodes, weights = (nodes + 1) / 2, weights / weights.sum()

  def pair(x, label, other, other_label, node):
    score = score_fn(node * x + (1 - node) * other)
    return link(score) - (node * label + (1 - node) * other_label) * score

  over_nodes = jax.vmap(pair, (None, None, None, None, 0))
  over_partners = jax.vmap(over_nodes, (None, None, 0, 0, None))

  def row(args):
    losses = over_partners(*args, inputs, labels, jnp.asarray(nodes))
    return losses.mean(0) @ jnp.asarray(weights, losses.dtype)

  return jax.lax.map(row, (inputs, labels)).mean()


def adversarial_loss(
  score_fn: ScoreFn,
  inputs: jax.Array,
  labels: jax.Array,
  *,
  radii: jax.Array,
  link: LinkFn = logistic,
) -> jax.Array:
  """Second-order expansion of the worst loss in l2 balls (before theorem 3.1).

  Args:
    score_fn: The network f, one input [...] -> a scalar.
    inputs: [N, ...].
    labels: y, [N].
    radii: l2 radius of each input's ball, [N].
    link: The h of the loss, scalar -> scalar.

  Returns:
    Mean over inputs of l + r |h' - y| |grad f| + r^2 / 2 h'' |grad f|^2.
  """

  def row(x, label, radius):
    score, gradient = jax.value_and_grad(score_fn)(x)
    norm = jnp.sqrt(jnp.square(gradient).sum())
    residual = jnp.abs(jax.grad(link)(score) - label)
    convexity = jax.grad(jax.grad(link))(score)
    return (
      link(score)
      - label * score
      + radius * residual * norm
      + jnp.square(radius * norm) / 2 * convexity
    )

  return jax.vmap(row)(inputs, labels.astype(inputs.dtype), radii).mean()


def robust_radii(
  score_fn: ScoreFn, inputs: jax.Array, *, alpha: float
) -> jax.Array:
  """The radii against which mixup's loss bounds the adversarial one.

  Theorem 3.1: where f is linear or a network of relus without biases, the
  inputs have mean 0, and all are classified rightly (y f + (y - 1) f >= 0), the
  expansion of the mixup loss is at least `adversarial_loss` at these radii.
  It bounds a loss at given weights; it does not promise that training with
  mixup finds weights that are more robust than those of plain training.

  Args:
    score_fn: The network f, one input [...] -> a scalar.
    inputs: [N, ...].
    alpha: lambda ~ Beta(alpha, alpha), > 0.

  Returns:
    epsilon_i sqrt(d) = E[1 - lambda] |cos(grad f(x_i), x_i)| min_j |x_j|, [N].
  """
  gradients = jax.vmap(jax.grad(score_fn))(inputs)
  flat = inputs.reshape((inputs.shape[0], -1))
  gradients = gradients.reshape(flat.shape)
  norms = jnp.linalg.norm(flat, axis=1)
  lengths = norms * jnp.linalg.norm(gradients, axis=1)
  cosines = jnp.abs((flat * gradients).sum(1)) / jnp.where(
    lengths > 0, lengths, 1.0
  )
  return _moments(alpha)[0] * cosines * norms.min()


def _moments(alpha):
  """E[1 - lambda] and E[(1 - lambda)^2] under the paper's density of lambda.

  Lemma 3.1 folds the two ends of Beta(alpha, alpha) into one mixture, which
  for equal parameters is Beta(alpha + 1, alpha).
  """
  return alpha / (2 * alpha + 1), alpha / (2 * (2 * alpha + 1))


def _check(inputs, labels, alpha):
  if not 0 < alpha < np.inf:
    raise InputError(f'Need alpha > 0; got {alpha=}')
  if labels.shape != inputs.shape[:1]:
    raise InputError(
      f'Need one label an input, {inputs.shape[:1]}; got {labels.shape}'
    )
