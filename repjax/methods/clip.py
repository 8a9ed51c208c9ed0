"""Device code: learning from images and what is written about them.

Radford et al., 'Learning Transferable Visual Models From Natural Language
Supervision', ICML 2021 (https://arxiv.org/abs/2103.00020), section 2.3: each
image finds its own text among those of the batch, and each text its image.
Zhai, Mustafa, Kolesnikov and Beyer, 'Sigmoid Loss for Language Image
Pre-Training', ICCV 2023 (https://arxiv.org/abs/2303.15343), ask of each pair by
itself whether it belongs together.

Rows are compared with those of all devices, as in `methods.contrastive`: no
microbatches, and no link of an optax chain that takes rows apart. Two rows of a
batch that say the same count as strangers to each other.
"""

import functools
import math
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from repjax import optim
from repjax import parallel
from repjax import types
from repjax.methods import contrastive
from repjax.methods import grouped
from repjax.methods import step as steps
from repjax.models import clip

_LOSSES = ('softmax', 'sigmoid')


def make(
  model: clip.Clip,
  tx: optax.GradientTransformation,
  *,
  loss: Literal['softmax', 'sigmoid'] = 'softmax',
  max_scale: float = 100.0,
  in_modal: float = 0.0,
  prompts: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None = None,
  **settings: Any,
) -> types.Method:
  """CLIP, or SigLIP.

  Args:
    model: Its towers are any networks. SigLIP's needs `initial_bias`.
    tx: Optax chain; links that take `grad_fn` get it.
    loss: 'softmax' is CLIP's, 'sigmoid' SigLIP's.
    max_scale: Largest factor of cosines, where the learned one stops, > 0.
    in_modal: Weight of CleanCLIP's loss, by which images find their own other
      view, and texts theirs; 0 has none. `transform` then adds the columns
      'image_view' and 'tokens_view' ('token_mask_view').
    prompts: (tokens [C, P, L], their masks) of P texts about each class.
      `predict` then gives 'logits' of images, and embeds all prompts once a
      batch: take `zero_shot_head` where they are many.
    **settings: compute_dtype, ema_decay, transform, finish; see `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C], 'tokens' [B, L] and,
    where texts are padded, 'token_mask' [B, L]. `predict` gives unit
    embeddings, 'image_embedding' and 'text_embedding' [B, F], of what the batch
    has. Sums: 'loss', 'scale', and 'accuracy', how often an image is nearer to
    its own text than to all others.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if a
      link of the chain looks at parts of the rows, or there is one row alone,
      in which a softmax, that of `in_modal`, too, tells nothing apart. (Of a
      pair by itself 'sigmoid' learns.)
  """
  types.check_choice('loss', loss, _LOSSES)
  types.check_range('(0, inf)', max_scale=max_scale)
  types.check_range('[0, inf)', in_modal=in_modal)
  if loss == 'sigmoid' and model.initial_bias is None:
    raise types.InputError(
      "loss='sigmoid' needs a learned bias: build Clip with initial_bias=-10"
    )
  grouped.check_whole(settings)
  settings.pop('microbatches', None)

  def embed(params, model_state, batch, rng):
    return model.apply(
      {'params': params, **model_state},
      batch['image'],
      batch['tokens'],
      train=True,
      mask=batch['mask'],
      token_mask=batch.get('token_mask'),
      rngs={'dropout': rng},
      mutable=list(model_state),
    )

  def loss_fn(params, model_state, batch, rng):
    pairs, updates = embed(params, model_state, batch, rng)
    image, text = contrastive.unit(pairs.image), contrastive.unit(pairs.text)
    if loss == 'sigmoid':
      each = sigmoid_loss(
        image, text, batch['mask'], scale=pairs.scale, bias=pairs.bias
      )
    else:
      each = softmax_loss(image, text, batch['mask'], scale=pairs.scale)
    if in_modal:
      views, updates = embed(
        params,
        {**model_state, **updates},
        steps.cast_inputs(
          _views(batch), settings.get('compute_dtype', 'float32')
        ),
        jax.random.fold_in(rng, 1),
      )
      each += in_modal * in_modal_loss(
        (image, text),
        (contrastive.unit(views.image), contrastive.unit(views.text)),
        batch['mask'],
        scale=pairs.scale,
      )
    return types.Losses(
      each,
      {**model_state, **updates},
      {
        'accuracy': found_own(image, text, batch['mask']),
        'scale': jnp.full(len(image), pairs.scale),
      },
    )

  step = steps.make(loss_fn, tx, whole='CLIP', **settings)

  def update(state, batch, rng):
    state, sums = step.update(state, batch, rng)  # Refuses single rows.
    in_softmax = loss == 'softmax' or in_modal > 0
    if in_softmax and len(parallel.all_gather(batch['mask'])) < 2:
      raise types.InputError(
        'A step has one row, and CLIP learns from what tells rows apart: raise '
        'config.batch_size.'
      )
    if settings.get('ema_decay'):  # It has seen the scale before its cut.
      average = cut(state.extra.params)
      state = state.replace(extra=state.extra._replace(params=average))
    return state.replace(params=cut(state.params)), sums

  def cut(params):
    scale = jnp.minimum(params['logit_scale'], math.log(max_scale))
    return {**params, 'logit_scale': scale}

  def init(rng, batch):
    variables = model.init(
      {'params': rng}, batch['image'], batch['tokens'], train=False
    )
    return step.init(variables)

  def predict(state, batch):
    variables, outputs = steps.variables(state), {}
    embed = functools.partial(model.apply, variables, train=False)
    if 'image' in batch:
      found = embed(
        batch['image'], mask=batch['mask'], method='image_embedding'
      )
      outputs['image_embedding'] = contrastive.unit(found)
    if 'tokens' in batch:
      found = embed(
        batch['tokens'], mask=batch.get('token_mask'), method='text_embedding'
      )
      outputs['text_embedding'] = contrastive.unit(found)
    if prompts is not None and 'image' in batch:
      head = zero_shot_head(model, variables, *prompts)
      scale = jnp.exp(variables['params']['logit_scale'])
      outputs['logits'] = scale * outputs['image_embedding'] @ head.T
    return outputs

  return types.Method(init, update, predict)


