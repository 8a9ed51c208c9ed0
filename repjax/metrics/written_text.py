"""Measures of text against references, by the libraries. Host side.

BLEU is sacrebleu's and ROUGE is rouge-score's (extra `text`), F1 is
scikit-learn's: their numbers are those that papers can be compared with.
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import re
from typing import Any

from absl import logging
import numpy as np

from repjax import types


def classification(
  predicted: np.ndarray, labels: np.ndarray, *, num_classes: int
) -> dict[str, float]:
  """Accuracy and F1.

  Args:
    predicted: Classes, [N].
    labels: [N].
    num_classes: With two, 'f1' is that of class 1, as in GLUE; with more, the
      mean over all classes, absent ones included with 0.

  Returns:
    'accuracy' and 'f1', in [0, 1].
  """
  from sklearn import metrics as sklearn_metrics

  average = 'binary' if num_classes == 2 else 'macro'
  f1 = sklearn_metrics.f1_score(
    labels,
    predicted,
    labels=None if num_classes == 2 else np.arange(num_classes),
    average=average,
    zero_division=0,
  )
  accuracy = sklearn_metrics.accuracy_score(labels, predicted)
  return {'accuracy': float(accuracy), 'f1': float(f1)}


def bleu(
  written: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  tokenize: str = '13a',
) -> float:
  """BLEU of a corpus (Papineni et al., 2002; Post, 2018), in [0, 100].

  https://aclanthology.org/P02-1040, https://arxiv.org/abs/1804.08771

  Args:
    written: One text a row.
    references: One text or more a row.
    tokenize: Tokenizer of sacrebleu: '13a', or 'none' for words with spaces
      between.

  Raises:
    InputError: There is no text, or the library is missing.
  """
  try:
    import sacrebleu
  except ImportError as error:
    raise _missing('sacrebleu') from error
  _check(written, references)
  most = max(len(x) for x in references)
  # One stream a reference; None where a row has no more.
  streams: list[list[Any]] = [
    [x[i] if i < len(x) else None for x in references] for i in range(most)
  ]
  # Words of one's own are not tokenized by mistake: no warning about it.
  score = sacrebleu.corpus_bleu(
    list(written), streams, tokenize=tokenize, force=tokenize == 'none'
  )
  return float(score.score)


def _is_foreign(text):
  return bool(text.strip()) and not re.search('[a-z0-9]', text.lower())


def rouge(
  written: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
  """ROUGE-1, -2 and -L (Lin, 2004), with stems: F measures in [0, 100].

  Of words of a-z and 0-9 alone, as the library has it.

  https://aclanthology.org/W04-1013

  Args:
    written: One text a row.
    references: One text or more a row, of which the best counts.

  Returns:
    'rouge1', 'rouge2' and 'rougeL', means over rows.

  Raises:
    InputError: There is no text, or the library is missing.
  """
  try:
    from rouge_score import rouge_scorer
  except ImportError as error:
    raise _missing('rouge-score') from error
  _check(written, references)
  foreign = [x for texts in references for x in texts if _is_foreign(x)]
  if foreign:
    logging.warning(
      'ROUGE counts words of a-z and 0-9 alone: %d reference(s) have none, '
      'such as %r, and score 0',
      len(foreign),
      foreign[0][:40],
    )
  names = ['rouge1', 'rouge2', 'rougeL']
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
  rows = [
    scorer.score_multi(list(texts), text)
    for text, texts in zip(written, references, strict=True)
  ]
  return {
    name: 100 * float(np.mean([row[name].fmeasure for row in rows]))
    for name in names
  }


def texts(
  outputs: Mapping[str, np.ndarray],
  *,
  decode: Callable[[Sequence[int]], str],
  end_id: int,
) -> tuple[list[str], list[list[str]]]:
  """What a `finetuning.writer` predicts, as (written, references).

  Rows with one prompt are one text with several references.

  Args:
    outputs: 'written' [N, W], 'prompt' [N, S] and 'target' [N, T], ids; -1
      where there is none.
    decode: Ids -> text.
    end_id: Ends a text.
  """
  read = functools.partial(text_of, decode=decode, end_id=end_id)
  return by_prompt(
    [row.tobytes() for row in outputs['prompt']],
    [read(row) for row in outputs['written']],
    [read(row) for row in outputs['target']],
  )


def text_of(
  row: np.ndarray, *, decode: Callable[[Sequence[int]], str], end_id: int
) -> str:
  """The text of ids [N] up to the end; ids below 0 count for nothing."""
  ids = [int(x) for x in row if x >= 0]
  return decode(ids[: ids.index(end_id)] if end_id in ids else ids)


def by_prompt(
  prompts: Sequence[Hashable], written: Sequence[str], targets: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
  """One row a prompt with all of its targets, as several references.

  >>> by_prompt(['a', 'b', 'a'], ['x', 'y', 'x'], ['1', '2', '3'])
  (['x', 'y'], [['1', '3'], ['2']])

  Args:
    prompts: What a text was written for, one a row.
    written: One a row; that of a prompt's first row counts.
    targets: One a row.

  Returns:
    (written, references).
  """
  found: dict[Hashable, tuple[str, list[str]]] = {}
  for prompt, text, target in zip(prompts, written, targets, strict=True):
    found.setdefault(prompt, (text, []))[1].append(target)
  return [x for x, _ in found.values()], [x for _, x in found.values()]


def _check(written, references):
  if not len(written) or len(written) != len(references):
    raise types.InputError(
      f'Need as many references as texts, and one at least; got {len(written)} '
      f'texts and {len(references)} references'
    )


def _missing(name):
  return types.InputError(
    f'{name} is not installed: pip install -e ".[text]" brings what measures '
    'written text.'
  )
