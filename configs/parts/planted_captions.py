"""Planted units with captions, as an encoder sees them.

Hernandez et al., ICLR 2022. https://arxiv.org/abs/2201.11114
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from configs.parts import encoders
from repjax import types
from repjax.analysis import masked_features
from repjax.data.sets import planted_units
from repjax.data.sets import scenes
from repjax.data.sets import seen_things
from repjax.data.text import captions as texts
from repjax.data.text import words
from repjax.experiments import of_images

_SETS = ('scenes', 'cifar10')
_FUNCTION_WORDS = 'some many that are and'


class Captioned(NamedTuple):
  """Units with captions.

  Attributes:
    train: 'features' [N, K, D] and 'tokens' [N, T], a row a caption.
    heldout: The same of units that nothing is learned from, with their
      'concept' [N, A] where units are planted.
    tokenizer: Of the captions.
    names: Of the attributes' values; () where units are not planted.
  """

  train: dict[str, np.ndarray]
  heldout: dict[str, np.ndarray]
  tokenizer: words.Words
  names: tuple[tuple[str, ...], ...]


def check(config) -> None:
  """Raises InputError where a config plants no units."""
  if config.data.name not in _SETS:
    raise types.InputError(
      f'Units are planted in {" or ".join(_SETS)}, not in '
      f'config.data.name={config.data.name}: take --preset=small or gpu.'
    )


def things(config, part: str, seed: int) -> scenes.Things:
  """What planted units look for: in the 'train' or the 'heldout' images."""
  salt = [seed, 0 if part == 'train' else 1]
  if config.data.name == 'scenes':
    count = config.planted[f'{part}_images']
    return scenes.draw(count, seed=[*salt, count], noise=config.planted.noise)
  split = config.data[f'{part}_split']
  return seen_things.of_source(of_images.load(config, split), seed=salt)


def features(
  config, seen_by: encoders.Encoder, shown: scenes.Things, grow: int = 0
) -> np.ndarray:
  """What the encoder sees in each thing, [M, D].

  Args:
    config: Of the recipe.
    seen_by: The encoder.
    shown: M things.
    grow: Pixels by which masks are wider than the things.
  """
  mask = shown.mask
  for _ in range(grow):
    mask = _wider(mask)
  return masked_features.of_images(
    seen_by.apply_fn,
    seen_by.variables,
    encoders.standardised(config, shown.image)[shown.row],
    mask,
    config.encoder.layers,
    batch_size=config.encoder.batch_size,
  )


def _wider(mask):
  rows = np.pad(mask, ((0, 0), (1, 1), (0, 0)))
  mask = rows[:, 1:-1] | rows[:, :-2] | rows[:, 2:]
  columns = np.pad(mask, ((0, 0), (0, 0), (1, 1)))
  return columns[:, :, 1:-1] | columns[:, :, :-2] | columns[:, :, 2:]


def draw(config, seen_by: encoders.Encoder, seed: int) -> Captioned:
  """Captioned planted units; some concepts of several attributes are held out.

  Args:
    config: Of the recipe.
    seen_by: The encoder.
    seed: Of the images, the units, what is held out, and the captions.
  """
  chosen, k = config.planted, config.units.k
  shown = [things(config, part, seed) for part in ('train', 'heldout')]
  known, other = (
    {tuple(x) for x in planted_units.concepts(y, at_least=k)} for y in shown
  )
  concept = np.array(sorted(known & other), np.int32)
  rng = np.random.default_rng([seed, 2])
  several = rng.permutation(np.flatnonzero((concept >= 0).sum(1) > 1))
  out = several[: round(chosen.heldout * len(several))]
  kept = np.setdiff1d(np.arange(len(concept)), out)
  tokenizer = vocabulary(shown[0].names)
  made = []
  for part, which, count, grows in (
    (0, kept, chosen.units, tuple(chosen.grow)),
    (1, out, chosen.heldout_units, (0,)),
  ):
    of_unit = np.repeat(concept[which], count, axis=0)
    liked = planted_units.exemplars(
      shown[part], of_unit, k=k, seed=[seed, 3, part]
    )
    # Real units are vague about where a thing ends; each one is in its own way.
    seen = np.stack([features(config, seen_by, shown[part], x) for x in grows])
    way = np.random.default_rng([seed, 4]).integers(0, len(grows), len(liked))
    columns = dict(features=seen[way[:, None], liked], concept=of_unit)
    said = [
      planted_units.captions(
        of_unit,
        shown[part].names,
        mention=chosen.mention,
        seed=[seed, 5, part, i],
      )
      for i in range(chosen.annotators)
    ]
    made.append(_rows(config, columns, said, tokenizer))
  made[0].pop('concept')
  return Captioned(*made, tokenizer, tuple(map(tuple, shown[0].names)))


def fresh(
  config, seen_by: encoders.Encoder, units: Captioned, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """More units, of the held-out images, to describe.

  Args:
    config: Of the recipe.
    seen_by: The encoder.
    units: What was learned from; `seed` has made them.
    seed: Of the images.

  Returns:
    (features of units whose concepts have captions, their concepts, features
    of units that like nothing in particular).
  """
  shown, k = things(config, 'heldout', seed), config.units.k
  seen = features(config, seen_by, shown)
  out = {tuple(x) for x in units.heldout['concept']}
  known = planted_units.concepts(shown, at_least=k)
  concept = np.array([x for x in known if tuple(x) not in out])
  liked = planted_units.exemplars(shown, concept, k=k, seed=[seed, 10])
  anything = np.full((200, concept.shape[1]), -1)
  random = planted_units.exemplars(shown, anything, k=k, seed=[seed, 11])
  return seen[liked], concept, seen[random]


def vocabulary(names: Sequence[Sequence[str]]) -> words.Words:
  """All words that captions of planted units may have."""
  return words.Words.of(
    [*(x for y in names for x in y), *planted_units.NOUNS, _FUNCTION_WORDS]
  )


def _rows(config, columns, said, tokenizer):
  """One row a caption: columns of units, and `said` by each annotator."""
  encoded = texts.encode(
    [x for captions in said for x in captions],
    tokenizer,
    length=config.units.length,
  )
  repeated = {
    name: np.concatenate([x] * len(said)) for name, x in columns.items()
  }
  return {**repeated, 'tokens': encoded['tokens']}
