"""Device code: learning to describe exemplars (MILAN's two models at once).

Hernandez et al., 'Natural Language Descriptions of Deep Visual Features', ICLR
2022 (https://arxiv.org/abs/2201.11114), appendix C: captions of exemplars teach
a captioner p(d | E) and, read alone, a language model p(d). The two share no
parameter, so one step trains both as two would, but for links that look at all
gradients at once (clipping by the global norm).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.data.text import tokens as tokenizing
from repjax.methods import step as steps
from repjax.models import beam_search
from repjax.models import describer


def make(
  model: describer.Describer,
  tx: optax.GradientTransformation,
  *,
  penalty: float = 1.0,
  strength: float = 0.2,
  width: int = 50,
  **settings: Any,
) -> types.Method:
  """Minimizes what captions cost both models, a row the mean over its tokens.

  Args:
    model: The two models.
    tx: Optax chain; links that take `grad_fn` get it.
    penalty: Weight of mean_k (1 - sum_t a_tk)^2 (Xu et al., 'Show, Attend and
      Tell', ICML 2015, eq. 14, https://arxiv.org/abs/1502.03044): all exemplars
      are looked at. The sum is over real tokens.
    strength: lambda of `predict`.
    width: Of the beam of `predict`.
    **settings: microbatches, compute_dtype, ema_decay, transform; see
      `steps.make`.

  Returns:
    A `types.Method` over batches of 'features' [B, K, D] and 'tokens' int32
    [B, T], which begin with START, end with END and are padded with PAD. Sums:
    'loss', 'nats' and 'prior_nats' (a token, of either model), 'penalty'.
    `predict` gives, a row, 'nll' and 'prior_nll' (sums over its tokens, nats),
    'counted' (their number), 'description' [B, T - 1] and its 'evidence',
    log p(d | E) - log p(d).

  Raises:
    InputError: If a setting is out of range.
  """
  types.check_range('[0, inf)', penalty=penalty, strength=strength)
  types.check_range('[1, inf)', width=width)

  def score(scores, tokens):
    """(nll, prior nll, weight) of each target, [B, T - 1] each."""
    targets = tokens[:, 1:]

    def chosen(log_probs):
      return -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]

    weight = (targets != tokenizing.PAD).astype(jnp.float32)
    return chosen(scores.likelihood), chosen(scores.prior), weight

  def loss_fn(params, model_state, batch, rng):
    scores = model.apply(
      {'params': params},
      batch['features'],
      batch['tokens'][:, :-1],
      train=True,
      rngs={'dropout': rng},
    )
    nll, prior, weight = score(scores, batch['tokens'])
    count = weight.sum(1)
    share = weight / jnp.maximum(count, 1)[:, None]
    attended = (scores.attention * weight[..., None]).sum(1)  # [B, K]
    uneven = ((1 - attended) ** 2).mean(1)
    nll, prior = (nll * share).sum(1), (prior * share).sum(1)
    return types.Losses(
      nll + prior + penalty * uneven,
      model_state,
      {'nats': nll, 'prior_nats': prior, 'penalty': uneven},
    )

  step = steps.make(loss_fn, tx, **settings)

  def init(rng, batch):
    return step.init(
      model.init(
        {'params': rng},
        batch['features'],
        batch['tokens'][:, :-1],
        train=False,
      )
    )

  def predict(state, batch):
    variables = steps.variables(state)
    features, tokens = batch['features'], batch['tokens']
    scores = model.apply(variables, features, tokens[:, :-1], train=False)
    nll, prior, weight = score(scores, tokens)
    beams = search(
      model, variables, features, width=width, length=tokens.shape[1] - 1
    )
    best = beam_search.pointwise(beams, strength).argmax(1)
    own = jnp.arange(len(best)), best
    return {
      'nll': (nll * weight).sum(1),
      'prior_nll': (prior * weight).sum(1),
      'counted': weight.sum(1),
      'description': beams.tokens[own],
      'evidence': beam_search.pointwise(beams, 1.0)[own],
    }

  return types.Method(init, step.update, predict)


def search(
  model: describer.Describer,
  variables: types.PyTree,
  features: jax.Array,
  *,
  width: int,
  length: int,
) -> beam_search.Beams:
  """The likeliest captions of sets of exemplars, and their prior.

  Args:
    model: The two models.
    variables: Of the model.
    features: [B, K, D].
    width: Of the beam.
    length: The most tokens of a caption, with its end.
  """

  def step_fn(state, token):
    scores, state = model.apply(variables, state, token, method='step')
    return scores.likelihood, scores.prior, state

  return beam_search.search(
    step_fn,
    model.apply(variables, features, method='start'),
    batch_size=len(features),
    width=width,
    length=length,
    start_id=tokenizing.START,
    end_id=tokenizing.END,
    pad_id=tokenizing.PAD,
  )
