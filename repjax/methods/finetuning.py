"""Device code: fine-tuning of pretrained text models, whole or by adapters.

What trains is chosen by `adapt`; the losses are those of `supervised` (classes)
and `language_modeling` (text), and `writer` also writes in evaluation. A run
starts from pretrained parameters by `with_pretrained`:

    model = finetuning.adapt(text_heads.Classifier(...), kind='mam', ...)
    method = supervised.make(model, tx, inputs=model_inputs.text)
    state = finetuning.with_pretrained(model, method.init(rng, batch), fill)

Of an adapted model `TrainState.params` are the adapters and the head alone, so
that no optimizer, no clipping and no ascent of SAM knows of the rest.
"""

from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import get_args

from flax import traverse_util
import flax.linen as nn
import jax.numpy as jnp
import optax

from repjax import types
from repjax.layers import adapters
from repjax.layers.adapters import designs
from repjax.layers.adapters import merging
from repjax.methods import language_modeling
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import decoding
from repjax.types import InputError

Kind = Literal['full', 'bias', 'lora', 'adapter', 'prefix', 'parallel', 'mam']

# Layers of the models of `transformer`, `text_heads` and `vit`.
_ATTENTIONS = '.*attention'
_PROJECTIONS = '.*attention/(query|value)'
_MLPS = '.*/mlp'
# Top names of what a new task brings.
_HEADS = ('head', 'pooling')


def adapt(
  model: nn.Module,
  *,
  kind: Kind,
  rank: int,
  length: int,
  scale: float,
  hidden_dim: int,
) -> nn.Module:
  """What fine-tuning of a model trains, besides the head that it may have.

  Args:
    model: Of `transformer`, `text_heads` or `vit`.
    kind: 'full': all parameters. 'bias': the biases (BitFit, Zaken et al.,
      2022). 'lora': queries and values of all attentions. 'adapter': a
      bottleneck after every MLP (Pfeiffer et al., 2021). 'prefix': keys and
      values of all attentions. 'parallel': a scaled bottleneck beside every
      MLP. 'mam': a short prefix and the scaled bottleneck (He et al., 2022).
    rank: r of low-rank changes and bottlenecks; 'full', 'bias' and 'prefix' do
      not read it.
    length: l of prefixes.
    scale: s of 'lora' (alpha / r), 'parallel' and 'mam'.
    hidden_dim: Of the network that makes prefixes while training; 0 trains them
      directly.

  Returns:
    The model itself for 'full', else an `adapters.Adapted`.
  """
  if kind not in get_args(Kind):
    raise InputError(f'kind must be one of {get_args(Kind)}, got {kind!r}')
  if kind == 'full':
    return model
  reparametrization = None
  if hidden_dim:
    reparametrization = designs.Reparametrization(
      embedding_dim=model.hidden_dim, hidden_dim=hidden_dim
    )
  rules = {}
  if kind == 'lora':
    rules[_PROJECTIONS] = designs.lora(rank, alpha=scale * rank)
  elif kind == 'adapter':
    rules[_MLPS] = designs.adapter(rank)
  elif kind == 'prefix':
    rules[_ATTENTIONS] = designs.prefix(
      length, reparametrization=reparametrization
    )
  elif kind == 'parallel':
    rules[_MLPS] = designs.parallel_adapter(rank, scale=scale)
  elif kind == 'mam':
    rules = designs.mam(
      attention=_ATTENTIONS,
      ffn=_MLPS,
      length=length,
      rank=rank,
      scale=scale,
      reparametrization=reparametrization,
    )
  if kind == 'bias':
    return adapters.adapt(
      model, {}, train=lambda path: path[-1] == 'bias' or path[0] in _HEADS
    )
  has_head = hasattr(model, 'num_classes')
  return adapters.adapt(
    model, rules, train=(lambda path: path[0] in _HEADS) if has_head else None
  )


def with_pretrained(
  model: nn.Module,
  state: types.TrainState,
  fill: Callable[[types.PyTree], types.PyTree],
) -> types.TrainState:
  """A fresh state with pretrained parameters; adapters stay as they are.

  Args:
    model: `adapt` of a model, or the model.
    state: From the method's `init`.
    fill: Parameters of the model without adapters, as `init` drew them -> the
      same tree with pretrained leaves. What it leaves, such as a new head, is
      what `init` drew.
  """
  if not isinstance(model, adapters.Adapted):
    return steps.with_params(state, fill(state.params))
  own = base_params(model, state)
  variables = adapters.with_base(
    model, {'params': state.params, **state.model_state}, fill(own)
  )
  model_state, params = steps.pop_params(variables)
  return steps.with_params(state.replace(model_state=model_state), params)


def base_params(
  model: adapters.Adapted, state: types.TrainState
) -> types.PyTree:
  """Parameters of the base model in a state: frozen ones and trained ones."""
  base = traverse_util.flatten_dict(state.model_state[adapters.BASE])
  trained = traverse_util.flatten_dict(state.params)
  return traverse_util.unflatten_dict(
    {
      **base,
      **{p: x for p, x in trained.items() if not model.plan.is_own(p)},
    }
  )


def trained_percent(model: nn.Module, state: types.TrainState) -> float:
  """Trained parameters in percent of the model's, as the papers count them.

  Reparametrizations of prefixes do not count (`adapter_weights.budget`).
  """
  if not isinstance(model, adapters.Adapted):
    return 100.0
  return merging.budget(
    model, {'params': state.params, **state.model_state}
  ).percent


def writer(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  objective: Literal['causal', 'translation'],
  max_new_tokens: int,
  end_id: int,
  **settings: Any,
) -> types.Method:
  """A language model that also writes, greedily, what follows each prompt.

  Args:
    model: With `prefill` and `step`.
    tx: See `language_modeling.make`.
    objective: 'causal': the prompt are the tokens before the first target, and
      `model` has positions for a row and `max_new_tokens`. 'translation': the
      'source'; the target's first token begins the text.
    max_new_tokens: Tokens that are written at most.
    end_id: What ends a text.
    **settings: Of `language_modeling.make`.

  Returns:
    That of `language_modeling.make`, whose `predict` gives also, int32,
    'written' [B, max_new_tokens], where what follows `end_id` means nothing,
    'prompt' [B, S], and 'target' [B, T], which is -1 where no target is.
  """
  if objective not in ('causal', 'translation'):
    raise InputError(
      f"objective is 'causal' or 'translation'; got {objective=}"
    )
  method = language_modeling.make(model, tx, objective=objective, **settings)

  def predict(state, batch):
    targets = batch['weights'] > 0
    if objective == 'translation':
      first = batch['tokens'][:, :1]
      prompt = batch['source']
      _, inputs = model_inputs.pair(batch)
    else:
      before = jnp.argmax(targets, axis=1)[:, None]
      mask = jnp.arange(targets.shape[1]) < jnp.maximum(before, 1)
      first = batch['tokens']
      prompt = jnp.where(mask, first, -1)
      inputs = {'mask': mask}
    written = decoding.generate(
      model,
      steps.variables(state),
      first,
      max_new_tokens=max_new_tokens,
      end_id=end_id,
      **inputs,
    )
    return {
      **method.predict(state, batch),
      'written': written.tokens,
      'prompt': prompt,
      'target': jnp.where(targets, batch['tokens'], -1),
    }

  return method._replace(predict=predict)
