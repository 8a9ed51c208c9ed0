"""Device code: fine-tuning of pretrained text models, whole or by adapters.

What trains is chosen by `adapt`; the losses are those of `supervised` (classes)
and `language_modeling` (text), and `writer` also writes in evaluation. A run
starts from pretrained parameters by `start.fill`:

    model = finetuning.adapt(text_heads.Classifier(...), kind='mam', ...)
    method = supervised.make(model, tx, inputs=model_inputs.text)
    state = method.init(rng, batch)
    state = start.fill(state, load, keep=adapters.added(model))

Of an adapted model `TrainState.params` are the adapters and the head alone, so
that no optimizer, no clipping and no ascent of SAM knows of the rest.
"""

from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import get_args

import flax.linen as nn
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen
from repjax.methods import language_modeling
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import decoding
from repjax.types import InputError
from repjax.types import check_choice

Kind = Literal[
  'full',
  'layers',
  'head',
  'bias',
  'lora',
  'adapter',
  'prefix',
  'parallel',
  'mam',
]

# Layers of the models of `transformer`, `text_heads` and `vit`.
_ATTENTIONS = '.*attention'
_PROJECTIONS = '.*attention/(query|value)'
_MLPS = '.*/mlp'
# Top names of what a new task brings.
_HEADS = ('head', 'pooling')
# Kinds that add nothing -> what of the model they train.
_PARTS: Mapping[str, frozen.Predicate] = {
  'layers': lambda path: 'embedding' not in path[-1],
  'head': lambda path: path[0] in _HEADS,
  'bias': lambda path: path[-1] == 'bias' or path[0] in _HEADS,
}


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
    kind: 'full': all parameters. 'layers': all but the tables of embeddings.
      'head': the head of a classifier alone. 'bias': the biases (BitFit, Zaken
      et al., 2022, https://arxiv.org/abs/2106.10199). 'lora': queries and
      values of all attentions. 'adapter': a bottleneck after every MLP
      (Pfeiffer et al., 2021, https://arxiv.org/abs/2005.00247). 'prefix': keys
      and values of all attentions. 'parallel': a scaled bottleneck beside every
      MLP. 'mam': a short prefix and the scaled bottleneck (He et al., 2022,
      https://arxiv.org/abs/2110.04366).
    rank: r of low-rank changes and bottlenecks; read by those that have any.
    length: l of prefixes.
    scale: s of 'lora' (alpha / r), 'parallel' and 'mam'.
    hidden_dim: Of the network that makes prefixes while training; 0 trains them
      directly.

  Returns:
    The model itself for 'full', else one of which a part is frozen.

  Raises:
    InputError: If the kind is unknown, the model has no width for the network
      that makes prefixes, or, at `init`, no layer that the kind changes and no
      bias that 'bias' trains.
  """
  check_choice('kind', kind, get_args(Kind))
  if kind == 'full':
    return model
  if kind == 'bias':
    return frozen.PartlyTrained(_Biases(frozen.whole(model), _PARTS[kind]))
  if kind in _PARTS:
    return frozen.train_only(model, _PARTS[kind])
  reparametrization = None
  if hidden_dim and kind in ('prefix', 'mam'):
    reparametrization = _reparametrization(model, hidden_dim)
  rules: dict[Any, adapters.Adapter] = {}
  if kind == 'lora':
    rules[_PROJECTIONS] = adapters.lora(rank, alpha=scale * rank)
  elif kind == 'adapter':
    rules[_MLPS] = adapters.adapter(rank)
  elif kind == 'prefix':
    rules[_ATTENTIONS] = adapters.prefix(
      length, reparametrization=reparametrization
    )
  elif kind == 'parallel':
    rules[_MLPS] = adapters.parallel_adapter(rank, scale=scale)
  elif kind == 'mam':
    rules = adapters.mam(
      attention=_ATTENTIONS,
      ffn=_MLPS,
      length=length,
      rank=rank,
      scale=scale,
      reparametrization=reparametrization,
    )
  has_head = hasattr(model, 'num_classes')
  return adapters.adapt(
    model, rules, train=(lambda path: path[0] in _HEADS) if has_head else None
  )


class _Biases(frozen.Plan):
  """What 'bias' trains; not of a model whose layers have none."""

  def divide(self, tree):
    """As that of `frozen.Plan`."""
    paths = trees.flatten(tree)
    if not any(x[-1] == 'bias' and x[0] not in _HEADS for x in paths):
      raise InputError(
        f'{type(self.model).__name__} has no biases: the head alone would '
        "train, which is kind='head'. Take another kind than 'bias'."
      )
    return super().divide(tree)


def _reparametrization(model, hidden_dim):
  width = getattr(model, 'hidden_dim', None)
  if width is None:
    raise InputError(
      f'{hidden_dim=} makes prefixes by a network of the width of the model, '
      f'and {type(model).__name__} has no field hidden_dim: leave it at 0, or '
      'take a kind without prefixes.'
    )
  return adapters.Reparametrization(embedding_dim=width, hidden_dim=hidden_dim)


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
    tx: Optax chain; links that take `grad_fn` get it.
    objective: 'causal': the prompt are the tokens before the first target, and
      `model` has positions for a row and `max_new_tokens`. 'translation': the
      'source'; the target's first token begins the text.
    max_new_tokens: Tokens that are written at most.
    end_id: What ends a text.
    **settings: Further arguments of `language_modeling.make`.

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
    targets = language_modeling.weights_of(batch) > 0
    if objective == 'translation':
      first = batch['tokens'][:, :1]
      prompt = batch['source']
      _, inputs = model_inputs.pair(batch)
    else:
      before = jnp.argmax(targets, axis=1)[:, None]
      mask = jnp.arange(targets.shape[1])[None] < jnp.maximum(before, 1)
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
