"""Device code: Mixup of rows from different groups.

Xu et al., 'Adversarial Domain Adaptation with Domain Mixup', AAAI 2020
(https://arxiv.org/abs/1912.01805), and DomainBed (Gulrajani and Lopez-Paz, ICLR
2021, https://arxiv.org/abs/2007.01434): inputs and labels of two domains are
blended. DomainBed pairs whole mini-batches of domains; here each row draws a
partner among all rows of other groups.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import classifier
from repjax.methods import erm
from repjax.methods import grouped
from repjax.methods import mixup
from repjax.methods import model_inputs


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  num_classes: int,
  alpha: float = 0.2,
  per: Literal['example', 'batch'] = 'example',
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy on rows that are blended across groups.

  Args:
    model: Any linen classifier.
    tx: Optax chain.
    num_groups: G, the domains.
    num_classes: C.
    alpha: lambda ~ Beta(alpha, alpha), > 0; 0.2 in DomainBed.
    per: Whether each 'example' has its own lambda, or all of the 'batch' one.
    inputs: What the model is called with, in place of images.
    **settings: microbatches, compute_dtype, ema_decay, finish; see
      `steps.make`.

  Returns:
    A `types.Method`; see `classifier.make`. Rows without a label, or of no
    group, stay as they are and are nobody's partner.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      there are no groups, or what is to be blended are ids.
  """
  types.check_range('[1, inf)', num_groups=num_groups, num_classes=num_classes)
  types.check_range('(0, inf)', alpha=alpha)
  types.check_choice('per', per, ('example', 'batch'))

  def transform(batch, rng):
    return mix(
      batch,
      rng,
      num_groups=num_groups,
      num_classes=num_classes,
      alpha=alpha,
      per=per,
    )

  return erm.make(
    model,
    tx,
    inputs=inputs,
    transform=transform,
    whole='Domain mixup',
    refuses='rows',
    **settings,
  )


def mix(
  batch: types.Batch,
  rng: jax.Array,
  *,
  num_groups: int,
  num_classes: int,
  alpha: float,
  per: Literal['example', 'batch'] = 'example',
) -> types.Batch:
  """Blends each labelled row with one of another group, of any device.

  Args:
    batch: With the model's input, 'label', 'group' and 'mask'.
    rng: Equal on all devices.
    num_groups: G.
    num_classes: C.
    alpha: lambda ~ Beta(alpha, alpha).
    per: Whether each 'example' has its own lambda, or all of the 'batch' one.

  Returns:
    The batch with a blended input and labels 'target' [B, C]; 'label' stays.

  Raises:
    InputError: If there is no input or no group, the input is ids, or `per`
      is another word.
  """
  types.check_choice('per', per, ('example', 'batch'))
  grouped.check_groups(batch)
  name = mixup.input_name(batch)
  if not jnp.issubdtype(batch[name].dtype, jnp.floating):
    raise types.InputError(
      f'Only floating-point values can be mixed; {name!r} holds '
      f'{batch[name].dtype}.'
    )
  labelled = classifier.is_labelled(batch)
  rng_partner, rng_weight = jax.random.split(rng)
  num_rows = labelled.shape[0]
  target = jax.nn.one_hot(
    jnp.where(labelled > 0, batch['label'], 0), num_classes
  )
  member = grouped.members(batch['group'], labelled, num_groups)
  x, targets, theirs = parallel.all_gather((batch[name], target, member))
  # Whom a row may be mixed with: real rows of a group that is not its own.
  others = (
    theirs.sum(1)[None] * member.sum(1)[:, None] * (1 - member @ theirs.T)
  )
  draws = jax.vmap(lambda key: jax.random.uniform(key, (len(theirs),)))(
    parallel.row_rngs(rng_partner, num_rows)
  )
  partner = jnp.where(others > 0, draws, -1.0).argmax(-1)
  if per == 'example':
    keys = parallel.row_rngs(rng_weight, num_rows)
    weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
  else:
    weight = jnp.broadcast_to(
      jax.random.beta(rng_weight, alpha, alpha), (num_rows,)
    )
  weight = jnp.where(others.any(1), weight, 1.0)

  def blend(own, everyone):
    part = weight.reshape((-1,) + (1,) * (own.ndim - 1)).astype(own.dtype)
    mixed = part * own + (1 - part) * everyone[partner]
    return jnp.where(part < 1, mixed, own)

  return {
    **batch,
    name: blend(batch[name], x),
    'target': blend(target, targets),
  }
