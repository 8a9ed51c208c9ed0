"""Device code: how much two distributions differ for somebody who must decide.

Zhao, Sinha, He, Perreault, Song and Ermon, 'Comparing Distributions by
Measuring Differences that Affect Decision Making', ICLR 2022.
https://openreview.net/forum?id=KB5onONJIAU

The H-entropy of p is what the best of all actions loses, H(p) = inf_a E_p l(X,
a). p and q differ if no action is good for both: the best loss on their mixture
m = (p + q) / 2 is above those on either. With the gaps t = H(m) - H(p) and
s = H(m) - H(q):

    H-JS  = (t + s) / 2 = H(m) - (H(p) + H(q)) / 2
    H-Min = max(t, s)   = H(m) - min(H(p), H(q))

Results name which of the two they are, and of which loss (`decision_losses`,
`fitted_losses`, or one of your own):

    loss = decision_losses.kde(bandwidth=0.1)
    between(x, y, loss, phi='min')                       # how different?
    two_sample.permutation_test(                         # different at all?
      x, y, statistic(loss, phi='min'), rng=jax.random.key(0))

H-JS of the log loss over all densities is the Jensen-Shannon divergence, that
of |phi(x) - a|^2 in a kernel's space is MMD^2 / 4.
"""

from collections.abc import Callable
import functools
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import types
from repjax.analysis import two_sample
from repjax.types import check_choice

Phi = Literal['js', 'min']
Mixture = Literal['pooled', 'halves']


class Loss(NamedTuple):
  """What a decision costs, and how the best one is found.

  Attributes:
    name: What it is called in results.
    prepare: Rows, a pytree of arrays [N, ...] -> arrays that entropies are made
      of, whatever the weights.
    entropy: (what `prepare` gave, weights [N] >= 0) -> H of the distribution
      that has these rows with probabilities in proportion to the weights, a
      scalar. All of it is in sample: what is fitted to rows is measured on
      them.
  """

  name: str
  prepare: Callable[[types.PyTree], types.PyTree]
  entropy: Callable[[types.PyTree, jax.Array], jax.Array]


class Divergence(NamedTuple):
  """How different two distributions are.

  Attributes:
    name: 'H-JS' or 'H-Min', and the loss.
    value: The divergence, in units of the loss.
    entropy_p: H(p).
    entropy_q: H(q).
    entropy_mixture: H(m).
  """

  name: str
  value: jax.Array
  entropy_p: jax.Array
  entropy_q: jax.Array
  entropy_mixture: jax.Array


def divergence(
  rows: types.PyTree, p: jax.Array, q: jax.Array, loss: Loss, *, phi: Phi
) -> Divergence:
  """H-divergence of two distributions over the same rows.

  Args:
    rows: All values that either can take, a pytree of arrays [N, ...].
    p: Their probabilities, [N].
    q: Their probabilities under the other, [N].
    loss: What decisions cost.
    phi: 'js' or 'min'.

  Returns:
    Exactly 0 where p equals q; up to rounding inside of a jitted function.
  """
  check_choice('phi', phi, ('js', 'min'))
  prepared = loss.prepare(rows)
  p, q = p / p.sum(), q / q.sum()
  h_p, h_q, h_m = (loss.entropy(prepared, w) for w in (p, q, (p + q) / 2))
  return Divergence(
    _name(loss, phi), combine(h_m, h_p, h_q, phi), h_p, h_q, h_m
  )


