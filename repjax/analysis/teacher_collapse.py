"""Device code: how self-distillation collapses, without its two guards.

A student that learns what its own average says is right by always saying the
same. Centring the teacher's logits alone drives what it says to the uniform
distribution, sharpening it alone to one prototype; both together, as in Caron
et al., 'Emerging Properties in Self-Supervised Vision Transformers', ICCV 2021,
section 3.1 and figure 7 (https://arxiv.org/abs/2104.14294), do neither. A tiny
network on clusters of points shows it in seconds, all settings side by side.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax.layers import prototype_head
from repjax.methods import self_distillation
from repjax.methods import teacher_monitors
from repjax.types import check_range


class Guards(NamedTuple):
  """What keeps a teacher from collapsing.

  Attributes:
    centre_momentum: Of the centre; 1 keeps it at 0, which is none.
    temperature: Of the teacher; that of the student is .1.
  """

  centre_momentum: float
  temperature: float


# The published settings, and what becomes of them without one or both.
GRID: Mapping[str, Guards] = {
  'both': Guards(0.9, 0.04),
  'no centre': Guards(1.0, 0.04),
  'no sharpening': Guards(0.9, 1.0),
  'neither': Guards(1.0, 1.0),
}
STUDENT_TEMPERATURE = 0.1


class Curves(NamedTuple):
  """What a teacher says along the way, of the rows of each step.

  Attributes:
    loss: Of the student, [S, T].
    entropy: Of what is said of a row, over log K, [S, T].
    mean_entropy: Of its mean over rows, over log K, [S, T].
    spread: Standard deviation of features over their norm, [S, T].
    prototypes: How many are the largest of some row in the end, [S].
    neighbour: How often a row's nearest other row, by the teacher's features,
      is of its cluster, in the end, [S].
  """

  loss: np.ndarray
  entropy: np.ndarray
  mean_entropy: np.ndarray
  spread: np.ndarray
  prototypes: np.ndarray
  neighbour: np.ndarray


class _Student(nn.Module):
  """Points -> (features, logits of prototypes)."""

  num_prototypes: int

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = nn.relu(nn.Dense(64, name=f'hidden_{i}')(x))
    head = prototype_head.PrototypeHead(
      self.num_prototypes, hidden_dim=64, dim=32, name='head'
    )
    return x, head(x)


def grid(
  settings: Mapping[str, Guards] = GRID,
  seeds: Sequence[int] = (0, 1, 2),
  *,
  num_prototypes: int = 64,
  num_clusters: int = 8,
  steps: int = 300,
  batch_size: int = 32,
  momentum: float = 0.99,
  learning_rate: float = 3e-3,
) -> dict[str, Curves]:
  """Trains a student of each setting and seed, all in one program.

  Args:
    settings: Name -> guards.
    seeds: S seeds, of clusters, networks and draws.
    num_prototypes: K >= 2.
    num_clusters: Of points in 16 dimensions; two views of a row differ by
      noise that is a fifth of the distance between clusters.
    steps: T.
    batch_size: Rows of a step.
    momentum: Of the teacher.
    learning_rate: Of Adam.

  Returns:
    Name of a setting -> its curves.
  """
  check_range('[2, inf)', num_prototypes=num_prototypes)
  check_range('[2, inf)', num_clusters=num_clusters, batch_size=batch_size)
  check_range('[1, inf)', steps=steps)
  train = functools.partial(
    _train,
    model=_Student(num_prototypes),
    num_clusters=num_clusters,
    steps=steps,
    batch_size=batch_size,
    momentum=momentum,
    tx=optax.adam(learning_rate),
  )
  guards = Guards(*jnp.asarray(list(settings.values()), jnp.float32).T)
  rngs = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  over_seeds = jax.vmap(train, (None, 0))
  found = jax.device_get(jax.jit(jax.vmap(over_seeds, (0, None)))(guards, rngs))
  return {
    name: Curves(*(x[i] for x in found)) for i, name in enumerate(settings)
  }


def _train(
  guards, rng, *, model, num_clusters, steps, batch_size, momentum, tx
):
  rng_init, rng_centres, rng_steps, rng_last = jax.random.split(rng, 4)
  params = model.init(rng_init, jnp.zeros((1, 16)))['params']
  centres = jax.random.normal(rng_centres, (num_clusters, 16))

  def draw(rng):
    """(two views of rows, [2, B, 16]; their clusters [B])."""
    rng_cluster, rng_point, rng_view = jax.random.split(rng, 3)
    cluster = jax.random.randint(rng_cluster, (batch_size,), 0, num_clusters)
    noise = jax.random.normal(rng_point, (batch_size, 16))
    point = centres[cluster] + 0.2 * noise
    view = jax.random.normal(rng_view, (2, batch_size, 16))
    return point[None] + 0.2 * view, cluster

  def step(carry, rng):
    student, teacher, opt_state, centre = carry
    both, _ = draw(rng)
    features, said = model.apply({'params': teacher}, both)

    def loss_fn(student):
      _, logits = model.apply({'params': student}, both)
      return self_distillation.view_loss(
        list(logits),
        list(said),
        centre,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=guards.temperature,
      ).mean()

    loss, grads = jax.value_and_grad(loss_fn)(student)
    updates, opt_state = tx.update(grads, opt_state, student)
    seen = teacher_monitors.of_step(
      said.swapaxes(0, 1),
      features.swapaxes(0, 1).reshape((2 * batch_size, -1)),
      centre,
      guards.temperature,
      jnp.ones(batch_size, bool),
    )
    student = optax.apply_updates(student, updates)
    teacher = optax.incremental_update(student, teacher, 1 - momentum)
    centre = self_distillation.moved_centre(
      centre,
      said.mean(0),
      jnp.ones(batch_size),
      momentum=guards.centre_momentum,
    )
    kept = [seen[x].mean() for x in ('entropy', 'mean_entropy', 'spread')]
    return (student, teacher, opt_state, centre), (loss, *kept)

  carry = params, params, tx.init(params), jnp.zeros(model.num_prototypes)
  (_, teacher, _, centre), curves = jax.lax.scan(
    step, carry, jax.random.split(rng_steps, steps)
  )
  both, cluster = jax.vmap(draw)(jax.random.split(rng_last, 8))
  points, cluster = both[:, 0].reshape((-1, 16)), cluster.reshape(-1)
  features, said = model.apply({'params': teacher}, points)
  largest = jax.nn.one_hot((said - centre[None]).argmax(-1), said.shape[-1])
  apart = jnp.square(features[:, None] - features[None]).sum(-1)
  apart = jnp.where(jnp.eye(len(points), dtype=bool), jnp.inf, apart)
  return Curves(
    *curves,
    prototypes=(largest.sum(0) > 0).sum(),
    neighbour=(cluster[apart.argmin(-1)] == cluster).mean(),
  )
