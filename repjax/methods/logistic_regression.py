"""Device code: multinomial logistic regression, solved to its optimum.

It minimizes, over a kernel W and a bias b that is free,

    strength * sum_i weight_i * cross-entropy(W^T x_i + b, label_i) + |W|^2 / 2

as scikit-learn does (C = strength), two classes with one weight vector.
Newton's method, each step by conjugate gradients that never form the Hessian;
fewer rows than columns are solved in the span of the rows. For jit, and for
vmap over thousands of small problems.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Shares of a Newton step that are tried, all at once.
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


class Fit(NamedTuple):
  """A linear classifier.

  Attributes:
    kernel: [D, C], or [D, 1] for two classes.
    bias: [C] or [1].
    steps: Newton steps that were taken, int32 scalar.
  """

  kernel: jax.Array
  bias: jax.Array
  steps: jax.Array

  @jax.default_matmul_precision('highest')
  def logits(self, features: jax.Array) -> jax.Array:
    """[N, D] -> [N, C], also for two classes: then (-z / 2, z / 2)."""
    scores = features @ self.kernel + self.bias[None]
    if self.kernel.shape[1] > 1:
      return scores
    return jnp.concatenate([-scores / 2, scores / 2], 1)


def zeros(width: int, num_outputs: int) -> Fit:
  """Where fitting begins: no step was taken."""
  return Fit(
    jnp.zeros((width, num_outputs)),
    jnp.zeros(num_outputs),
    jnp.zeros((), jnp.int32),
  )


@jax.default_matmul_precision('highest')
def fit(
  features: jax.Array,
  labels: jax.Array,
  *,
  num_classes: int,
  strength: float | jax.Array = 1.0,
  weights: jax.Array | None = None,
  start: Fit | None = None,
  intercept: bool = True,
  max_iter: int = 50,
  tol: float = 1e-8,
) -> Fit:
  """The optimum, by Newton-CG.

  Args:
    features: [N, D].
    labels: Integers in [0, num_classes), [N]; every class should have rows.
    num_classes: C >= 2.
    strength: Inverse regularization, scikit-learn's C, > 0.
    weights: How much each row counts, [N]; 1 if None, 0 for padding.
    start: Where to begin; zeros if None.
    intercept: Whether there is a bias.
    max_iter: Newton steps at the most.
    tol: Largest entry of the gradient of the mean loss at which to stop.
  """
  num_outputs = num_classes if num_classes > 2 else 1
  start = zeros(features.shape[1], num_outputs) if start is None else start
  basis: jax.Array | None = None
  if len(features) < features.shape[1]:
    # The optimum lies in the span of the rows, whose coordinates are fewer.
    basis, coordinates = jnp.linalg.qr(features.T)
    features = coordinates.T
    start = start._replace(kernel=basis.T @ start.kernel)
  weights = jnp.ones(len(labels)) if weights is None else weights
  total = weights.sum()
  weights, penalty = weights / total, 1 / (strength * total)
  # Classes come first in all that follows: products of few rows and many
  # columns are several times faster on CPUs than those of many and few.
  targets = jax.nn.one_hot(labels, num_classes, axis=0)[-num_outputs:]
  free = 1.0 if intercept else 0.0

  # A bias that is the same for all classes changes nothing: without curvature,
  # what rounding leaves of its gradient would be followed far. Where all else
  # of a gradient is as small, conjugate gradients would never end with it, and
  # divide 0 by 0: they see a curvature of 1 there.
  def of_bias(x):
    return free * (x - x.mean() if num_outputs > 1 else x)

  def common(x):
    return x.mean() * (num_outputs > 1)

  def scores(params):
    kernel, bias = params
    return kernel @ features.T + free * bias[:, None]

  def back(changes):
    """The transpose of `scores`: [C, N] -> kernel [C, D], bias [C]."""
    return changes @ features, of_bias(changes.sum(1))

  def loss(scores, squares):
    if num_outputs == 1:
      losses = optax.sigmoid_binary_cross_entropy(scores, targets).sum(0)
    else:
      losses = jax.nn.logsumexp(scores, 0) - (targets * scores).sum(0)
    return losses @ weights + penalty * squares / 2

  def probabilities(scores):
    if num_outputs == 1:
      return jax.nn.sigmoid(scores)
    return jax.nn.softmax(scores, 0)

  def gradient(params):
    errors = weights[None] * (probabilities(scores(params)) - targets)
    kernel, bias = back(errors)
    return kernel + penalty * params[0], bias

  def curvature(probs, direction):
    moved = scores(direction)
    if num_outputs == 1:
      changes = probs * (1 - probs) * moved
    else:
      changes = probs * (moved - (probs * moved).sum(0, keepdims=True))
    kernel, bias = back(weights[None] * changes)
    return kernel + penalty * direction[0], bias + common(direction[1])

  # The Hessian if all classes were equally likely everywhere, but for the
  # coupling of classes: what is left to conjugate gradients is well scaled.
  with_ones = jnp.concatenate([features, jnp.full((len(labels), 1), free)], 1)
  width = with_ones.shape[1]
  spread = (num_classes - 1) / num_classes**2
  moments = spread * (weights[:, None] * with_ones).T @ with_ones
  inverse = jnp.linalg.inv(moments + (penalty + 1e-6) * jnp.eye(width))

  def precondition(x):
    kernel, bias = x
    # What is the same for all classes changes no probability: it meets the
    # penalty alone.
    shared = kernel.mean(0, keepdims=True) * (num_outputs > 1)
    made = jnp.concatenate([kernel - shared, bias[:, None]], 1) @ inverse
    return (
      made[:, :-1] + shared / penalty,
      of_bias(made[:, -1]) + common(bias),
    )

  def step(carry):
    params, grads, (_, before), steps = carry
    at = scores(params)
    probs = probabilities(at)
    move, _ = jax.scipy.sparse.linalg.cg(
      lambda x: curvature(probs, x), grads, tol=0.1, maxiter=30, M=precondition
    )
    moved = scores(move)
    squares, products, lengths = (
      jnp.vdot(x[0], y[0])
      for x, y in ((params, params), (params, move), (move, move))
    )
    shares = jnp.asarray(_SHARES)
    values = jax.vmap(
      lambda t: loss(
        at - t * moved, squares - 2 * t * products + t**2 * lengths
      )
    )(shares)
    # The first that is no worse; near the optimum losses differ by rounding.
    worst = loss(at, squares) * (1 + 1e-6)
    fine = (values <= worst).at[-1].set(True)
    share = shares[fine.argmax()]
    params = jax.tree.map(lambda p, m: p - share * m, params, move)
    decrement = sum(map(jnp.vdot, grads, move))
    return params, gradient(params), (before, decrement), steps + 1

  # The decrement is the squared distance to go. A step from near ends in what
  # float32 can tell from the optimum, and so does one that comes no nearer.
  def go_on(carry):
    _, grads, (before, decrement), steps = carry
    size = optax.tree.norm(grads, ord=jnp.inf)
    stuck = (decrement < 1e-6) & (decrement > 0.25 * before)
    return (steps < max_iter) & (size > tol) & (decrement > 1e-9) & ~stuck

  params = start.kernel.T, start.bias
  params, _, _, steps = jax.lax.while_loop(
    go_on,
    step,
    (params, gradient(params), (jnp.inf, jnp.inf), jnp.zeros((), jnp.int32)),
  )
  kernel, bias = params
  kernel = kernel.T if basis is None else basis @ kernel.T
  return Fit(kernel, bias, steps)
