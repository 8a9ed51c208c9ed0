"""Device code: language models: next token, translation, masked tokens."""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import parallel
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

Objective = Literal['causal', 'translation', 'masked']

_INPUTS = {
  'causal': model_inputs.text_before,
  'translation': model_inputs.pair,
  'masked': model_inputs.masked_text,
}


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  objective: Objective = 'causal',
  label_smoothing: float = 0.0,
  l2: float = 0.0,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy of tokens.

  The loss of a row is the mean over its real tokens, so that gradients are
  means of one gradient a row, as private and per-task links need them. What is
  reported as 'nats' and 'accuracy' is a mean over tokens.

  Args:
    model: 'causal': called as `model.apply(variables, tokens [B, L], train=
      ..., mask=None)`, like `transformer.DecoderLM`; 'translation': also with
      `source` and `source_mask`, like `transformer.EncoderDecoder`; 'masked':
      with the mask of real tokens, like `text_heads.MaskedLM`. It gives logits
      [B, L, V]. Its other collections are kept as `TrainState.model_state`.
    tx: Optax chain; links that take `grad_fn` get it.
    objective: 'causal' and 'translation' predict each of the 'tokens' [B, T]
      but the first from those before it, so the model reads T - 1. Padding
      comes after the real tokens, where nothing sees it. 'masked' predicts
      'tokens' [B, T] from 'inputs' [B, T], which `mask_tokens` makes of them,
      as the `transform` of training and before batches of evaluation; an
      optional 'token_mask' [B, T] marks real tokens.
    label_smoothing: Share of the target that is spread over all tokens, in
      [0, 1).
    l2: Adds l2 / 2 * |params|^2 to every row's loss; see `supervised.make`.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of 'tokens' int32 [B, T], optional 'weights'
    [B, T] of each token as a target (1 where they are missing; needed for
    'masked'), and for 'translation' 'source' [B, S], optional 'source_mask'
    [B, S]. Sums: 'loss' (mean over rows), 'nats' and 'accuracy' (means over
    tokens; no smoothing). `predict` gives, a row, 'nll' (sum over its tokens,
    nats), 'tokens' (their weight), 'hits', and 'position_nll',
    'position_tokens' [B, T] (the first position is 0, but for 'masked').

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      nothing says what is hidden where 'masked' tokens are to be predicted.
  """
  if objective not in _INPUTS:
    raise InputError(
      f"objective is 'causal', 'translation' or 'masked'; got {objective=}"
    )
  if not 0 <= label_smoothing < 1:
    raise InputError(f'Need 0 <= label_smoothing < 1; got {label_smoothing=}')

  def inputs(batch):
    if objective == 'masked':
      _check_hidden(batch)
    return _INPUTS[objective](batch)

  def score(logits, batch):
    """Loss, nll, weight and hits of each target, [B, T'] each."""
    logits = logits.astype(jnp.float32)
    targets, weights = batch['tokens'], weights_of(batch)
    if objective != 'masked':
      targets, weights = targets[:, 1:], weights[:, 1:]
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = total - chosen
    loss = nll
    if label_smoothing:
      spread = total - logits.mean(-1)
      loss = (1 - label_smoothing) * nll + label_smoothing * spread
    hits = (logits.argmax(-1) == targets).astype(jnp.float32)
    return loss, nll, weights, hits

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model, inputs, {'params': params, **model_state}, batch, rng
    )
    loss, nll, weights, hits = score(logits, batch)
    count = weights.sum(1)
    # A row without a target has loss 0.
    loss = (loss * weights).sum(1) / jnp.where(count > 0, count, 1)
    plain = loss
    if l2:
      loss += steps.l2_penalty(params, l2)
    return types.Losses(
      loss=loss,
      model_state=model_state,
      metrics={
        'loss': plain,
        'nats': (nll * weights).sum(1),
        'accuracy': (hits * weights).sum(1),
        'tokens': count,
      },
    )

  def finish(sums):
    sums = dict(sums)
    tokens, _ = sums.pop('tokens')
    for name in ('nats', 'accuracy'):
      sums[name] = (sums[name][0], tokens)
    return sums

  step = steps.make(loss_fn, tx, finish=finish, **settings)

  def init(rng, batch):
    if objective == 'masked' and 'inputs' not in batch:
      # Before `transform` has made them; only shapes count here.
      hidden = {'inputs': batch['tokens'], 'weights': batch['tokens']}
      batch = {**batch, **hidden}
    return step.init(model_inputs.init(model, inputs, rng, batch))

  def predict(state, batch):
    logits = model_inputs.evaluate(model, inputs, steps.variables(state), batch)
    _, nll, weights, hits = score(logits, batch)
    nll, hits = nll * weights, hits * weights
    first = ((0, 0), (0 if objective == 'masked' else 1, 0))
    return {
      'nll': nll.sum(1),
      'tokens': weights.sum(1),
      'hits': hits.sum(1),
      'position_nll': jnp.pad(nll, first),
      'position_tokens': jnp.pad(weights, first),
    }

  return types.Method(init, step.update, predict)


def mask_tokens(
  batch: types.Batch,
  rng: jax.Array,
  *,
  vocab_size: int,
  mask_id: int,
  num_special: int,
  rate: float = 0.15,
) -> types.Batch:
  """Hides tokens as BERT does (Devlin et al., 2019, sec. 3.1).

  Of the tokens that are chosen, 80 % become `mask_id`, 10 % a random token and
  10 % stay; all of them are targets (https://arxiv.org/abs/1810.04805).

  Args:
    batch: 'tokens' [B, T], 'mask' [B], and optional 'token_mask' [B, T].
    rng: Equal on all devices.
    vocab_size: Number of tokens.
    mask_id: The token that hides.
    num_special: Tokens below this id are never chosen, nor drawn.
    rate: Probability that a token is chosen, in (0, 1).

  Returns:
    The batch with 'inputs' [B, T] and 'weights' [B, T].
  """
  if not 0 < rate < 1:
    raise InputError(f'Need 0 < rate < 1; got {rate=}')
  tokens = batch['tokens']

  def draw(rng):
    rng_place, rng_token = jax.random.split(rng)
    shape = tokens.shape[1:]
    return (
      *jax.random.uniform(rng_place, (2, *shape)),
      jax.random.randint(rng_token, shape, num_special, vocab_size),
    )

  place, kind, other = jax.vmap(draw)(parallel.row_rngs(rng, tokens.shape[0]))
  chosen = (place < rate) & (tokens >= num_special)
  if 'token_mask' in batch:
    chosen = chosen & (batch['token_mask'] > 0)
  hidden = jnp.where(kind < 0.8, mask_id, jnp.where(kind < 0.9, other, tokens))
  return {
    **batch,
    'inputs': jnp.where(chosen, hidden, tokens),
    'weights': chosen.astype(jnp.float32),
  }


def _check_hidden(batch):
  missing = sorted({'inputs', 'weights'} - set(batch))
  if missing:
    raise InputError(
      f"objective='masked' predicts what is hidden, and the batch has no "
      f'{" and no ".join(missing)}: make them by mask_tokens (as `transform`, '
      'and before batches of evaluation).'
    )


def weights_of(batch: types.Batch) -> jax.Array:
  """Which tokens count, float32 [B, T]: all, where a batch says nothing."""
  if 'weights' in batch:
    return batch['weights'].astype(jnp.float32)
  return jnp.ones(batch['tokens'].shape, jnp.float32)
