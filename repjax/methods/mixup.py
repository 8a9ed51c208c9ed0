"""Device code: training on convex combinations of examples.

Zhang, Cisse, Dauphin and Lopez-Paz, 'mixup: Beyond Empirical Risk
Minimization', ICLR 2018 (https://arxiv.org/abs/1710.09412), whose effects
Zhang, Deng, Kawaguchi, Ghorbani and Zou, 'How Does Mixup Help With Robustness
and Generalization?', ICLR 2021 (https://arxiv.org/abs/2010.04819), explain
(`repjax.analysis.mixup_terms`). CutMix: Yun et al., ICCV 2019
(https://arxiv.org/abs/1905.04899). Manifold mixup: Verma et al., ICML 2019
(https://arxiv.org/abs/1806.05236).

A row's partner is its neighbour: rows 0 and 1, 2 and 3, and so on. Batches are
shuffled anew in every epoch, so pairs are uniformly random; nothing crosses
devices, and the result does not depend on their number.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.types import InputError

Kind = Literal['mixup', 'cutmix', 'manifold']
Per = Literal['example', 'batch']

# A row is in its neighbour's loss, too.
_COUPLED: dict[str, Any] = dict(whole='mixup', refuses='rows')


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  alpha: float,
  kind: Kind = 'mixup',
  per: Per = 'example',
  mix_rate: float = 1.0,
  layers: Sequence[str] = (),
  **settings: Any,
) -> types.Method:
  """Supervised learning on mixed pairs.

  What it reports of training is 'mixed_accuracy', which counts the larger part
  of each mixture: it stays far below the accuracy on clean images.

  Args:
    model: A classifier, which knows nothing of mixing.
    tx: Optax chain. It must not clip single rows, which are in two losses each.
    num_classes: C.
    alpha: lambda ~ Beta(alpha, alpha), >= 0; 0 is plain training, bit for bit.
      The papers use 1 for CIFAR and 0.2 for ImageNet ('mixup'), 1 ('cutmix')
      and 2 ('manifold').
    kind: 'mixup' blends images, 'cutmix' pastes a box of the partner, and
      'manifold' blends what one layer of the network gives.
    per: Whether every example has its own lambda (and box), or all share one,
      as in the authors' code.
    mix_rate: Probability that an example (or, with `per='batch'`, the batch) is
      mixed at all, in [0, 1]. CutMix uses 0.5 for CIFAR.
    layers: Only for 'manifold': names of the submodules after which may be
      mixed, such as ('input', 'stage_0', 'stage_1'), where 'input' is what
      the model sees and '/' separates the names inside a submodule. One of them
      is drawn for each step. What an affine layer gives is blended as its input
      is, so the last hidden activations of `models.mlp.Mlp` are 'head'.
    **settings: Further arguments of `supervised.make`; a `transform` comes
      before rows are mixed.

  Returns:
    A `types.Method` like that of `supervised.make`.

  Raises:
    InputError: If an argument is out of range, or, when the step is traced, if
      a device's microbatch has an odd number of rows or the model has no layer
      of a given name.
  """
  if kind not in ('mixup', 'cutmix', 'manifold'):
    raise InputError(f"kind is 'mixup', 'cutmix' or 'manifold'; got {kind=}")
  layers = tuple(layers)
  if bool(layers) != (kind == 'manifold') or len(set(layers)) != len(layers):
    raise InputError(
      "layers holds different names, at least one for kind='manifold' and "
      f'none for the others; got {kind=}, {layers=}'
    )
  _check(alpha=alpha, per=per, mix_rate=mix_rate)
  draws = dict(alpha=alpha, per=per, mix_rate=mix_rate)
  if alpha == 0 or mix_rate == 0:
    return supervised.make(model, tx, **settings)

  first = settings.pop('transform', None)

  def before(batch, rng):
    if first is None:
      return batch, rng
    rng_first, rng = jax.random.split(rng)
    return first(batch, rng_first), rng

  if kind != 'manifold':

    def transform(batch, rng):
      batch, rng = before(batch, rng)
      return mix(batch, rng, num_classes=num_classes, kind=kind, **draws)

    return supervised.make(
      model, tx, transform=transform, **_COUPLED, **settings
    )

  def plan(batch, rng):
    batch, rng = before(batch, rng)
    weight, _, rng_layer = _draw(batch['mask'], rng, **draws)
    layer = jax.random.randint(rng_layer, (), 0, len(layers))
    # Columns, so that they follow their rows into microbatches.
    return {
      **batch,
      'target': mix_rows(_target(batch, num_classes), weight),
      'mix_weight': weight,
      'mix_layer': jnp.broadcast_to(layer, weight.shape),
    }

  return supervised.make(
    model,
    tx,
    transform=plan,
    apply_fn=functools.partial(_mixed_forward, layers=layers),
    **_COUPLED,
    **settings,
  )


def mix(
  batch: types.Batch,
  rng: jax.Array,
  *,
  num_classes: int,
  alpha: float,
  kind: Literal['mixup', 'cutmix'] = 'mixup',
  per: Per = 'example',
  mix_rate: float = 1.0,
) -> types.Batch:
  """Mixes the images and labels of this device's rows with their neighbours'.

  A row keeps its image and label as they are, bit for bit, where lambda is 1,
  and where the row or its partner is padding.

  Args:
    batch: 'image' [B, H, W, C] or another input of numbers, float [B, ...],
      'label' [B] or soft labels 'target' [B, C], and 'mask' [B]; B is even.
    rng: Equal on all devices.
    num_classes: C.
    alpha: lambda ~ Beta(alpha, alpha), >= 0; 0 mixes nothing.
    kind: 'mixup': x = lambda x + (1 - lambda) x' (Zhang et al., 2018);
      'cutmix': a box of the partner of area 1 - lambda around a uniform
      point, clipped at the border, with lambda set to what it leaves (eq. 1
      and 2 of Yun et al.).
    per: Whether each 'example' has its own lambda, or all of the 'batch' one.
    mix_rate: Probability that an example or the batch is mixed, in [0, 1].

  Returns:
    The batch with the mixed input and its labels 'target' [B, C]; 'label'
    stays.

  Raises:
    InputError: If a setting is out of range, the input is none of numbers, or
      boxes are to be cut from what is no image.
  """
  _check(alpha=alpha, per=per, mix_rate=mix_rate)
  name = input_name(batch)
  mixed = batch[name]
  weight, centre, _ = _draw(
    batch['mask'], rng, alpha=alpha, per=per, mix_rate=mix_rate
  )
  if kind == 'mixup':
    mixed = mix_rows(mixed, weight)
  elif kind == 'cutmix' and name == 'image':
    mixed, weight = _paste(mixed, weight, centre)
  elif kind == 'cutmix':
    raise InputError(
      f"kind='cutmix' cuts boxes from 'image', not from {name!r}"
    )
  else:
    raise InputError(f"kind is 'mixup' or 'cutmix' here; got {kind=}")
  target = mix_rows(_target(batch, num_classes), weight)
  return {**batch, name: mixed, 'target': target}


def input_name(batch: types.Batch) -> str:
  """The column that is a batch's input: the first of `types.INPUTS` it has.

  Raises:
    InputError: If it has none.
  """
  name = next((x for x in types.INPUTS if x in batch), None)
  if name is None:
    raise InputError(
      f'A batch with an input ({", ".join(types.INPUTS)}) is needed; this one '
      f'has {", ".join(sorted(batch))}.'
    )
  return name


def mix_rows(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Blends each row with its neighbour: weight * x + (1 - weight) * x'.

  At weight 1 it is x, bit for bit, even if the neighbour is not finite.

  Args:
    x: [B, ...], float.
    weight: lambda of each row, [B].
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(
      f'Only floating-point values can be mixed; got {x.dtype}: convert images '
      'to float first.'
    )
  weight = weight.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
  return jnp.where(weight < 1, weight * x + (1 - weight) * _partner(x), x)


def _partner(x):
  """Rows 1, 0, 3, 2, ... of x."""
  num_rows = x.shape[0]
  if num_rows % 2:
    raise InputError(
      f'Rows are mixed in pairs, but a part of the batch has {num_rows} rows: '
      'make config.batch_size a multiple of 2 x devices x microbatches '
      '(x groups, if SAM has any).'
    )
  return x.reshape((-1, 2, *x.shape[1:]))[:, ::-1].reshape(x.shape)


def _target(batch, num_classes):
  if 'target' in batch:
    return batch['target']
  return jax.nn.one_hot(batch['label'], num_classes)


def _draw(mask, rng, *, alpha, per, mix_rate):
  """Draws lambda [B], the box's place [B, 2] in [0, 1), and a batch's key."""
  rng_rows, rng_batch = jax.random.split(rng)

  def draw(rng):
    rng_weight, rng_rest = jax.random.split(rng)
    used, *centre = jax.random.uniform(rng_rest, (3,))
    weight = jnp.where(used < mix_rate, _beta(rng_weight, alpha), 1.0)
    return weight, jnp.stack(centre)

  num_rows = mask.shape[0]
  if per == 'example':
    weight, centre = jax.vmap(draw)(parallel.row_rngs(rng_rows, num_rows))
  else:
    weight, centre = (
      jnp.broadcast_to(x, (num_rows, *x.shape)) for x in draw(rng_rows)
    )
  real = (mask > 0) & (_partner(mask) > 0)
  return jnp.where(real, weight, 1.0), centre, rng_batch


def _beta(rng, alpha):
  if alpha == 0:
    return 1.0
  if alpha == 1:  # The usual case; the general sampler takes long to compile.
    return jax.random.uniform(rng)
  return jax.random.beta(rng, alpha, alpha)


def _paste(image, weight, centre):
  """(images with a box of their neighbours', share of pixels kept [B])."""
  side = jnp.sqrt(1 - weight)[:, None]

  def inside(size, centre):
    length = jnp.round(size * side)
    start = jnp.floor(size * centre[:, None]) - jnp.floor(length / 2)
    place = jnp.arange(size)[None]
    return (place >= start) & (place < start + length)  # [B, size]

  height, width = image.shape[1:3]
  rows, columns = inside(height, centre[:, 0]), inside(width, centre[:, 1])
  box = rows[:, :, None] & columns[:, None, :]  # [B, H, W]
  mixed = jnp.where(box[..., None], _partner(image), image)
  kept = (~box).sum((1, 2)) / (height * width)
  # The compiler may divide by multiplying, which does not make n / n = 1.
  return mixed, jnp.where(box.any((1, 2)), kept, 1.0)


def _mixed_forward(model, inputs, variables, batch, rng, *, layers):
  """`model_inputs.forward` that mixes after the layer `mix_layer`."""
  seen = {'input'}

  def mixed(name, x):
    here = batch['mix_layer'] == layers.index(name)
    return mix_rows(x, jnp.where(here, batch['mix_weight'], 1.0))

  def interceptor(next_fn, args, kwargs, context):
    output = next_fn(*args, **kwargs)
    name = '/'.join(context.module.path)
    if context.method_name != '__call__':
      return output
    seen.add(name)
    return mixed(name, output) if name in layers else output

  if 'input' in layers:
    name = input_name(batch)
    batch = {**batch, name: mixed('input', batch[name])}
  with nn.intercept_methods(interceptor):
    logits, model_state = model_inputs.forward(
      model, inputs, variables, batch, rng
    )
  for name in layers:
    if name not in seen:
      names = sorted(seen - {''})
      raise InputError(
        f'layers={layers} names {name!r}, which the model does not have.'
        f'{trees.nearest(name, names)} It has: {", ".join(names)}'
      )
  return logits, model_state


def _check(*, alpha, per, mix_rate):
  if not 0 <= alpha < math.inf or not 0 <= mix_rate <= 1:
    raise InputError(
      f'Need alpha >= 0 and 0 <= mix_rate <= 1; got {alpha=}, {mix_rate=}'
    )
  if per not in ('example', 'batch'):
    raise InputError(f"per is 'example' or 'batch'; got {per=}")
