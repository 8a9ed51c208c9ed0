"""Host side: a TFDS builder of the help texts that come with Python.

The standard library's `pydoc_data.topics`: chapters of the language reference
(Python Software Foundation License), about 0.47 MB of English prose with code.
Its text differs between versions of Python, so figures measured on it compare
only within one version.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import re
import sys

import tensorflow_datasets as tfds

_SHARED = 60  # Characters of a paragraph that is no coincidence.


class PythonTopics(tfds.core.GeneratorBasedBuilder):
  """Help texts of Python, one row a topic: name and text.

  The split is fixed, by blocks of topics. Some topics hold others word for
  word ('compound' holds 'for' and 'while'), so topics that share a paragraph
  form one block, which is not divided. Of the blocks in falling order of size,
  those with number 3 modulo 8 are test, those with 4 are validation, the others
  train; inside a split topics go by name.
  """

  # The text is that of the running Python, and so is the version.
  VERSION = tfds.core.Version(
    f'1.{sys.version_info.major}{sys.version_info.minor:02}.'
    f'{sys.version_info.micro}'
  )

  # See `digits.Digits`.
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(
        {'topic': tfds.features.Text(), 'text': tfds.features.Text()}
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    from pydoc_data import topics

    return {
      split: self._generate_examples(names, topics.topics)
      for split, names in split_blocks(blocks(topics.topics)).items()
    }

  def _generate_examples(self, names, texts):
    for name in names:
      yield name, {'topic': name, 'text': texts[name]}


def blocks(texts: Mapping[str, str]) -> list[list[str]]:
  """Names of texts that share a paragraph, directly or through others.

  Args:
    texts: Name -> text.

  Returns:
    Sorted names of each block; the block with the longest text first.
  """
  block_of = {name: {name} for name in texts}
  first: dict[str, str] = {}
  for name in sorted(texts):
    for paragraph in _paragraphs(texts[name]):
      owner = first.setdefault(paragraph, name)
      if block_of[owner] is not block_of[name]:
        block_of[owner] |= block_of[name]
        for member in block_of[name]:
          block_of[member] = block_of[owner]
  distinct = {id(block): sorted(block) for block in block_of.values()}
  return sorted(
    distinct.values(),
    key=lambda names: (-sum(len(texts[name]) for name in names), names),
  )


def split_blocks(names: Iterable[list[str]]) -> dict[str, list[str]]:
  """Split -> sorted names, from blocks in falling order of size."""
  splits: dict[str, list[str]] = {'train': [], 'validation': [], 'test': []}
  for number, block in enumerate(names):
    split = {3: 'test', 4: 'validation'}.get(number % 8, 'train')
    splits[split].extend(block)
  return {split: sorted(members) for split, members in splits.items()}


def _paragraphs(text):
  """Paragraphs long enough to tell a copy, with even spaces."""
  parts = (' '.join(x.split()) for x in re.split(r'\n\s*\n', text))
  return [x for x in parts if len(x) >= _SHARED]
