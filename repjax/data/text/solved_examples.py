"""Host side: prompts that begin with solved examples of their task.

Brown et al., 'Language Models are Few-Shot Learners', NeurIPS 2020, section 2
(https://arxiv.org/abs/2005.14165); as FLAN asks for it (Wei et al., ICLR 2022,
https://arxiv.org/abs/2109.01652, section 4.4): up to 16 examples, written by
the template of the question, as many as fit into 960 tokens.
"""

from collections.abc import Sequence

import numpy as np

from repjax import types
from repjax.data.text import instructions
from repjax.data.text import published_tokens
from repjax.data.text import tokens as tokenizing


def before(
  examples: Sequence[instructions.Example],
  pool: Sequence[instructions.Example],
  tokenizer: tokenizing.Tokenizer,
  *,
  seed: int,
  count: int = 16,
  length: int = 960,
  separator: str = '\n\n',
) -> list[instructions.Example]:
  """The same examples, each behind solved ones of its task and template.

  What is put before an example depends on the seed and its place alone. The
  last ones of those that are drawn are left out where a source would be too
  long; the example itself never is.

  Args:
    examples: What is asked.
    pool: Where solved ones are drawn from: rows that are trained on.
    tokenizer: Counts tokens.
    seed: Of the draws.
    count: How many stand before each; 0 leaves examples as they are.
    length: Tokens of a source.
    separator: Stands between examples, and between a source and its target as
      a line.

  Raises:
    InputError: The pool has fewer than `count` of a task and template, or holds
      what is asked.
  """
  types.check_range('[0, inf)', count=count)
  types.check_range('[1, inf)', length=length)
  # Published tokenizers end a source (`instruction_rows.source_ids`).
  ends = isinstance(tokenizer, published_tokens.Published)
  by_kind: dict[tuple[str, int], list[instructions.Example]] = {}
  for x in pool:
    by_kind.setdefault((x.task, x.template), []).append(x)
  found = []
  for place, asked in enumerate(examples):
    known = by_kind.get((asked.task, asked.template), [])
    if len(known) < count:
      raise types.InputError(
        f'{count=} solved examples of the task {asked.task!r} by template '
        f'{asked.template}, and the pool has {len(known)}: ask for fewer'
      )
    if any(x.source == asked.source for x in known):
      raise types.InputError(
        f'the pool holds example {place}, {asked.source[:60]!r}, which would '
        'stand there with its answer: take it from other rows'
      )
    rng = np.random.default_rng([seed, place])
    drawn = [known[i] for i in rng.permutation(len(known))[:count]]
    source = asked.source
    shown: list[str] = []
    for x in drawn:
      text = f'{x.source}\n{x.target}{separator}'
      # As it is read: where texts meet, tokens are not those of each.
      whole = ''.join([*shown, text, source])
      if len(tokenizer.encode(whole)) + ends > length:
        break
      shown.append(text)
    found.append(asked._replace(source=''.join([*shown, source])))
  return found
