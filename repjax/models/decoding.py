"""Device code: writing text with a language model, one token after the other.

For any model with `prefill` and `step`, as `transformer.DecoderLM` and
`transformer.EncoderDecoder` have them, whatever their attention is.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers import frozen
from repjax.types import InputError


@runtime_checkable
class ChecksPrompts(Protocol):
  """A model that does not go on behind every prompt."""

  def check_prompt(self, mask: jax.Array | None) -> None:
    """Refuses a prompt by its mask [B, L], 0 for padding."""


class Generated(NamedTuple):
  """What a model wrote.

  Attributes:
    tokens: [B, N] int32, with `pad_id` after the end.
    length: Number of tokens written, the end among them, int32 [B].
  """

  tokens: jax.Array
  length: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """Chooses the next token from its logits.

  Tokens are left out in this order: all but the `top_k` likeliest, then, of
  what is left, those beyond the fewest that have a share of `top_p` (Holtzman
  et al., 'The Curious Case of Neural Text Degeneration', ICLR 2020, sec. 3.1,
  https://arxiv.org/abs/1904.09751).

  Attributes:
    temperature: Divides the logits; 0 is greedy.
    top_k: Number of tokens that are kept, >= 1; None keeps all.
    top_p: Share of probability that is kept, in (0, 1]; 1 keeps all.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self):
    if (
      not 0 <= self.temperature < float('inf')
      or not 0 < self.top_p <= 1
      or (self.top_k is not None and self.top_k < 1)
    ):
      raise InputError(
        'Need temperature >= 0, top_k >= 1 (or None) and 0 < top_p <= 1; got '
        f'{self}'
      )

  def __call__(self, logits: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Draws a token a row, [B, V] -> int32 [B]; greedy needs no key."""
    logits = logits.astype(jnp.float32)
    if self.temperature == 0:
      return logits.argmax(-1).astype(jnp.int32)
    assert rng is not None  # The greedy alone go without.
    logits = logits / self.temperature
    if self.top_k is None and self.top_p == 1:
      return jax.random.categorical(rng, logits).astype(jnp.int32)
    num_kept = min(self.top_k or logits.shape[-1], logits.shape[-1])
    logits, tokens = jax.lax.top_k(logits, num_kept)  # Falling.
    shares = jax.nn.softmax(logits)
    likelier = jnp.cumsum(shares, axis=-1) - shares
    # The likeliest stays whatever rounding makes of an empty sum.
    kept = (likelier < self.top_p).at[..., 0].set(True)
    drawn = jax.random.categorical(rng, jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]


GREEDY = Sampler(temperature=0.0)


def generate(
  model: nn.Module,
  variables: Mapping[str, Any],
  prompt: jax.Array,
  *,
  max_new_tokens: int,
  sampler: Sampler = GREEDY,
  rng: jax.Array | None = None,
  end_id: int | None = None,
  pad_id: int = 0,
  max_length: int | None = None,
  **inputs: jax.Array | None,
) -> Generated:
  """Continues prompts; compiled once for each shape and setting.

  Args:
    model: With `prefill` and `step`.
    variables: Variables of the model, with 'params'.
    prompt: [B, L], integers, L >= 1.
    max_new_tokens: N, the most that is written.
    sampler: How tokens are chosen.
    rng: Key; only greedy does without.
    end_id: The token that ends a text; None always writes N tokens. The loop
      stops when all rows have ended.
    pad_id: What stands after the end.
    max_length: Room of the decoding state, at least L + N - 1 (the last token
      is never read); None is just that.
    **inputs: Further arguments of `prefill`: 'mask' [B, L], 0 for padding in
      the prompt, and 'source', 'source_mask' of an encoder-decoder.

  Raises:
    InputError: Before anything is compiled: a length is out of range, or a key
      is missing.
  """
  prompt = jnp.asarray(prompt)
  if prompt.ndim != 2 or not prompt.size or max_new_tokens < 1:
    raise InputError(
      'generate needs a prompt [B, L] of at least one token a row (a start '
      f'token will do) and max_new_tokens >= 1; got {prompt.shape=}, '
      f'{max_new_tokens=}'
    )
  needed = prompt.shape[1] + max_new_tokens - 1
  if max_length is None:
    max_length = needed
  if needed > max_length:
    raise InputError(
      f'a prompt of {prompt.shape[1]} tokens and {max_new_tokens=} need '
      f'max_length >= {needed}; got {max_length=}'
    )
  if rng is None:
    if sampler.temperature > 0:
      raise InputError(f'{sampler} needs rng, a key of jax.random.key')
    rng = jax.random.key(0)  # Not used.
  # Below, numbers are traced, which no model can look at.
  inner = model.plan.model if isinstance(model, frozen.PartlyTrained) else model
  if isinstance(inner, ChecksPrompts):
    inner.check_prompt(inputs.get('mask'))
  return _generate(
    model,
    variables,
    prompt,
    rng,
    inputs,
    num_tokens=max_new_tokens,
    sampler=sampler,
    end_id=end_id,
    pad_id=pad_id,
    max_length=max_length,
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    'model',
    'num_tokens',
    'sampler',
    'end_id',
    'pad_id',
    'max_length',
  ),
)
def _generate(
  model,
  variables,
  prompt,
  rng,
  inputs,
  *,
  num_tokens,
  sampler,
  end_id,
  pad_id,
  max_length,
):
  batch_size = prompt.shape[0]

  def write(number, logits, written, going):
    """Chooses token `number` of the rows that have not ended."""
    token = sampler(logits, jax.random.fold_in(rng, number))
    token = jnp.where(going, token, pad_id)
    tokens = jax.lax.dynamic_update_slice_in_dim(
      written.tokens, token[:, None], number, axis=1
    )
    written = Generated(tokens, written.length + going)
    if end_id is not None:
      going = going & (token != end_id)
    return token, written, going

  logits, state = model.apply(
    variables, prompt, max_length=max_length, method='prefill', **inputs
  )
  written = Generated(
    jnp.full((batch_size, num_tokens), pad_id, jnp.int32),
    jnp.zeros((batch_size,), jnp.int32),
  )
  going = jnp.ones((batch_size,), bool)
  token, written, going = write(0, logits, written, going)

  def proceed(carry):
    number, _, _, _, going = carry
    return (number < num_tokens) & going.any()

  def advance(carry):
    number, state, token, written, going = carry
    logits, state = model.apply(variables, state, token, method='step')
    token, written, going = write(number, logits, written, going)
    return number + 1, state, token, written, going

  carry = (jnp.int32(1), state, token, written, going)
  _, _, _, written, _ = jax.lax.while_loop(proceed, advance, carry)
  return written
