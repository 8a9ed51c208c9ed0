"""Which of several texts a model finds likeliest to follow, many rows at once.

Brown et al., 'Language Models are Few-Shot Learners', NeurIPS 2020, section 2.4
(https://arxiv.org/abs/2005.14165); in FLAN's form (Wei et al., ICLR 2022,
https://arxiv.org/abs/2109.01652, section 2.3) the options stand in the prompt,
too, and log-likelihoods are compared as they are.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.data.text import instruction_rows
from repjax.data.text import instructions
from repjax.data.text import running_text
from repjax.data.text import tokens as tokenizing

# Of options in a row: attention costs their square.
_TOKENS = 256

Normalization = Literal['none', 'tokens']


class Ranker:
  """Scores options by an encoder-decoder; each prompt is encoded once.

  Options are read side by side, several in a row as texts that see nothing of
  each other.

  Args:
    model: With `encode` and `decode`, as `t5.T5` has them.
    tokenizer: What makes ids of texts.
    source_length: Tokens of a prompt; longer ones are cut.
    target_length: Tokens of an option, with what begins and ends it.
    batch_size: Prompts of a call.
    normalization: 'none' compares log-likelihoods, as published, 'tokens' their
      means over tokens.
  """

  def __init__(
    self,
    model: nn.Module,
    tokenizer: tokenizing.Tokenizer,
    *,
    source_length: int,
    target_length: int,
    batch_size: int = 128,
    normalization: Normalization = 'none',
  ):
    types.check_choice('normalization', normalization, ('none', 'tokens'))
    types.check_range('[1, inf)', batch_size=batch_size)
    self._tokenizer = tokenizer
    self._lengths = source_length, target_length
    self._batch_size = batch_size

    def score(variables, source, source_mask, tokens, mask):
      """Log-likelihoods [B, K] of options [B, K, T]."""
      batch, count, length = tokens.shape
      apply: Any = model.apply
      features = apply(
        variables, source, train=False, source_mask=source_mask, method='encode'
      )
      beside = min(count, max(1, _TOKENS // (length - 1)))
      rows = -(-count // beside)  # Of each prompt.
      features, seen = (
        jnp.repeat(x, rows, axis=0) for x in (features, source_mask)
      )
      blank = ((0, 0), (0, rows * beside - count), (0, 0))
      read = jnp.pad(tokens[..., :-1], blank).reshape(batch * rows, -1)
      segments = jnp.repeat(1 + jnp.arange(beside), length - 1)
      logits = apply(
        variables,
        read,
        features,
        train=False,
        source_mask=seen,
        segments=jnp.broadcast_to(segments, read.shape),
        method='decode',
      )
      logits = logits.reshape(batch, rows * beside, length - 1, -1)[:, :count]
      found = jnp.take_along_axis(
        jax.nn.log_softmax(logits.astype(jnp.float32)),
        tokens[..., 1:, None],
        axis=-1,
      )[..., 0]
      weights = mask[..., 1:]
      total = (found * weights).sum(-1)
      if normalization == 'tokens':
        total = total / jnp.maximum(weights.sum(-1), 1)
      return total

    self._score = jax.jit(score)

  def scores(
    self,
    variables: Mapping[str, Any],
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
  ) -> list[np.ndarray]:
    """Scores of each prompt's options, in their order.

    Args:
      variables: Of the model.
      prompts: N texts.
      options: What each may be followed by, one or several.

    Raises:
      InputError: A prompt is empty or has no options, or one is longer than the
        targets.
      NonFiniteError: A score is NaN or infinite; names the prompt.
    """
    if not all(prompts):
      raise types.InputError(
        f'prompt {[*map(bool, prompts)].index(False)} is empty: there is '
        'nothing to look at'
      )
    if len(prompts) != len(options) or not all(options):
      raise types.InputError(
        f'every prompt needs options: {len(prompts)} prompts, '
        f'{sum(map(bool, options))} with options'
      )
    most = max((len(x) for x in options), default=1)
    size, found = self._batch_size, []
    for start in range(0, len(prompts), size):
      part = slice(start, start + size)
      values = self._call(variables, prompts[part], options[part], most)
      found += [
        row[: len(x)] for row, x in zip(values, options[part], strict=True)
      ]
    wrong = [i for i, x in enumerate(found) if not np.isfinite(x).all()]
    if wrong:
      raise types.NonFiniteError(
        f'scores of the options of prompt {wrong[0]} are not finite '
        f'({len(wrong)} of {len(found)} prompts): are the parameters, and has '
        'the model places for target_length?'
      )
    return found

  def choices(
    self,
    variables: Mapping[str, Any],
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
  ) -> np.ndarray:
    """Number of each prompt's likeliest option, [N]."""
    found = self.scores(variables, prompts, options)
    return np.array([x.argmax() for x in found], np.int64)

  def _call(self, variables, prompts, options, most):
    """Scores [n, most]; those of options that are not there mean nothing."""
    source_length, target_length = self._lengths
    blank = self._batch_size - len(prompts)
    ids, mask = running_text.pad(
      [
        instruction_rows.source_ids(x, self._tokenizer, length=source_length)
        for x in prompts
      ]
      + [np.zeros(1, np.int32)] * blank,
      length=source_length,
      truncate=True,
    )
    flat = [
      instruction_rows.target_ids(x, self._tokenizer)
      for row in options
      for x in (*row, *[row[0]] * (most - len(row)))
    ] + [np.zeros(1, np.int32)] * (blank * most)
    tokens, weights = running_text.pad(flat, length=target_length)
    shape = self._batch_size, most, target_length
    found = self._score(
      variables, ids, mask, tokens.reshape(shape), weights.reshape(shape)
    )
    return np.asarray(found)[: len(prompts)]


def accuracy(
  examples: Sequence[instructions.Example], chosen: np.ndarray
) -> float:
  """Share of examples whose chosen option is what was to be written.

  Args:
    examples: With options.
    chosen: Numbers of options, [N].

  Raises:
    InputError: There are no examples, or one has no options.
  """
  count = sum(bool(x.options) for x in examples)
  if not examples or count < len(examples):
    raise types.InputError(
      f'accuracy by ranking needs options: {count} of {len(examples)} examples '
      'have some'
    )
  right = [
    x.options[i] == x.target for x, i in zip(examples, chosen, strict=True)
  ]
  return float(np.mean(right))
