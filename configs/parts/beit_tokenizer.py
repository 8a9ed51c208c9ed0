"""BEiT's tokenizer: the autoencoder whose tokens are predicted, its images.

`configs/beit.py` has the numbers, in the group `tokenizer`.
"""

import math

import numpy as np
import optax

from repjax import types
from repjax.data.images import transforms
from repjax.methods import dvae as tokenizing
from repjax.models import dvae


def beside(config, recipe: transforms.Recipe) -> transforms.Recipe:
  """The recipe with 'token_image', where the tokenizer sees other images."""
  return _then(config, recipe) if config.tokenizer.size else recipe


def alone(config, recipe: transforms.Recipe) -> transforms.Recipe:
  """The recipe for the tokenizer alone: its images stand in for the model's."""
  size = config.tokenizer.size
  if not size:
    return recipe

  def swap(columns, draws):
    del draws  # Nothing is random.
    return {**columns, 'image': columns['token_image']}

  return _then(config, recipe, transforms.Transform(0, swap))._replace(
    shape=(size, size, recipe.shape[-1])
  )


def _then(config, recipe, *rest):
  rest = (_token_images(config), *rest)
  return recipe._replace(
    train=transforms.compose(recipe.train, *rest),
    evaluate=transforms.compose(recipe.evaluate, *rest),
  )


def _token_images(config):
  """Adds what the tokenizer sees, made from what the model sees."""
  size = config.tokenizer.size
  resize = transforms.resize(size, size)
  mean, std = (
    np.asarray(x, np.float32) for x in (config.augment.mean, config.augment.std)
  )

  def apply(columns, draws):
    pixels = {'image': columns['image'] * std + mean}
    pixels = resize.apply(pixels, draws)['image']
    return {**columns, 'token_image': dvae.dalle_pixels(pixels)}

  return transforms.Transform(0, apply)


def encoder(config, shape) -> dvae.DalleEncoder | dvae.Encoder:
  """What gives tokens, for images of a shape [H, W, C]."""
  settings = config.tokenizer
  if settings.kind == 'dalle':
    return dvae.DalleEncoder(
      settings.vocab_size,
      hidden_dim=settings.hidden_dim,
      blocks_per_group=settings.num_blocks,
    )
  if settings.kind != 'small':
    raise types.InputError(
      f"config.tokenizer.kind is 'dalle' or 'small'; got {settings.kind!r}."
    )
  return dvae.Encoder(
    settings.vocab_size,
    hidden_dim=settings.hidden_dim,
    num_halvings=_num_halvings(config, shape),
    num_blocks=settings.num_blocks,
  )


def autoencoder(config, shape) -> dvae.Dvae:
  """The encoder with what makes images of its tokens."""
  return dvae.Dvae(
    encoder(config, shape),
    dvae.Decoder(
      shape[-1],
      hidden_dim=config.tokenizer.hidden_dim,
      num_halvings=_num_halvings(config, shape),
      num_blocks=config.tokenizer.num_blocks,
    ),
  )


def _num_halvings(config, shape):
  if config.tokenizer.kind == 'dalle':
    return 3
  return round(math.log2(max(shape[0] / config.patch_grid, 1)))


def method(
  config, shape, steps: int, tx: optax.GradientTransformation
) -> types.Method:
  """Trains the autoencoder for so many steps."""
  settings = config.tokenizer
  for temperature in settings.temperature:
    types.check_range(
      '(0, inf)', **{'config.tokenizer.temperature': temperature}
    )
  types.check_range(
    '[0, inf)', **{'config.tokenizer.kl_weight': settings.kl_weight}
  )
  first, last = settings.temperature
  return tokenizing.make(
    autoencoder(config, shape),
    tx,
    temperature=optax.cosine_decay_schedule(first, steps, last / first),
    kl_weight=settings.kl_weight,
    **{k: v for k, v in config.step.items() if k != 'label_smoothing'},
  )


def measure(outputs, columns) -> dict[str, float]:
  """Measures of what `method` predicts."""
  del columns  # The method knows the images.
  share = usage(outputs['ids'], outputs['ids'].max() + 1)[1]
  share = share[share > 0]
  return {
    'mse': float(outputs['mse'].mean()),
    'kl': float(outputs['kl'].mean()),
    'tokens': float(len(share)),
    'token_perplexity': float(np.exp(-(share * np.log(share)).sum())),
  }


def usage(ids: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """(ranks, shares) of tokens, the most frequent one first."""
  counts = np.bincount(ids.ravel(), minlength=vocab_size)
  return np.arange(len(counts)), np.sort(counts)[::-1] / ids.size
