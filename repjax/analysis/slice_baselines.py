"""Host side: other ways to discover slices, with which Domino is compared.

All take the validation rows of `domino.discover` and give a function of new
rows: (embeddings, labels, probs) -> how much each is of each slice, [N, k],
which is what `domino.log_odds` is of Domino's own. The mixture without labels
and predictions is Domino with both weights 0.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import types
from repjax.analysis import domino
from repjax.analysis import error_mixture

Slicing = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def confusion(num_slices: int = 5) -> Slicing:
  """Cells of the confusion matrix: errors first, then the rest.

  The paper's trivial one: a row is of the cell (y, yhat) as far as its label is
  y and its prediction yhat. Nothing is fitted.

  Args:
    num_slices: Of C^2 cells; those of two classes are four.
  """
  types.check_range('[1, inf)', num_slices=num_slices)

  def slicing(embeddings, labels, probs):
    del embeddings  # That is why it cannot tell rows of a cell apart.
    classes = probs.shape[1]
    cells = np.eye(classes)[labels][:, :, None] * probs[:, None]
    off = np.flatnonzero(~np.eye(classes, dtype=bool))
    on = np.flatnonzero(np.eye(classes, dtype=bool))
    order = np.concatenate([off, on])[:num_slices]
    return cells.reshape((len(labels), -1))[:, order]

  return slicing


def george(
  embeddings: np.ndarray,
  labels: np.ndarray,
  probs: np.ndarray,
  *,
  seed: int,
  num_slices: int = 5,
  num_components: int = 25,
  pca_dim: int = 2,
) -> Slicing:
  """Clusters within each class, of which those with large losses are slices.

  In the manner of Sohoni, Dunnmon, Angus, Gu and Re, 'No Subclass Left Behind',
  NeurIPS 2020 (https://arxiv.org/abs/2011.12945), as Domino's code has it: a
  Gaussian mixture in few dimensions. Those are principal ones here, where the
  authors have UMAP, so that it is like George and not George.

  Args:
    embeddings: [N, E].
    labels: [N].
    probs: [N, C].
    seed: Of the starts.
    num_slices: Of all classes together.
    num_components: Clusters of each class.
    pca_dim: Dimensions of each class; 2 in the authors' code.

  Raises:
    InputError: There are more classes than slices.
  """
  parts = []
  classes = np.unique(labels)
  # Else errors of the last ones would be in no slice.
  types.check_range(f'[{len(classes)}, inf)', num_slices=num_slices)
  each, odd = divmod(num_slices, len(classes))
  for place, label in enumerate(classes):
    own = labels == label
    centre, basis = domino.principal(embeddings[own], pca_dim)
    # Rows of other classes are padding: one program serves all classes.
    rows = _rows((embeddings - centre) @ basis, labels, probs, own)
    mixture = _plain_mixture(rows, jax.random.key(seed), num_components)
    share = np.asarray(_plain_shares(mixture, rows)) * own[:, None]
    loss = -np.log(np.maximum(probs[:, label], 1e-12))
    # The sum, as in Domino's copy of it: large clusters with errors.
    chosen = np.argsort(-(loss @ share), kind='stable')
    chosen = chosen[: each + (place < odd)]
    parts.append((label, centre, basis, mixture, chosen))

  def slicing(embeddings, labels, probs):
    columns = []
    for label, centre, basis, mixture, chosen in parts:
      rows = _rows((embeddings - centre) @ basis, labels, probs)
      share = np.asarray(_plain_shares(mixture, rows))[:, chosen]
      columns.append(share * (labels == label)[:, None])
    return np.concatenate(columns, 1)

  return slicing


def spotlight(
  embeddings: np.ndarray,
  labels: np.ndarray,
  probs: np.ndarray,
  *,
  num_slices: int = 5,
  pca_dim: int = 16,
  min_weight: float = 0.02,
  steps: int = 300,
  learning_rate: float = 0.05,
) -> Slicing:
  """Balls in the space of embeddings with the largest mean loss, in turn.

  In the manner of d'Eon, d'Eon, Wright and Leyton-Brown, 'The Spotlight',
  FAccT 2022 (https://arxiv.org/abs/2107.00758): a Gaussian bump of one width
  is moved by gradients to where its weighted mean loss is largest, with a
  quadratic barrier against one that holds less than some weight; then losses
  are lowered by what it has explained. Here it starts at the mean of the rows
  with the largest losses, and its width is in units of theirs.

  Args:
    embeddings: [N, E].
    labels: [N].
    probs: [N, C].
    num_slices: Bumps.
    pca_dim: Dimensions; in all of them distances are alike.
    min_weight: Least weight of a bump, in parts of N.
    steps: Of Adam, for each.
    learning_rate: Its rate.
  """
  types.check_range('(0, 1)', min_weight=min_weight)
  dim = min(pca_dim, *embeddings.shape)
  centre, basis = domino.principal(embeddings, dim)
  moved = (embeddings - centre) @ basis
  width = np.sqrt(moved.var(0).sum())
  loss = -np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-12))
  bumps = _spotlights(
    jnp.asarray(moved / width, jnp.float32),
    jnp.asarray(loss, jnp.float32),
    jnp.float32(min_weight * len(loss)),
    num_slices=num_slices,
    steps=steps,
    learning_rate=learning_rate,
  )

  def slicing(embeddings, labels, probs):
    del labels, probs  # A ball is where it is.
    rows = jnp.asarray((embeddings - centre) @ basis / width, jnp.float32)
    return np.asarray(jax.vmap(_bump, (0, None), 1)(bumps, rows))

  return slicing


def _bump(params, rows):
  """Logarithms of weights of rows, [N]."""
  mean, log_precision = params
  square = jnp.square(rows - mean[None]).sum(-1)
  return -0.5 * jnp.exp(log_precision) * square


@functools.partial(jax.jit, static_argnames=('num_slices', 'steps'))
def _spotlights(rows, loss, least, *, num_slices, steps, learning_rate):
  tx = optax.adam(learning_rate)

  def objective(params, loss):
    weight = jnp.exp(_bump(params, rows))
    total = weight.sum()
    short = jnp.maximum(2 * least - total, 0) / least
    return jnp.square(short) - (weight * loss).sum() / (total + 1e-6)

  def one(loss, _):
    top = loss >= jnp.quantile(loss, 0.95)
    start = (rows * top[:, None]).sum(0) / top.sum()
    params = (start, jnp.log(4.0))

    def step(carry, _):
      params, state = carry
      grads = jax.grad(objective)(params, loss)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    # What it has explained is not explained again.
    return loss * (1 - jnp.exp(_bump(params, rows))), params

  _, bumps = jax.lax.scan(one, loss, length=num_slices)
  return bumps


_NONE = dict(label_weight=0.0, prediction_weight=0.0)


@functools.partial(jax.jit, static_argnames='count')
def _plain_mixture(rows, rng, count):
  begin = error_mixture.kmeans(rows, count, rng)
  return error_mixture.fit(rows, begin, **_NONE).mixture


@jax.jit
def _plain_shares(mixture, rows):
  return jax.nn.softmax(error_mixture.log_joint(mixture, rows, **_NONE), -1)


def _rows(embeddings, labels, probs, mask=None):
  mask = np.ones(len(labels)) if mask is None else mask
  return error_mixture.Rows(
    jnp.asarray(embeddings, jnp.float32),
    jnp.asarray(np.eye(probs.shape[1])[labels], jnp.float32),
    jnp.asarray(probs, jnp.float32),
    jnp.asarray(mask, jnp.float32),
  )