def weight_decay_mask(params: types.PyTree) -> types.PyTree:
  """Which parameters decay: 'all weights that are not gains or biases'.

  So Radford et al. have it (2021, https://arxiv.org/abs/2103.00020, section
  2.5); open_clip leaves out all vectors and the scale, and so does this.

      tx = optax.adamw(1e-3, weight_decay=0.2, mask=clip.weight_decay_mask)
  """
  return optim.weight_decay_mask(params, exempt=('bias',))


def softmax_loss(
  image: jax.Array, text: jax.Array, mask: jax.Array, *, scale: jax.Array
) -> jax.Array:
  """CLIP's loss (figure 3), over all devices.

  Args:
    image: Unit embeddings of this device's rows, [B, F].
    text: Those of their texts.
    mask: 1 for a real row, [B].
    scale: Cosines are multiplied by it, > 0.

  Returns:
    The mean of an image's and its text's cross-entropies, [B].
  """
  images, texts, real = parallel.all_gather((image, text, mask))
  own = _own(mask, real)
  find = functools.partial(
    contrastive.info_nce, positive=own, counted=real > 0, temperature=1 / scale
  )
  return (find(image, texts) + find(text, images)) / 2


def sigmoid_loss(
  image: jax.Array,
  text: jax.Array,
  mask: jax.Array,
  *,
  scale: jax.Array,
  bias: jax.Array,
) -> jax.Array:
  """SigLIP's loss (section 3.2), over all devices.

  Args:
    image: Unit embeddings of this device's rows, [B, F].
    text: Those of their texts.
    mask: 1 for a real row, [B].
    scale: t; cosines are multiplied by it.
    bias: b, which is added then.

  Returns:
    The sum over all texts of an image's losses, [B].
  """
  texts, real = parallel.all_gather((text, mask))
  logits = scale * jnp.matmul(
    image, texts.T, precision=jax.lax.Precision.HIGHEST
  )
  sign = jnp.where(_own(mask, real), 1.0, -1.0)
  each = -jax.nn.log_sigmoid(sign * (logits + bias))
  return jnp.where(real[None] > 0, each, 0).sum(-1)


