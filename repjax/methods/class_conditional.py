"""Device code: IRM, V-REx, MMD and GroupDRO, class by class.

What 'Systematic generalisation with group invariant predictions' (Ahmed et al.,
ICLR 2021, https://openreview.net/forum?id=b9PoimzZFJ) compares PGI with, on the
same groups: cIRMv1, cREx, cMMD and cDRO. Formulas are those of the authors'
code. A class that a batch has of one group alone has no penalty, and one of
which it has several groups that of these.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.methods import classifier
from repjax.methods import group_dro
from repjax.methods import grouped
from repjax.methods import irm
from repjax.methods import vrex

# Bandwidths of the kernels of MMD, whose mean is taken.
_BANDWIDTHS = (1.0, 5.0, 10.0)


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  form: Literal['irm', 'vrex', 'mmd'],
  num_classes: int,
  num_groups: int = 2,
  weight: optax.ScalarOrSchedule,
  **settings: Any,
) -> types.Method:
  """Minimizes the groups' mean loss plus a mean of penalties over classes.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    form: The penalty of each class: 'irm' (with a scale for each class,
      `irm.penalty`), 'vrex', or 'mmd', the squared maximum mean discrepancy of
      the features, averaged over pairs of groups.
    num_classes: C.
    num_groups: G.
    weight: >= 0, or a schedule over steps.
    **settings: rescale (the authors rescale 'irm' and 'vrex'), inputs, head and
      the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`.
  """
  types.check_choice('form', form, ('irm', 'vrex', 'mmd'))
  types.check_range('[1, inf)', num_classes=num_classes)

  def of_class(rows, mask):
    if form == 'irm':
      return irm.penalty(
        rows.logits,
        rows.label,
        rows.group,
        mask,
        num_groups=num_groups,
        form='vector',
      )
    if form == 'vrex':
      return vrex.penalty(rows.nll, rows.group, mask, num_groups=num_groups)
    return mmd(rows.features, rows.group, mask, num_groups=num_groups)

  def of_rows(rows):
    def one(index):
      mask = rows.labelled * (rows.label == index)
      counts = grouped.members(rows.group, mask, num_groups).sum(0)
      return jnp.where((counts > 0).sum() > 1, of_class(rows, mask), 0.0)

    return jax.vmap(one)(jnp.arange(num_classes)).mean()

  return grouped.make(
    model,
    tx,
    grouped.penalized(of_rows, num_groups),
    num_groups=num_groups,
    weight=weight,
    **settings,
  )


def dro(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  num_groups: int = 2,
  step_size: float = 0.01,
  **settings: Any,
) -> types.Method:
  """GroupDRO inside each class, whose losses are averaged (cDRO).

  The authors divide a class's losses by their sum before they are exponents;
  this is the published update of GroupDRO.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    num_classes: C.
    num_groups: G.
    step_size: eta, >= 0.
    **settings: inputs, head and the rest of `grouped.make`.

  Returns:
    A `types.Method`; see `grouped.make`. A class that a batch lacks, or lacks a
    group of, keeps its weights; its rows count alike.
  """
  types.check_range('[1, inf)', num_classes=num_classes, num_groups=num_groups)
  types.check_range('[0, inf)', step_size=step_size)
  cells = (num_classes, num_groups)

  def objective(rows, memory):
    losses, counts = grouped.means(
      rows.nll, rows.group, rows.labelled, num_classes * num_groups
    )
    losses, counts = losses.reshape(cells), counts.reshape(cells)
    both = (counts > 0).all(1, keepdims=True)
    grown = jax.vmap(
      lambda weights, losses: group_dro.updated(
        weights, losses, step_size=step_size
      )
    )(memory['weights'], losses)
    weights = jnp.where(both, grown, memory['weights'])
    by_rows = counts / jnp.maximum(counts.sum(1, keepdims=True), 1.0)
    counted = jnp.where(both, weights, by_rows) / num_classes
    return grouped.Terms(counted.ravel(), jnp.zeros(()), {'weights': weights})

  made = grouped.make(
    model,
    tx,
    objective,
    num_groups=num_classes * num_groups,
    weight=0.0,
    memory={'weights': jnp.full(cells, 1 / num_groups)},
    **settings,
  )

  def update(state, batch, rng):
    grouped.check_groups(batch)
    known = grouped.members(
      batch['group'], classifier.is_labelled(batch), num_groups
    ).sum(1)
    label = batch['label'].astype(jnp.int32)  # Cells need more than 8 bits.
    cell = num_groups * label + batch['group']
    group = jnp.where(known > 0, cell, -1)
    return made.update(state, {**batch, 'group': group}, rng)

  return made._replace(update=update)


@jax.default_matmul_precision('highest')
def mmd(
  features: jax.Array,
  group: jax.Array,
  mask: jax.Array,
  *,
  num_groups: int,
) -> jax.Array:
  """Squared maximum mean discrepancy, averaged over pairs of groups with rows.

  Gretton et al., 'A Kernel Two-Sample Test', JMLR 2012, eq. 5 (biased), with
  the mean of Gaussian kernels of bandwidths 1, 5 and 10.
  https://arxiv.org/abs/0805.2368 (an earlier version).

  Args:
    features: [N, D].
    group: [N].
    mask: 1 for rows that count, [N].
    num_groups: G.
  """
  size = jnp.square(features).sum(-1)
  square = size[:, None] + size[None] - 2 * features @ features.T
  square = jnp.maximum(square, 0.0)
  kernel = sum(jnp.exp(-square / (2 * width**2)) for width in _BANDWIDTHS)
  member = grouped.members(group, mask, num_groups)
  counts = member.sum(0)
  share = member / jnp.maximum(counts, 1.0)[None]
  inner = share.T @ (kernel / len(_BANDWIDTHS)) @ share  # [G, G].
  own = jnp.diagonal(inner)
  there = (counts > 0).astype(jnp.float32)
  pairs = jnp.triu(there[:, None] * there[None], 1)
  distance = own[:, None] + own[None] - 2 * inner
  return (distance * pairs).sum() / jnp.maximum(pairs.sum(), 1.0)
