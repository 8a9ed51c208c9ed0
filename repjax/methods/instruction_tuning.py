"""Device code: learning what to write where an instruction says so.

Wei et al., 'Finetuned Language Models Are Zero-Shot Learners', ICLR 2022
(https://arxiv.org/abs/2109.01652). Cross-entropy of the targets' tokens, every
one of which counts alike, whatever row it is packed into.
"""

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

# Column that `update` adds: what a token's loss counts.
_SHARE = 'token_share'


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  inputs: model_inputs.Inputs = model_inputs.packed_pair,
  mean: Literal['tokens', 'rows'] = 'tokens',
  label_smoothing: float = 0.0,
  **settings: Any,
) -> types.Method:
  """Minimizes the mean cross-entropy of tokens that are to be written.

  With mean='tokens' the loss of a row is the sum over its tokens, times the
  step's rows over the step's tokens: the mean over rows is then the mean over
  tokens, and packing changes neither loss nor gradient.

  Args:
    model: Gives logits [B, T - 1, V] of what comes next: `t5.T5`;
      `transformer.EncoderDecoder` for rows that are not packed; or
      `transformer.DecoderLM`.
    tx: Optax chain; links that take `grad_fn` get it.
    inputs: What the model is called with; `model_inputs.packed_text` for a
      language model.
    mean: 'tokens'; or 'rows', where a row's loss is the mean over its own
      tokens and depends on no other row, as private links need it.
    label_smoothing: Share of a target that is spread over all tokens, in
      [0, 1).
    **settings: microbatches, compute_dtype, ema_decay; see `steps.make`.

  Returns:
    A `types.Method` over batches of 'tokens' int32 [B, T] and 'weights' [B, T];
    but for a language model 'source' [B, S] and 'source_mask' [B, S]; and of
    packed ones 'segments', with a source 'source_segments'
    (`data.text.packing`). Sums: 'loss' and 'accuracy', means over a step's
    tokens, or with mean='rows' over rows of theirs. `predict` gives
    'log_likelihood' [B], the sum over a row's tokens, 'tokens' [B] and 'hits'
    [B].

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if a
      link of the chain takes rows apart and mean='tokens'.
  """
  types.check_choice('mean', mean, ('tokens', 'rows'))
  types.check_range('[0, 1)', label_smoothing=label_smoothing)

  def loss_fn(params, model_state, batch, rng):
    logits, model_state = model_inputs.forward(
      model,
      inputs,
      {'params': params, **model_state},
      batch,
      rng,
    )
    nll, smooth, hits, weights = _of_tokens(logits, batch)
    loss = (1 - label_smoothing) * nll + label_smoothing * smooth
    if mean == 'tokens':
      share = batch[_SHARE]
    else:
      count = weights.sum(1)
      share = 1 / jnp.where(count > 0, count, 1)
    return types.Losses(
      loss=(loss * weights).sum(1) * share,
      model_state=model_state,
      metrics={
        'loss': (nll * weights).sum(1) * share,
        'accuracy': (hits * weights).sum(1) * share,
      },
    )

  by_tokens = mean == 'tokens'
  step = steps.make(
    loss_fn,
    tx,
    transform=_with_share if by_tokens else None,
    whole="unless mean='rows' a step" if by_tokens else '',
    **settings,
  )

  def init(rng, batch):
    return step.init(model_inputs.init(model, inputs, rng, batch))

  def predict(state, batch):
    logits = model_inputs.evaluate(model, inputs, steps.variables(state), batch)
    nll, _, hits, weights = _of_tokens(logits, batch)
    return {
      'log_likelihood': -(nll * weights).sum(1),
      'tokens': weights.sum(1),
      'hits': (hits * weights).sum(1),
    }

  return types.Method(init, step.update, predict)


def _with_share(batch, rng):
  """Rows over tokens of the step, over all devices."""
  del rng  # Nothing is drawn.
  real = batch['mask']
  # Rows of padding may hold anything.
  tokens = jnp.where(real > 0, batch['weights'][:, 1:].sum(1), 0).sum()
  rows, tokens = parallel.psum((real.sum(), tokens))
  share = rows / jnp.where(tokens > 0, tokens, 1)
  return {**batch, _SHARE: jnp.broadcast_to(share, real.shape)}


def _of_tokens(logits, batch):
  """(nll, nll of a uniform target, hits, weights) of targets, [B, T - 1]."""
  logits = logits.astype(jnp.float32)
  targets = batch['tokens'][:, 1:]
  total = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  hits = (logits.argmax(-1) == targets).astype(jnp.float32)
  weights = batch['weights'][:, 1:].astype(jnp.float32)
  return total - chosen, total - logits.mean(-1), hits, weights
