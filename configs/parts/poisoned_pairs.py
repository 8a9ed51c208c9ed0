"""Images with captions, of which an attacker has written some."""

import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np
import optax

from configs.parts import clip_towers
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.analysis import backdoor_scores
from repjax.attacks import contrastive_poisoning
from repjax.attacks import triggers
from repjax.data.images import views
from repjax.data.reading import source as sources
from repjax.data.text import captions
from repjax.data.text import tokens
from repjax.data.text import word_loss
from repjax.experiments import kept_tokens
from repjax.experiments import of_images
from repjax.methods import clip as clip_method

# The split of what is attacked: test images with the trigger, or one image.
ATTACKED = 'attacked'

KINDS = ('none', 'targeted', 'backdoor')


class Pairs(NamedTuple):
  """What a config says about its data, read.

  Attributes:
    clean: Training rows with captions, as they were before the attack.
    names: What classes are called.
    tokenizer: Learned from the captions.
  """

  clean: sources.Source
  names: tuple[str, ...]
  tokenizer: tokens.Tokenizer

  def about(self, label: int) -> list[str]:
    """All that is said of a class."""
    return captions.prompts([self.names[label]])[0]

  def encode(self, texts, length: int) -> dict[str, np.ndarray]:
    """Columns of texts."""
    return captions.encode(texts, self.tokenizer, length=length)

  def prompts(self, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, masks) of all that is said of each class, [C, P, length]."""
    said = captions.prompts(self.names)
    columns = self.encode([x for row in said for x in row], length)
    shape = (len(said), len(said[0]), length)
    ids, mask = (x.reshape(shape) for x in columns.values())
    return ids, mask


def read(config) -> Pairs:
  """The training rows with captions drawn by the seed."""
  train = of_images.load(config, config.data.train_split)
  train.check_images()
  if train.num_classes is None:
    raise types.InputError(
      f'{train.name} has no classes to write captions about: give a '
      '--config.data.name that has.'
    )
  names = captions.spoken(train.class_names, train.num_classes)
  texts = captions.draw(train.column('label'), names, seed=config.seed)
  learned = [*texts, *(x for row in captions.prompts(names) for x in row)]
  tokenizer = kept_tokens.learn(config, lambda: learned)
  made = Pairs(train, names, tokenizer)
  columns = made.encode(texts, config.data.length)
  return made._replace(clean=train.with_columns(**columns))


def trigger(config) -> triggers.Trigger:
  """The patch of a backdoor."""
  of = config.poison
  place: Any = of.place if isinstance(of.place, str) else tuple(of.place)
  # What --config.poison.place=anywhere makes of a field that is a tuple.
  place = 'anywhere' if place == ('anywhere',) else place
  return triggers.Trigger(triggers.checkered(of.size), place, seed=config.seed)


def poison(config, pairs: Pairs) -> contrastive_poisoning.Poison:
  """What the attacker changes.

  Raises:
    InputError: The wanted class or the target is none of the set's.
  """
  of, length = config.poison, config.data.length
  types.check_choice('config.poison.kind', of.kind, KINDS)
  if of.kind == 'none' and of.count:
    raise types.InputError(
      f'config.poison.count={of.count} counts for nothing with '
      'config.poison.kind=none: set it to backdoor or targeted.'
    )
  most = len(captions.TEMPLATES)
  types.check_range(f'[1, {most}]', **{'config.poison.captions': of.captions})
  if not 0 <= of.wanted < len(pairs.names):
    raise types.InputError(
      f'config.poison.wanted={of.wanted} must be a class below '
      f'{len(pairs.names)}'
    )
  said = pairs.encode(pairs.about(of.wanted)[: of.captions], length)
  if of.kind == 'targeted':
    return contrastive_poisoning.targeted(
      target(config)['image'][0], said, count=of.count
    )
  others = np.flatnonzero(pairs.clean.column('label') != of.wanted)
  return contrastive_poisoning.backdoor(
    pairs.clean,
    said,
    trigger(config),
    count=of.count if of.kind == 'backdoor' else 0,
    seed=config.seed,
    eligible=others,
  )


def target(config) -> dict[str, np.ndarray]:
  """The image that is to be taken for the wanted class: a row of the test."""
  test = of_images.load(config, config.data.test_split)
  row = config.poison.target
  if not 0 <= row < len(test):
    raise types.InputError(
      f'config.poison.target={row} must be one of the {len(test)} test rows'
    )
  found = test.read(np.array([row]))
  if found['label'][0] == config.poison.wanted:
    raise types.InputError(
      f'config.poison.target={row} is of the class config.poison.wanted='
      f'{config.poison.wanted} already: take another row'
    )
  return found


def split_of(config, split: str) -> sources.Source:
  """A split, or what is attacked, whose column 'wanted' is the class."""
  if split != ATTACKED:
    return of_images.load(config, split)
  if config.poison.kind == 'targeted':
    rows = target(config)
    num_classes = of_images.load(config, config.data.test_split).num_classes
    made = sources.from_arrays(
      ATTACKED,
      {'image': rows['image'], 'label': rows['label']},
      num_classes=num_classes,
    )
  else:
    test = of_images.load(config, config.data.test_split)
    made = contrastive_poisoning.triggered(test, trigger(config))
  wanted = np.full(len(made), config.poison.wanted)
  made = dataclasses.replace(made, name=ATTACKED, split=ATTACKED)
  return made.with_columns(wanted=wanted)


def method(
  config,
  pairs: Pairs,
  steps: int,
  optimizer: types.Optimizer = optax.adamw,
) -> types.Method:
  """CLIP, or CleanCLIP where clip.in_modal is above 0."""
  tx = config.tx
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=0.0
  )
  settings = dict(config.step)
  if config.clip.in_modal:
    settings['transform'] = _second_views(config)
  return clip_method.make(
    clip_towers.network(config, pairs.tokenizer),
    optimizer(rate, weight_decay=tx.weight_decay),
    loss=config.clip.loss,
    max_scale=config.clip.max_scale,
    in_modal=config.clip.in_modal,
    prompts=pairs.prompts(config.data.length),
    **settings,
  )


def _second_views(config):
  """Adds another view of each image, and a text that has lost some tokens."""
  of = config.views
  types.check_range('[0, 1)', **{'config.views.word_loss': of.word_loss})
  view = views.random_views(
    area=of.area,
    flip=of.flip,
    brightness=of.jitter,
    contrast=of.jitter,
    saturation=of.jitter,
  )

  def add(batch, rng):
    rngs = parallel.row_rngs(rng, 2 * len(batch['mask']))
    of_images, of_texts = rngs[::2], rngs[1::2]
    lost, left = word_loss.lose(
      batch['tokens'], batch['token_mask'], of_texts, rate=of.word_loss
    )
    return {
      **batch,
      'image_view': view(batch['image'], of_images),
      'tokens_view': lost,
      'token_mask_view': left,
    }

  return add


def measure(outputs, columns) -> dict[str, float]:
  """Zero-shot accuracy; of what is attacked how often the attacker has it."""
  if 'wanted' not in columns:
    return of_images.measure(outputs, columns)
  found = backdoor_scores.success(
    outputs['logits'].argmax(-1),
    columns['label'],
    wanted=int(columns['wanted'][0]),
  )
  return {'success': float(found)}