def in_modal_loss(
  first: tuple[jax.Array, jax.Array],
  second: tuple[jax.Array, jax.Array],
  mask: jax.Array,
  *,
  scale: jax.Array,
) -> jax.Array:
  """What CleanCLIP adds: each side finds its own other view.

  Bansal et al., 'CleanCLIP: Mitigating Data Poisoning Attacks in Multimodal
  Contrastive Learning', ICCV 2023 (https://arxiv.org/abs/2303.03323), eq. 3. As
  in the authors' code first views look for second ones alone, with CLIP's own
  temperature.

  Args:
    first: Unit embeddings of images and of texts, [B, F] each.
    second: Those of their other views.
    mask: 1 for a real row, [B].
    scale: Cosines are multiplied by it, > 0.

  Returns:
    The mean over both sides, [B].
  """
  seconds, real = parallel.all_gather((second, mask))
  each = [
    contrastive.info_nce(
      one,
      other,
      positive=_own(mask, real),
      counted=real > 0,
      temperature=1 / scale,
    )
    for one, other in zip(first, seconds, strict=True)
  ]
  return (each[0] + each[1]) / 2


def found_own(image: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
  """Whether an image is nearest to its own text, among all devices' texts, [B].

  Arguments as in `softmax_loss`.
  """
  texts, real = parallel.all_gather((text, mask))
  cosines = jnp.where(real[None] > 0, image @ texts.T, -jnp.inf)
  return (cosines.argmax(-1) == parallel.places(len(mask))).astype(jnp.float32)


def zero_shot_head(
  model: clip.Clip,
  variables: types.PyTree,
  tokens: jax.typing.ArrayLike,
  token_mask: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  """A classifier made of texts: one unit row a class (section 3.1.4).

  The mean of the unit embeddings of a class's texts, of length 1 again.

  Args:
    model: CLIP.
    variables: Of the model.
    tokens: P texts about each of C classes, [C, P, L].
    token_mask: 0 for padding, [C, P, L].

  Returns:
    [C, F]: an image's class is that of the row with the largest product with
    its unit embedding.
  """
  tokens = jnp.asarray(tokens)
  if tokens.ndim != 3 or not tokens.size:
    raise types.InputError(
      f'prompts must be [classes, texts, length], got {tokens.shape}'
    )
  classes, texts, length = tokens.shape
  mask = None if token_mask is None else jnp.reshape(token_mask, (-1, length))
  found: Any = model.apply(
    variables,
    tokens.reshape(-1, length),
    train=False,
    mask=mask,
    method='text_embedding',
  )
  each = contrastive.unit(found).reshape(classes, texts, -1)
  return contrastive.unit(each.mean(1))


def _views(batch):
  """The batch with its second views in the place of the first ones."""
  missing = {'image_view', 'tokens_view'} - set(batch)
  if missing:
    raise types.InputError(
      f'in_modal compares two views, and the batch has no {sorted(missing)}: '
      'give a transform that makes them, or in_modal=0'
    )
  names = ('image', 'tokens', 'token_mask')
  return {
    **batch,
    **{x: batch[f'{x}_view'] for x in names if f'{x}_view' in batch},
  }


def _own(mask, real):
  """Which of all devices' rows is this device's row, bool [B, A]."""
  return parallel.places(len(mask))[:, None] == jnp.arange(len(real))[None]
