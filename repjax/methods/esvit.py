"""EsViT: a student learns what its own average says of other views.

Li et al., 'Efficient Self-supervised Vision Transformers for Representation
Learning', ICLR 2022 (https://arxiv.org/abs/2106.09785). View by view this is
DINO (Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294); region by
region, each of the student's regions learns what the teacher says of the region
that is most like it. A step goes in this order:

  1. the teacher sees the two large views, in evaluation, as it is.
  2. the student sees all views; its loss is half of each kind, with centres as
     they are, and its optimizer moves it.
  3. centres move to the teacher's logits of this step, of all devices.
  4. the teacher moves towards the student.

Of the networks that the paper compares a Swin and a ViT are here; stages of ViL
and CvT are not.
"""

import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.layers import prototype_head
from repjax.methods import grouped
from repjax.methods import model_inputs
from repjax.methods import multi_crop
from repjax.methods import self_distillation
from repjax.methods import step as steps
from repjax.methods import teacher_monitors
from repjax.types import InputError

_LARGE, _SMALL = 'large', 'small'
_VIEW, _REGION, _TOKENS = 'said_of_view', 'said_of_regions', 'teacher_tokens'


class EsvitState(NamedTuple):
  """What is kept beside the student; replicated, saved with it.

  Attributes:
    teacher: Parameters, like those of the student.
    view_centre: Running mean of the teacher's logits of views, [K].
    region_centre: That of regions, [K]; [0] without a region loss.
  """

  teacher: types.PyTree
  view_centre: jax.Array
  region_centre: jax.Array


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  crops: multi_crop.MultiCrop,
  num_prototypes: int = 65_536,
  region_prototypes: int | None = None,
  hidden_dim: int = 2048,
  dim: int = 256,
  learn_norm: bool = False,
  region_weight: float = 0.5,
  student_temperature: float = 0.1,
  teacher_temperature: optax.ScalarOrSchedule = 0.04,
  momentum: optax.ScalarOrSchedule = 0.996,
  centre_momentum: float = 0.9,
  frozen_steps: int = 0,
  chunk: int = 1024,
  compute_dtype: str = 'float32',
  **settings: Any,
) -> types.Method:
  """Self-distillation of views and of regions.

  Args:
    model: A backbone with a method `encode` that gives a map [B, H, W, C], or
      tokens [B, T, C], in front of which is a class token where its field
      `pool` is 'token' (that then stands for the view; the mean does else). It
      must take images of both sizes of `crops`.
    tx: Optax chain; links that take `grad_fn` get it.
    crops: How views are made, on the devices.
    num_prototypes: K, of views.
    region_prototypes: K of regions; None for `num_prototypes`.
    hidden_dim: Width of the heads' hidden layers.
    dim: Width of the heads' bottlenecks.
    learn_norm: Whether norms of prototypes are learned; 1 else.
    region_weight: Part of the regions in the loss, in [0, 1): one half as
      published, 0 is DINO, and has no head for regions.
    student_temperature: tau_s > 0.
    teacher_temperature: tau_t, or a schedule of it over steps.
    momentum: Of the teacher, or a schedule of it over steps.
    centre_momentum: Of the centres, in [0, 1]; 1 keeps them at 0.
    frozen_steps: Steps in which the prototypes get no gradient (an optimizer
      with decay moves them all the same).
    chunk: Regions whose logits are in memory at once.
    compute_dtype: 'float32' or 'bfloat16', of both networks.
    **settings: microbatches, which must be 1.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C]. `predict` gives
    'features' [B, C] of whole images, by the teacher. Sums: 'loss', its parts
    'view' and 'region', and what tells of a collapse: 'entropy' of what the
    teacher says of a view, 'mean_entropy' of its mean over all rows (both over
    log K: towards 1 and 1 it says nothing, towards 0 and 0 always the same),
    'clusters', the number of different largest prototypes over that of rows,
    and 'spread', the standard deviation of features over their root mean square
    norm.

  Raises:
    InputError: If a setting is out of range, or, when traced, small views are
      larger than images or the model has no `encode`.
  """
  types.check_range('[0, 1)', region_weight=region_weight)
  types.check_range('[0, 1]', centre_momentum=centre_momentum)
  types.check_range('(0, inf)', student_temperature=student_temperature)
  types.check_range('[0, inf)', frozen_steps=frozen_steps)
  types.check_range('[1, inf)', chunk=chunk)
  types.check_choice('compute_dtype', compute_dtype, ('float32', 'bfloat16'))
  for name, value in dict(
    teacher_temperature=teacher_temperature, momentum=momentum
  ).items():
    if not callable(value):
      limits = '[0, 1]' if name == 'momentum' else '(0, inf)'
      types.check_range(limits, **{name: value})
  grouped.check_whole(settings)
  settings.pop('microbatches', None)
  if settings:
    raise InputError(f'EsViT has no settings {sorted(settings)}.')
  if not callable(getattr(type(model), 'encode', None)):
    raise InputError(
      f'EsViT needs a backbone with a method encode (Swin, ViT); '
      f'{type(model).__name__} has none'
    )
  has_regions = region_weight > 0
  head = functools.partial(
    prototype_head.PrototypeHead,
    hidden_dim=hidden_dim,
    dim=dim,
    learn_norm=learn_norm,
  )
  heads = {'view': head(num_prototypes)}
  if has_regions:
    heads['region'] = head(region_prototypes or num_prototypes)

  def encode(params, model_state, image, *, train, rng=None):
    """(features of views [B, C], of regions [B, T, C], new collections)."""
    out, updates = model.apply(
      {'params': params['backbone'], **model_state},
      image,
      train=train,
      method='encode',
      rngs={'dropout': rng} if train else {},
      mutable=list(model_state) if train else [],
    )
    view, regions = divided(model, out)
    return view, regions, {**model_state, **updates}

  def kernel(params, name, *, frozen=False):
    columns = heads[name].apply({'params': params[name]}, method='kernel')
    return jnp.where(frozen, jax.lax.stop_gradient(columns), columns)

  def embed(params, name, features):
    return heads[name].apply({'params': params[name]}, features, method='embed')

  def loss_fn(
    params, model_state, batch, rng, *, teacher, centres, temperature, frozen
  ):
    by_view, by_regions = [], []
    for number, name in enumerate((_LARGE, _SMALL)):
      images = batch[name]
      rows, count = images.shape[:2]
      if not count:
        continue
      view, regions, model_state = encode(
        params,
        model_state,
        images.reshape((-1, *images.shape[2:])),
        train=True,
        rng=jax.random.fold_in(rng, number),
      )
      by_view += list(view.reshape((rows, count, -1)).swapaxes(0, 1))
      regions = regions.reshape((rows, count, *regions.shape[1:]))
      by_regions += list(regions.swapaxes(0, 1))
    given = dict(
      student_temperature=student_temperature, teacher_temperature=temperature
    )
    columns = kernel(params, 'view', frozen=frozen)
    loss = view = self_distillation.view_loss(
      [embed(params, 'view', x) @ columns for x in by_view],
      list(batch[_VIEW].swapaxes(0, 1)),
      centres[0],
      **given,
    )
    metrics = {'view': view, **{x: batch[x] for x in teacher_monitors.NAMES}}
    if has_regions:
      columns = kernel(params, 'region', frozen=frozen)
      embedded = [embed(params, 'region', x) for x in by_regions]
      losses = [
        self_distillation.region_loss(
          embedded[v],
          columns,
          batch[_REGION][:, q],
          kernel(teacher, 'region'),
          self_distillation.matches(by_regions[v], batch[_TOKENS][:, q]),
          centres[1],
          chunk=chunk,
          **given,
        )
        for q, v in self_distillation.pairs(len(embedded))
      ]
      region = sum(losses[1:], losses[0]) / len(losses)
      loss = (1 - region_weight) * view + region_weight * region
      metrics['region'] = region
    return types.Losses(loss, model_state, {'loss': loss, **metrics})

  def init(rng, batch):
    crops.check(batch['image'].shape)
    names = ('backbone', *heads)
    rngs = dict(zip(names, jax.random.split(rng, len(names)), strict=True))
    image = batch['image'][:1, : crops.size, : crops.size]
    variables = model.init({'params': rngs['backbone']}, image, train=False)
    model_state, params = steps.pop_params(variables)
    features = jax.eval_shape(
      lambda: encode({'backbone': params}, model_state, image, train=False)[0]
    )
    row = jnp.zeros((1, features.shape[-1]))
    params = {
      'backbone': params,
      **{x: y.init(rngs[x], row)['params'] for x, y in heads.items()},
    }
    sizes = [y.num_prototypes for y in heads.values()]
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      model_state=model_state,
      extra=EsvitState(
        teacher=params,
        view_centre=jnp.zeros(sizes[0]),
        region_centre=jnp.zeros(sizes[1] if has_regions else 0),
      ),
    )

  def update(state, batch, rng):
    memory, at = state.extra, state.step
    rng_crops, rng_model = jax.random.split(rng)
    large, small = crops(batch['image'], rng_crops)
    real = batch['mask'] > 0
    seen = steps.seen(
      memory.teacher,
      {**batch, 'image': large.reshape((len(large), -1, *large.shape[3:]))},
      rng_model,
      compute_dtype=compute_dtype,
    )
    images = seen.batch['image'].reshape((-1, *large.shape[2:]))
    pair = (len(large), 2)
    view, regions, _ = encode(
      seen.params, state.model_state, images, train=False
    )
    said = embed(seen.params, 'view', view) @ kernel(seen.params, 'view')
    said = said.reshape((*pair, -1))
    temperature = _at(teacher_temperature, at)
    added = {
      _LARGE: large,
      _SMALL: small,
      _VIEW: said,
      **teacher_monitors.of_step(
        said, view, memory.view_centre, temperature, real
      ),
    }
    region_centre = memory.region_centre
    if has_regions:
      embedded = embed(seen.params, 'region', regions)
      added |= {
        _REGION: embedded.reshape((*pair, *embedded.shape[1:])),
        _TOKENS: regions.reshape((*pair, *regions.shape[1:])),
      }
      # Logits are linear in embeddings, and so are their means.
      mean = added[_REGION].mean((1, 2)) @ kernel(seen.params, 'region')
      region_centre = self_distillation.moved_centre(
        region_centre, mean, batch['mask'], momentum=centre_momentum
      )
    added = jax.lax.stop_gradient(added)
    rows = {k: x for k, x in batch.items() if k != 'image'}
    for name in (_LARGE, _SMALL):
      added[name] = added[name].astype(compute_dtype)
    grad_fn = steps.WholeGradFn(
      'EsViT',
      functools.partial(
        loss_fn,
        teacher=jax.lax.stop_gradient(memory.teacher),
        centres=(memory.view_centre, memory.region_centre),
        temperature=temperature,
        frozen=at < frozen_steps,
      ),
      {**rows, **added},
      parallel.device_rng(rng_model),
      state.model_state,
      compute_dtype=jnp.dtype(compute_dtype),
    )
    params, opt_state, aux = steps.descend(
      tx, grad_fn, state.params, state.opt_state
    )
    return types.TrainState(
      step=at + 1,
      params=params,
      opt_state=opt_state,
      model_state=aux.model_state,
      extra=EsvitState(
        teacher=optax.incremental_update(
          params, memory.teacher, 1 - _at(momentum, at)
        ),
        view_centre=self_distillation.moved_centre(
          memory.view_centre,
          said.mean(1),
          batch['mask'],
          momentum=centre_momentum,
        ),
        region_centre=region_centre,
      ),
    ), aux.sums

  def predict(state, batch):
    (image,), _ = model_inputs.image(batch)
    view, _, _ = encode(
      state.extra.teacher, state.model_state, image, train=False
    )
    return {'features': view.astype(jnp.float32)}

  return types.Method(init, update, predict)


def divided(
  model: nn.Module, encoded: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(features of views [B, C], of regions [B, T, C]) of what `encode` gives."""
  if encoded.ndim == 4:
    encoded = encoded.reshape((len(encoded), -1, encoded.shape[-1]))
  elif getattr(model, 'pool', None) == 'token':
    return encoded[:, 0], encoded[:, 1:]
  return encoded.mean(1), encoded


def _at(value, step):
  return value(step) if callable(value) else value
