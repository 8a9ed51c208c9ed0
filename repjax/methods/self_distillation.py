"""Device code: losses between a student's views and a teacher's.

Views are compared as wholes (Caron et al., 'Emerging Properties in
Self-Supervised Vision Transformers', ICCV 2021, eq. 1,
https://arxiv.org/abs/2104.14294) and region by region (Li et al., 'Efficient
Self-supervised Vision Transformers for Representation Learning', ICLR 2022,
eq. 3, https://arxiv.org/abs/2106.09785).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax import types


def targets(
  logits: jax.Array, centre: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """What a teacher says: softmax((logits - centre) / temperature), no gradient.

  Args:
    logits: [..., K].
    centre: Running mean of its logits, [K].
    temperature: Below the student's sharpens.
  """
  centre = jnp.expand_dims(centre, tuple(range(logits.ndim - 1)))
  return jax.lax.stop_gradient(
    jax.nn.softmax((logits.astype(jnp.float32) - centre) / temperature)
  )


def cross_entropy(
  target: jax.Array, logits: jax.Array, temperature: float
) -> jax.Array:
  """-sum target log softmax(logits / temperature), [...]."""
  logits = logits.astype(jnp.float32) / temperature
  return -(target * jax.nn.log_softmax(logits)).sum(-1)


def pairs(num_student: int, num_teacher: int = 2) -> list[tuple[int, int]]:
  """(teacher's view, student's view) of all comparisons.

  The first views of the student are the teacher's; no view is compared with
  itself. Ten views and two make 18 pairs.
  """
  return [
    (q, v) for q in range(num_teacher) for v in range(num_student) if v != q
  ]


def view_loss(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  centre: jax.Array,
  *,
  student_temperature: float,
  teacher_temperature: float | jax.Array,
) -> jax.Array:
  """The mean cross-entropy over all pairs of different views, [B].

  Args:
    student: Logits of each view, [B, K]; the teacher's views first.
    teacher: Logits of its views, [B, K].
    centre: Of the teacher's logits, [K].
    student_temperature: > 0.
    teacher_temperature: > 0.
  """
  said = [targets(x, centre, teacher_temperature) for x in teacher]
  losses = [
    cross_entropy(said[q], student[v], student_temperature)
    for q, v in pairs(len(student), len(teacher))
  ]
  return sum(losses[1:], losses[0]) / len(losses)


def matches(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Which of the teacher's regions each of the student's is most alike.

  By the cosine of what the backbones say of them, not of the heads' outputs;
  there is no gradient.

  Args:
    student: [B, S, C].
    teacher: [B, T, C].

  Returns:
    int32 [B, S], in [0, T).
  """

  def unit(x):
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

  student, teacher = jax.lax.stop_gradient((student, teacher))
  # The student's norms change no order, but keep products below overflow.
  cosine = jnp.einsum('bsc,btc->bst', unit(student), unit(teacher))
  return cosine.argmax(-1).astype(jnp.int32)


def region_loss(
  student: jax.Array,
  student_kernel: jax.Array,
  teacher: jax.Array,
  teacher_kernel: jax.Array,
  match: jax.Array,
  centre: jax.Array,
  *,
  student_temperature: float,
  teacher_temperature: float | jax.Array,
  chunk: int = 1024,
) -> jax.Array:
  """The mean cross-entropy of regions with those they match, [B].

  Logits are made for `chunk` regions at a time, and again in the backward pass:
  what is kept is [B, S, D], never [B, S, K].

  Args:
    student: Unit embeddings of a view's regions, [B, S, D].
    student_kernel: The student's prototypes, [D, K].
    teacher: Those of a view of the teacher, [B, T, D].
    teacher_kernel: [D, K].
    match: `matches` of the two views, [B, S].
    centre: Of the teacher's logits of regions, [K].
    student_temperature: > 0.
    teacher_temperature: > 0.
    chunk: Number of regions whose logits are in memory at once.

  Raises:
    InputError: `chunk` is below 1.
  """
  types.check_range('[1, inf)', chunk=chunk)
  batch, num_regions, dim = student.shape
  teacher = jnp.take_along_axis(teacher, match[..., None], axis=1)
  total = batch * num_regions
  chunk = min(chunk, total)
  padding = -total % chunk

  def divide(x):
    x = jnp.pad(x.reshape(total, dim), ((0, padding), (0, 0)))
    return x.reshape(-1, chunk, dim)

  def losses(args):
    own, theirs = args
    said = targets(theirs @ teacher_kernel, centre, teacher_temperature)
    return cross_entropy(said, own @ student_kernel, student_temperature)

  each = jax.lax.map(
    jax.checkpoint(losses),
    (divide(student), divide(jax.lax.stop_gradient(teacher))),
  )
  return each.reshape(-1)[:total].reshape(batch, num_regions).mean(1)


def moved_centre(
  centre: jax.Array, logits: jax.Array, mask: jax.Array, *, momentum: float
) -> jax.Array:
  """The running mean of a teacher's logits, one step later.

  Args:
    centre: [K].
    logits: Of this device's rows, each a mean over its views (and regions),
      [B, K].
    mask: 1 for a real row, [B]; without any the centre stays.
    momentum: Weight of the old centre, in [0, 1].
  """
  mask = (mask > 0).astype(jnp.float32)
  total, count = parallel.psum(
    (jnp.where(mask[:, None] > 0, logits, 0).sum(0), mask.sum())
  )
  mean = total / jnp.maximum(count, 1)
  return jnp.where(count > 0, momentum * centre + (1 - momentum) * mean, centre)
