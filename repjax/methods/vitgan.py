"""ViTGAN: two networks that train against each other, in one update.

Lee, Chang, Jiang, Zhang, Tu and Liu, 'ViTGAN: Training GANs with Vision
Transformers', ICLR 2022 (https://arxiv.org/abs/2107.04589). Networks of any
kind: `models.vit_generator`, `vit_discriminator`, `conv_gan`. An update:

  1. the discriminator learns real rows from those that the generator makes,
     both seen through random views; with bCR its scores of a row and of a view
     of it are drawn together, with R1 its slope at real rows is held down.
  2. the generator learns to be taken for real by the discriminator of now,
     with new latents.
  3. the average of the generator, which samples come from, follows it.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import gan_losses
from repjax.methods import step as steps
from repjax.types import InputError
from repjax.types import check_choice
from repjax.types import check_range

# (images [B, ...], one key a row [B]) -> their views [B, ...].
Augment = Callable[[jax.Array, jax.Array], jax.Array]

# Columns that `update` adds to a batch, a value a row.
_LATENT, _FAKE = 'gan_latent', 'gan_fake'
_VIEW_REAL, _VIEW_FAKE = 'gan_view_of_real', 'gan_view_of_fake'


class GanState(NamedTuple):
  """What is kept beside the two networks.

  Attributes:
    params: Exponential moving average of the generator's parameters; `start.
      from_run(workdir, which='averaged')` reads it from a run.
  """

  params: types.PyTree


class Optimizers(NamedTuple):
  """One optax chain a network; `opt_state` is this tuple of their states."""

  generator: Any
  discriminator: Any


def make(
  generator: nn.Module,
  discriminator: nn.Module,
  tx: Optimizers,
  *,
  loss: gan_losses.Kind = 'non_saturating',
  augment: Augment | None = None,
  bcr_real: float = 0.0,
  bcr_fake: float = 0.0,
  r1: float = 0.0,
  ema_decay: float = 0.999,
  microbatches: int = 1,
  compute_dtype: str = 'float32',
) -> types.Method:
  """Alternating updates of a generator and a discriminator.

  Balanced consistency (Zhao et al., 'Improved Consistency Regularization for
  GANs', AAAI 2021, https://arxiv.org/abs/2002.04724) compares the scores of a
  row and of its view. It doubles the rows that the discriminator sees.

  Args:
    generator: Called as `apply(variables, latent, train=...)` -> images; with
      a field `latent_dim`, and 'params' as its only collection.
    discriminator: Called as `apply(variables, image, train=...)` -> logits [B].
      Rows must not see each other.
    tx: One optax chain each.
    loss: Kind of the losses.
    augment: Views of all that the discriminator sees, such as
      `functools.partial(diff_augment.augment, kinds=(...))`; None for images
      as they are.
    bcr_real: Weight of (D(x) - D(T(x)))^2 of real rows, >= 0; the paper has 10.
    bcr_fake: That of generated rows.
    r1: gamma >= 0 of R1, gamma / 2 |dD(T(x))/dx|^2 of real rows. The authors'
      code adds it to the loss of every step.
    ema_decay: Of the generator's average, in [0, 1). After t updates it is
      (1 + t) / (10 + t) where that is less.
    microbatches: Parts in which each device goes through its rows.
    compute_dtype: 'float32' or 'bfloat16', of both networks.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C] in [-1, 1]. `params`
    has 'generator' and 'discriminator'. `predict` gives 'score' [B], the
    discriminator's logit of a row, and 'sample' [B, H, W, C], one image of the
    averaged generator for each row; its latent belongs to the row's 'index',
    or to its place where there is none. Sums: 'loss', the discriminator's;
    'generator_loss'; 'real' and 'fake', mean logits; 'consistency' and 'r1'
    (where they count, without their weights); 'discriminator_gradient' and
    'generator_gradient', norms whose spikes tell of an unstable training.

  Raises:
    InputError: If a setting is out of range, or, when traced, the generator's
      images are unlike those of the batch.
  """
  check_choice('loss', loss, get_args(gan_losses.Kind))
  check_choice('compute_dtype', compute_dtype, ('float32', 'bfloat16'))
  check_range('[0, inf)', bcr_real=bcr_real, bcr_fake=bcr_fake, r1=r1)
  check_range('[0, 1)', ema_decay=ema_decay)
  check_range('[1, inf)', latent_dim=generator.latent_dim)
  consistent = bcr_real > 0 or bcr_fake > 0
  if consistent and augment is None:
    raise InputError(
      'bcr_real and bcr_fake compare images with their views: give augment, or '
      'set both to 0'
    )
  view = augment or (lambda image, rngs: image)
  dtype = jnp.dtype(compute_dtype)

  def judge(params, model_state, image, *, train=False):
    """(logits [B], collections)."""
    scores, updates = discriminator.apply(
      {'params': params, **model_state},
      image.astype(dtype),
      train=train,
      mutable=list(model_state) if train else [],
    )
    return scores, {**model_state, **updates}

  def discriminator_loss(params, model_state, batch, rng):
    del rng  # Draws are a row's, so that no number of devices changes them.
    real, fake = batch['image'], batch[_FAKE]
    keys = (
      jax.random.wrap_key_data(batch[x]) for x in (_VIEW_REAL, _VIEW_FAKE)
    )
    key_real, key_fake = keys
    seen = [view(real, key_real), view(fake, key_fake)]
    if consistent:
      seen += [real, fake]
    # One pass over all, so that norms are estimated once a step.
    scores, model_state = judge(
      params, model_state, jnp.concatenate(seen), train=True
    )
    scores = jnp.split(scores, len(seen))
    total = gan_losses.of_discriminator(*scores[:2], kind=loss)
    metrics = {'real': scores[0], 'fake': scores[1]}
    if consistent:
      pairs = zip(scores[:2], scores[2:], (bcr_real, bcr_fake), strict=True)
      gaps = [(weight, jnp.square(x - y)) for x, y, weight in pairs]
      total += sum(weight * gap for weight, gap in gaps)
      metrics['consistency'] = sum(gap for _, gap in gaps)
    if r1:
      metrics['r1'] = gan_losses.r1(
        lambda image: judge(params, model_state, view(image, key_real))[0], real
      )
      total += r1 * metrics['r1']
    return types.Losses(total, model_state, {'loss': total, **metrics})

  def generator_loss(params, model_state, batch, rng, *, opponent):
    del rng
    made = generator.apply(
      {'params': params}, batch[_LATENT].astype(dtype), train=True
    )
    keys = jax.random.wrap_key_data(batch[_VIEW_FAKE])
    scores, _ = judge(*opponent, view(made, keys))
    return types.Losses(
      gan_losses.of_generator(scores, kind=loss), model_state, {}
    )

  def init(rng, batch):
    rng_generator, rng_discriminator = jax.random.split(rng)
    image = batch['image'][:1]
    latent = jnp.zeros((1, generator.latent_dim))
    variables = generator.init(rng_generator, latent, train=False)
    shape = jax.eval_shape(
      lambda x: generator.apply(x, latent, train=False), variables
    ).shape
    if shape != image.shape:
      raise InputError(
        f'the generator makes images {shape[1:]}, but those that the '
        f'discriminator is to tell them from are {image.shape[1:]}: set '
        'image_size and channels of the generator to theirs'
      )
    if set(variables) != {'params'}:
      raise InputError(
        f'{type(generator).__name__} has collections {sorted(variables)}: only '
        "a generator without state is averaged (spectral norm='none')"
      )
    model_state, judging = steps.pop_params(
      discriminator.init(rng_discriminator, image, train=False)
    )
    params = {'generator': variables['params'], 'discriminator': judging}
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=Optimizers(
        *(one.init(params[name]) for name, one in tx._asdict().items())
      ),
      model_state=model_state,
      extra=GanState(jax.tree.map(jnp.copy, variables['params'])),
    )

  def update(state, batch, rng):
    sums = {}

    def descend(name, loss_fn, model_state, rng, **more):
      """(parameters, opt_state, collections) of a network, one update later."""
      rng_latent, rng_real, rng_fake = jax.random.split(rng, 3)
      num_rows = batch['mask'].shape[0]
      columns = dict(batch)
      columns[_LATENT] = latents(
        parallel.row_rngs(rng_latent, num_rows), generator.latent_dim
      )
      for column, key in ((_VIEW_REAL, rng_real), (_VIEW_FAKE, rng_fake)):
        columns[column] = jax.random.key_data(parallel.row_rngs(key, num_rows))
      if name == 'discriminator':
        columns[_FAKE] = generator.apply(
          {'params': trees.cast(state.params['generator'], dtype)},
          columns[_LATENT].astype(dtype),
          train=True,
        )
      grad_fn = gradients.GradFn(
        lambda *args: loss_fn(*args, **more),
        columns,
        rng,
        model_state,
        microbatches=microbatches,
        compute_dtype=dtype,
      )
      old = state.params[name]
      # Known to the gradient function afterwards: it is computed once.
      slope = optax.tree.norm(grad_fn(old)[0])
      params, opt_state, aux = steps.descend(
        tx._asdict()[name], grad_fn, old, state.opt_state._asdict()[name]
      )
      sums[f'{name}_gradient'] = slope, jnp.ones(())
      sums.update(aux.sums if name == 'discriminator' else {})
      sums[f'{name}_loss'] = aux.sums['loss']
      return params, opt_state, aux.model_state

    rng_discriminator, rng_generator = jax.random.split(rng)
    judging, judge_state, model_state = descend(
      'discriminator', discriminator_loss, state.model_state, rng_discriminator
    )
    opponent = trees.cast(judging, dtype), model_state
    making, make_state, _ = descend(
      'generator', generator_loss, {}, rng_generator, opponent=opponent
    )
    del sums['discriminator_loss']  # It is the loss.
    part = 1 - jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return types.TrainState(
      step=state.step + 1,
      params={'generator': making, 'discriminator': judging},
      opt_state=Optimizers(make_state, judge_state),
      model_state=model_state,
      extra=GanState(
        optax.incremental_update(making, state.extra.params, part)
      ),
    ), sums

  def predict(state, batch):
    num_rows = batch['mask'].shape[0]
    index = batch['index'] if 'index' in batch else parallel.places(num_rows)
    keys = jax.vmap(lambda x: jax.random.fold_in(jax.random.key(0), x))(index)
    scores, _ = judge(
      trees.cast(state.params['discriminator'], dtype),
      state.model_state,
      batch['image'],
    )
    latent = latents(keys, generator.latent_dim)
    return {
      'score': scores,
      'sample': of_latents(generator, state.extra.params, latent),
    }

  return types.Method(init, update, predict)


def latents(rngs: jax.Array, dim: int) -> jax.Array:
  """Standard normal latents [B, dim] of one key a row [B]."""
  return jax.vmap(lambda key: jax.random.normal(key, (dim,)))(rngs)


def of_latents(
  generator: nn.Module, params: types.PyTree, latent: jax.Array
) -> jax.Array:
  """The images [B, H, W, C] that a generator makes of latents [B, Z]."""
  images: Any = generator.apply({'params': params}, latent, train=False)
  return images


def sample(
  generator: nn.Module, params: types.PyTree, rng: jax.Array, *, num: int
) -> jax.Array:
  """Images that a generator makes of latents that are drawn.

      variables = start.from_run('runs/vitgan', which='averaged')
      images = vitgan.sample(generator, variables['params'], rng, num=64)

  Args:
    generator: That was trained.
    params: Its parameters, `extra.params` of a state.
    rng: Key of the latents.
    num: N >= 1.

  Returns:
    [N, H, W, C], about in [-1, 1].
  """
  check_range('[1, inf)', num=num)
  return of_latents(
    generator, params, jax.random.normal(rng, (num, generator.latent_dim))
  )
