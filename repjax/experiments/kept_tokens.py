"""Host side: the subwords that a run has learned, kept for its evaluations.

Files of texts change: learned from those of today, the same ids would be other
subwords than the ones that a run was trained on. So a work directory has a
`tokenizer.json`, by which the run is evaluated and predicts.
"""

from collections.abc import Callable
from collections.abc import Iterable
import pathlib
from typing import Any

import jax

from repjax import types
from repjax.data.text import tokens

FILE = 'tokenizer.json'


def is_kept(config: Any) -> bool:
  """Whether a config names the subwords of a run."""
  return 'tokenizer' in config.run and bool(config.run.tokenizer)


def learn(
  config: Any, texts: Callable[[], Iterable[str | bytes]]
) -> tokens.Subwords:
  """Subwords of training texts, or those that a run has kept.

  Args:
    config: With data.vocab_size, and perhaps with run.tokenizer: the file of a
      run, '' to learn them.
    texts: Gives the training texts.
  """
  if is_kept(config):
    return tokens.Subwords.load(config.run.tokenizer)
  return tokens.Subwords.train(texts(), vocab_size=config.data.vocab_size)


def companion(tokenizer: Any) -> types.Companion:
  """Writes `tokenizer.json` when a run begins.

  A run that goes on refuses other subwords than those that it began with.

  Args:
    tokenizer: Of the run; one that is no `tokens.Subwords` is not kept.
  """
  if not isinstance(tokenizer, tokens.Subwords):
    return types.Companion()

  def begin(workdir: pathlib.Path | None, step: int):
    if workdir is None:
      return
    path = workdir / FILE
    if step and path.exists():
      if tokens.Subwords.load(str(path)) != tokenizer:
        raise types.InputError(
          f'--workdir={workdir} was begun with other subwords ({FILE}): the '
          'texts that they are learned from have changed. Give the texts as '
          'they were, or another --workdir.'
        )
      return
    if jax.process_index() == 0:
      tokenizer.save(str(path))

  return types.Companion(begin=begin)
