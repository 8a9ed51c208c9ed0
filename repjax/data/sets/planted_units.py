"""Host side: units that look for what is known, and what people say of them.

A planted unit has a concept, some of the attributes of things (`scenes.Things`)
with a value each; its exemplars show things that have them all. Annotators
write captions: each names an attribute of the concept or leaves it out, and
chooses its words. So the same is said in many ways, and the least telling
captions are the most frequent, as in MILANNOTATIONS (Hernandez et al., ICLR
2022, https://arxiv.org/abs/2201.11114, section 4).
"""

from collections.abc import Sequence
import itertools

import numpy as np

from repjax import types
from repjax.data.sets import scenes
from repjax.data.text import words

# What is said of things of which no kind is named.
NOUNS = ('things', 'objects', 'shapes')
_BEGINNINGS = ('', 'some', 'many')
_RELATIVE = ('that', 'are')


def concepts(things: scenes.Things, *, at_least: int) -> np.ndarray:
  """All concepts that enough images show, [C, A]; -1 is 'whatever'.

  Args:
    things: With A attributes.
    at_least: Images with a thing that has all attributes of the concept.

  Raises:
    InputError: There is none.
  """
  choices = [range(-1, len(names)) for names in things.names]
  found = np.array(list(itertools.product(*choices)), np.int32)[1:]
  kept = [
    len(np.unique(things.row[fits(things.attribute, x)])) >= at_least
    for x in found
  ]
  if not any(kept):
    raise types.InputError(
      f'no attribute is shown by {at_least} images: draw more of them'
    )
  return found[kept]


def fits(attribute: np.ndarray, concept: np.ndarray) -> np.ndarray:
  """Which things have all attributes of a concept, bool [M].

  Args:
    attribute: Of the things, [M, A].
    concept: [A].
  """
  return ((concept < 0) | (attribute == concept)).all(1)


def exemplars(
  things: scenes.Things,
  concept: np.ndarray,
  *,
  k: int,
  seed: int | Sequence[int],
) -> np.ndarray:
  """What planted units like best: things, no two of an image, [U, k].

  A unit's answer to a thing that fits is a random number of its own.

  Args:
    things: What is shown.
    concept: Of each unit, [U, A]; -1 everywhere is a unit that likes anything.
    k: Exemplars of a unit.
    seed: Of the answers.

  Raises:
    InputError: Fewer than k images show a concept.
  """
  rng = np.random.default_rng(seed)
  found = []
  for x in concept:
    order = rng.permutation(np.flatnonzero(fits(things.attribute, x)))
    _, first = np.unique(things.row[order], return_index=True)
    if len(first) < k:
      raise types.InputError(
        f'{len(first)} images show {said(x, things.names)!r}, and a unit has '
        f'{k} exemplars: draw more images'
      )
    found.append(order[np.sort(first)[:k]])
  return np.array(found)


def captions(
  concept: np.ndarray,
  names: Sequence[Sequence[str]],
  *,
  mention: float,
  seed: int | Sequence[int],
) -> list[str]:
  """One annotator's caption of each unit.

  Args:
    concept: [U, A].
    names: Of the values of each attribute; those of the last are nouns.
    mention: How likely an attribute of the concept is named, in (0, 1].
    seed: Of the draws.
  """
  types.check_range('(0, 1]', mention=mention)
  rng = np.random.default_rng(seed)
  texts = []
  for x in concept:
    told = np.where(rng.random(len(x)) < mention, x, -1)
    adjectives = [
      names[i][told[i]] for i in rng.permutation(len(x) - 1) if told[i] >= 0
    ]
    noun = (
      names[-1][told[-1]] if told[-1] >= 0 else NOUNS[rng.integers(len(NOUNS))]
    )
    begins = _BEGINNINGS[rng.integers(len(_BEGINNINGS))]
    if adjectives and rng.random() < 0.5:
      parts = [begins, noun, *_RELATIVE, ' and '.join(adjectives)]
    else:
      parts = [begins, *adjectives, noun]
    texts.append(' '.join(part for part in parts if part))
  return texts


def said(concept: np.ndarray, names: Sequence[Sequence[str]]) -> str:
  """The shortest caption that names all of a concept."""
  words = [x[i] for x, i in zip(names, concept, strict=True) if i >= 0]
  return ' '.join(words if concept[-1] >= 0 else [*words, NOUNS[0]])


def named(text: str, names: Sequence[Sequence[str]]) -> np.ndarray:
  """What a caption names, [A]: -1 nothing, -2 several values at once."""
  spoken = words.split(text)
  found = []
  for values in names:
    of_these = {values.index(x) for x in spoken if x in values}
    found.append(-1 if not of_these else min(of_these))
    if len(of_these) > 1:
      found[-1] = -2
  return np.array(found)


def is_grammatical(text: str, names: Sequence[Sequence[str]]) -> bool:
  """Whether an annotator could have written it, of whatever unit."""
  spoken = words.split(text)
  if spoken and spoken[0] in _BEGINNINGS:
    spoken = spoken[1:]
  nouns = {*names[-1], *NOUNS}
  kind = [
    next((i for i, x in enumerate(names[:-1]) if word in x), None)
    for word in spoken
  ]
  at = [i for i, word in enumerate(spoken) if word in nouns]
  if len(at) != 1:
    return False
  before, after = kind[: at[0]], spoken[at[0] + 1 :]
  if not after:
    return None not in before and len(set(before)) == len(before)
  if before or tuple(after[:2]) != _RELATIVE or len(after) % 2 == 0:
    return False
  told = kind[at[0] + 3 :: 2]
  return (
    None not in told
    and len(set(told)) == len(told)
    and all(x == 'and' for x in after[3::2])
  )
