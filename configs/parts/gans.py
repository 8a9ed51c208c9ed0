"""Generators, discriminators, and who judges what they make.

Lee et al., 'ViTGAN', ICLR 2022. https://arxiv.org/abs/2107.04589
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.experiments import of_images
from repjax.experiments import of_samples
from repjax.methods import diff_augment
from repjax.methods import vitgan
from repjax.metrics import generation
from repjax.models import conv_gan
from repjax.models import mlp
from repjax.models import vit_discriminator
from repjax.models import vit_generator
from repjax.protocols import judged_samples
from repjax.protocols import side_by_side
from repjax.weights import inception_weights

# Seed of the latents that are drawn along a run, and judged; of these, how many
# at once.
_DRAWN, _AT_ONCE = 7, 500


def networks(config, shape) -> tuple[nn.Module, nn.Module]:
  """(generator, discriminator) of images [H, W, C] that are squares."""
  height, width, channels = shape
  if height != width:
    raise types.InputError(
      f'generators make squares, and images of {config.data.name} are {height} '
      f'x {width}: set config.augment.size'
    )
  latent_dim = config.generator.latent_dim

  def transformers():
    return (
      vit_generator.VitGenerator(
        height, channels, **config.model, **config.generator
      ),
      vit_discriminator.VitDiscriminator(
        **config.model, **config.discriminator
      ),
    )

  def convolutions():
    sizes = config.conv.channels
    return (
      conv_gan.ConvGenerator(height, channels, latent_dim, sizes),
      conv_gan.ConvDiscriminator(
        sizes[::-1], config.conv.hidden_dim, config.discriminator.norm
      ),
    )

  kinds = dict(vit=transformers, conv=convolutions)
  return presets.choose('network', config.network, kinds)()


def method(
  config, shape, optimizer: types.Optimizer = optax.adam, *, norms: int = 0
) -> types.Method:
  """Both networks and their optimizers.

  Args:
    config: Of the recipe.
    shape: [H, W, C] of images.
    optimizer: With the arguments of `optax.adam`.
    norms: How many of the discriminator's last gradient norms are kept, by a
      link in front of its optimizer; 0 for none, and no link.
  """
  generator, discriminator = networks(config, shape)
  kinds, probability = config.views.kinds, config.views.probability
  diff_augment.check(kinds, probability)
  types.check_range('[0, 1)', b1=config.tx.b1, b2=config.tx.b2)
  tx = vitgan.Optimizers(*(optimizer(**config.tx) for _ in range(2)))
  if norms:
    link = optim.gradient_norms(norms)
    tx = tx._replace(discriminator=optax.chain(link, tx.discriminator))
  views = None  # Images as they are, with which bCR has nothing to compare.
  if kinds and probability:
    views = functools.partial(
      diff_augment.augment, kinds=kinds, probability=probability
    )
  return vitgan.make(
    generator, discriminator, tx, augment=views, **config.gan, **config.step
  )


def judge(config, train, test) -> judged_samples.Judge:
  """A classifier of the set, trained on the spot.

  Args:
    config: Of the recipe, with the group `judge`.
    train: Rows as the networks see them, 'image' and 'label'.
    test: Rows that are not among them.
  """
  model = mlp.Mlp(int(train['label'].max()) + 1, features=config.judge.features)
  return judged_samples.train(model, train, test, steps=config.judge.steps)


def experiment(config, data, optimizer: types.Optimizer) -> types.Experiment:
  """One run, judged at each evaluation by a classifier that it trains."""
  types.check_range(
    '[1, inf)',
    **{'samples.num': config.samples.num, 'judge.steps': config.judge.steps},
  )
  types.check_range('[5, inf)', **{'samples.judged': config.samples.judged})
  for width in config.judge.features:
    types.check_range('[1, inf)', **{'judge.features': width})
  if data.train.num_classes is None:
    raise types.InputError(
      f'{data.train.name} has no classes, and samples are judged by a '
      'classifier of the set (the group judge): give one with labels.'
    )
  if config.run.inception:  # What does not fit is said before any compute.
    inception_weights.load(config.run.inception)
    if {*config.augment.mean, *config.augment.std} != {0.5}:
      raise types.InputError(
        'config.run.inception needs pixels in [-1, 1]: leave '
        'config.augment.mean and std at .5'
      )
  shape, decode = data.recipe.shape, data.recipe.decode_evaluate
  generator, _ = networks(config, shape)
  # The last state that was judged, and its quality. Another run of this
  # experiment may be at the same step.
  last: list[Any] = [None, {}]

  @functools.cache
  def judging():
    split = config.data.eval_splits[0]
    train, test = (
      side_by_side.rows(x, data.recipe.evaluate, decode=decode)
      for x in (data.train, of_images.load(config, split))
    )
    return judge(config, train, test)

  @functools.partial(jax.jit, static_argnames='num')
  def drawn(params, part, num):
    rng = jax.random.fold_in(jax.random.key(_DRAWN), part)
    return vitgan.sample(generator, params, rng, num=num)

  @functools.cache
  def published():
    rows = side_by_side.rows(data.train, data.recipe.evaluate, decode=decode)
    return judged_samples.inception(config.run.inception, rows['image'])

  def quality(state, name):
    if last[0] is not state:
      params = jax.device_get(state.extra.params)
      parts = range(-(-config.samples.judged // _AT_ONCE))
      images = [np.asarray(drawn(params, i, _AT_ONCE)) for i in parts]
      images = np.concatenate(images)[: config.samples.judged]
      found = judging().quality(images)._asdict()
      last[:] = [state, {f'feature_{k}': x for k, x in found.items()}]
      if config.run.inception:
        last[1] |= published().measure(images)
    return last[1][name]

  return of_samples.experiment(
    config,
    data,
    method(config, shape, optimizer),
    lambda state: drawn(state.extra.params, 0, config.samples.num),
    sources=lambda split: of_images.load(config, split),
    measures={
      name: functools.partial(quality, name=name)
      for name in (
        *(f'feature_{x}' for x in generation.Quality._fields),
        *(('fid', 'kid') if config.run.inception else ()),
      )
    },
  )