def between(
  x: types.PyTree,
  y: types.PyTree,
  loss: Loss,
  *,
  phi: Phi,
  mixture: Mixture = 'pooled',
  sizes: Literal['equal', 'subsample'] = 'equal',
  rng: jax.Array | None = None,
) -> Divergence:
  """Plug-in estimate of the H-divergence between two samples.

  Args:
    x: Rows of the first sample, a pytree of arrays [n, ...].
    y: Rows of the second one.
    loss: What decisions cost.
    phi: 'js' or 'min'.
    mixture: Rows that stand for m. 'pooled' takes all 2 n of them, which makes
      an identity of what is one for distributions, never gives less than 0,
      and is above 0 where p = q, since fewer rows are fitted more closely.
      'halves' takes n rows, one half of each sample: the biases of the three
      terms are alike and cancel where p = q, and the noise is larger. (The
      paper's n rows are of either sample by a coin. The authors' code fits
      densities to n rows and measures them on the whole pool, half in sample
      and half not: that is no H-entropy, and is not done here.)
    sizes: 'equal' refuses samples of unequal sizes, 'subsample' takes as many
      rows of the larger one as the smaller one has.
    rng: Of which rows are in 'halves', and of what `sizes` draws; equal at
      every call if None.

  Raises:
    InputError: The samples do not go together.
  """
  check_choice('phi', phi, ('js', 'min'))
  rng = jax.random.key(0) if rng is None else rng
  rng_rows, rng_x, rng_y = jax.random.split(rng, 3)
  x, y = two_sample.equal_sizes(x, y, sizes=sizes, rng=rng_rows)
  # Rows may be sorted: the first half of a sample is to be any half.
  x, y = two_sample.shuffled(x, rng_x), two_sample.shuffled(y, rng_y)
  split = two_sample.split(jnp.arange(2 * two_sample.size(x)))
  weights = _weights(split, mixture)
  prepared = loss.prepare(two_sample.pool(x, y))
  h_p, h_q, h_m = (loss.entropy(prepared, w) for w in weights)
  return Divergence(
    _name(loss, phi), combine(h_m, h_p, h_q, phi), h_p, h_q, h_m
  )


def statistic(
  loss: Loss, *, phi: Phi, mixture: Mixture = 'pooled'
) -> two_sample.Statistic:
  """The H-divergence as the statistic of a two-sample test.

  Args:
    loss: What decisions cost.
    phi: 'js' or 'min'.
    mixture: Rows that stand for m, 'pooled' or 'halves' (`between`). All
      splits of one pool share H(m) if 'pooled', computed once.

  Raises:
    InputError: If an argument is none of its choices.
  """
  check_choice('phi', phi, ('js', 'min'))
  check_choice('mixture', mixture, ('pooled', 'halves'))

  def prepare(rows):
    prepared = loss.prepare(rows)
    if mixture == 'halves':
      return prepared, jnp.zeros(())
    ones = jnp.ones(two_sample.size(rows))
    return prepared, loss.entropy(prepared, ones)

  return two_sample.Statistic(
    name=_name(loss, phi),
    prepare=prepare,
    value=_value_fn(loss.entropy, phi, mixture),
  )


# One function for equal arguments, so that it is compiled once.
@functools.cache
def _value_fn(entropy, phi, mixture):
  def value(prepared, split):
    prepared, h_pooled = prepared
    if mixture == 'pooled':
      samples = jnp.stack([split.x, split.y])
      h_p, h_q = jax.vmap(lambda w: entropy(prepared, w))(samples)
      return combine(h_pooled, h_p, h_q, phi)
    samples = jnp.stack(split)
    h_p, h_q, h_m = jax.vmap(lambda w: entropy(prepared, w))(samples)
    return combine(h_m, h_p, h_q, phi)

  return value


def combine(
  h_m: jax.Array, h_p: jax.Array, h_q: jax.Array, phi: Phi
) -> jax.Array:
  """Phi of the gaps H(m) - H(p) and H(m) - H(q).

  Raises:
    InputError: If there is no such phi.
  """
  check_choice('phi', phi, ('js', 'min'))
  if phi == 'js':
    return h_m - (h_p + h_q) / 2
  return h_m - jnp.minimum(h_p, h_q)


def _weights(split, mixture):
  check_choice('mixture', mixture, ('pooled', 'halves'))
  if mixture == 'pooled':
    return split.x, split.y, jnp.ones_like(split.x)
  return split


def _name(loss, phi):
  return f'{dict(js="H-JS", min="H-Min")[phi]}, {loss.name}'
