"""Host side: captions for sets of images that have labels alone.

A caption is a sentence about the class with a word that has nothing to do with
it, so that not all rows of a class say the same: what says the same counts as a
stranger to each other in a contrastive loss (`methods.clip`).
"""

from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.reading import source as sources
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

# '{}' is the class; '{word}', where it stands, a word that says nothing.
TEMPLATES = (
  'a {word} picture of the {}',
  'somebody drew a {word} {}',
  'this is the {word} {}',
  'here you see a {}, {word} and plain',
  'the {} on a {word} page',
  'one {word} {} by itself',
  'a {} as {word} as ever',
  'my {word} photo of a {}',
)
WORDS = (
  *('small', 'big', 'old', 'new', 'quiet', 'famous', 'cheap', 'lovely'),
  *('strange', 'usual', 'late', 'early', 'dusty', 'rare', 'soft', 'proud'),
)
DIGITS = (
  *('zero', 'one', 'two', 'three', 'four'),
  *('five', 'six', 'seven', 'eight', 'nine'),
)
_NUMERALS = tuple('0123456789')


def spoken(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
  """What classes are called in a text.

  Args:
    names: Of classes, as a set has them; None for numbers.
    num_classes: C.

  Returns:
    C names; where all are digits they are words, and '_' is a space.
  """
  names = tuple(names or map(str, range(num_classes)))
  if all(x in _NUMERALS for x in names):
    names = tuple(DIGITS[_NUMERALS.index(x)] for x in names)
  return tuple(x.replace('_', ' ') for x in names)


def check_templates(templates: Sequence[str]) -> None:
  """Raises InputError for templates that are none, or lack the class."""
  for template in templates:
    try:
      said = template.format('CLASS', word='WORD')
    except (KeyError, IndexError, ValueError) as error:
      raise types.InputError(
        f'a template of captions has the fields {{}} and {{word}}, and '
        f'{template!r} has others'
      ) from error
    if 'CLASS' not in said:
      raise types.InputError(
        f'a template of captions needs {{}} for the class: {template!r}'
      )
  if not templates:
    raise types.InputError('there are no templates of captions')


def draw(
  labels: np.ndarray,
  names: Sequence[str],
  *,
  seed: int,
  templates: Sequence[str] = TEMPLATES,
  words: Sequence[str] = WORDS,
) -> list[str]:
  """One caption a row, by (seed, row).

  Args:
    labels: [N], in [0, len(names)).
    names: What classes are called.
    seed: Of the draws of templates and words.
    templates: What is said of a class.
    words: What '{word}' may be.

  Raises:
    InputError: A template is none, or a label has no name.
  """
  check_templates(templates)
  labels = np.asarray(labels)
  if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
    raise types.InputError(
      f'labels reach from {labels.min()} to {labels.max()}, and there are '
      f'{len(names)} names of classes'
    )
  rng = np.random.default_rng([seed, 0x0CA9])
  said = rng.integers(0, len(templates), len(labels))
  word = rng.integers(0, max(len(words), 1), len(labels))
  return [
    templates[i].format(names[label], word=words[j] if words else '')
    for i, j, label in zip(said, word, labels, strict=True)
  ]


def prompts(
  names: Sequence[str],
  *,
  templates: Sequence[str] = TEMPLATES,
  words: Sequence[str] = WORDS,
) -> list[list[str]]:
  """All that is said of each class, with one word a template, in turn."""
  check_templates(templates)
  return [
    [
      template.format(name, word=words[i % len(words)] if words else '')
      for i, template in enumerate(templates)
    ]
    for name in names
  ]


def encode(
  texts: Sequence[str], tokenizer: tokenizing.Tokenizer, *, length: int
) -> dict[str, np.ndarray]:
  """Texts as columns of a batch: START, the text, END, and padding.

  Args:
    texts: N texts.
    tokenizer: What makes ids of them.
    length: Tokens of a row.

  Returns:
    'tokens' int32 [N, length] and 'token_mask' float32 [N, length].

  Raises:
    InputError: A text is longer.
  """
  rows = [
    [tokenizing.START, *tokenizer.encode(text), tokenizing.END]
    for text in texts
  ]
  ids, mask = running_text.pad(rows, length=length)
  return {'tokens': ids, 'token_mask': mask}


def captioned(
  source: sources.Source,
  names: Sequence[str],
  tokenizer: tokenizing.Tokenizer,
  *,
  length: int,
  seed: int,
) -> sources.Source:
  """A set of images with labels, and a caption of each row.

  Args:
    source: With the columns 'image' and 'label'.
    names: What its classes are called.
    tokenizer: What makes ids of captions.
    length: Tokens of a caption.
    seed: Of the draws.
  """
  texts = draw(source.column('label'), names, seed=seed)
  return source.with_columns(**encode(texts, tokenizer, length=length))
