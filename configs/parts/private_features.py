"""How the study of private fine-tuning learns a head on a frozen text model.

The encoder is public and stays as it is, so that each text is read once; what
is private is the linear model of its features.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs.parts import private_rates
from configs.parts import text_models
from repjax import plots
from repjax import types
from repjax.models import transformer
from repjax.protocols import finetuned_text
from repjax.weights import packaged
from repjax.weights import text_config
from repjax.weights import text_weights

# Texts that are read at once, and tokens by which the lengths of such batches
# differ.
_ROWS, _WIDTH = 512, 8


def claims(
  *, pretraining: float, cost: float, large_batch: float
) -> dict[str, dict[str, Any]]:
  """Claims of heads on features.

  Args:
    pretraining: What features of the published model must be ahead of those of
      random weights.
    cost: What noise may cost.
    large_batch: What large batches must be ahead of small ones.
  """
  says = (
    'SST-2 at epsilon 3, a head on frozen features of MiniLM: test accuracy'
  )
  best = 'each at its best rate on held-out training rows'
  return dict(
    features_pretraining_gain=dict(
      says=f'{says}, published weights minus random ones, {best}',
      paper='pretrained models learn privately (abstract, no figure copied)',
      at_least=pretraining,
    ),
    features_cost=dict(
      says=f'{says} without noise minus with it, {best}',
      paper='pretrained models lose little by privacy (abstract, no figure '
      'copied)',
      at_most=cost,
    ),
    features_large_batch_gain=dict(
      says=f'{says}, large batches minus small ones at equal epochs, {best}',
      paper='large batches with high rates win at equal privacy and epochs',
      at_least=large_batch,
    ),
  )


def measure(
  config: Any, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures) of heads by features, noise and size of the batches.

  Args:
    config: With the recipe's groups, and the study's group `features`.
    seeds: S seeds, of heads, of batches and of random encoders' weights (the
      first one).
  """
  group = config.study.features
  tokenizer = text_models.tokenizer(config)
  load = text_models.sentences(config, tokenizer)
  train = load(config.data.train_split)
  texts = [x.columns() for x in (train, load(config.data.eval_splits[0]))]
  model = text_models.model(config, transformer.Encoder, tokenizer.vocab_size)
  token = np.zeros((1, 2), np.int32)
  fresh = model.init(jax.random.key(seeds[0]), token, train=False)['params']
  weights = packaged.folder(config.weights)
  published = text_weights.load(
    weights, fresh, family=text_config.read(weights).family, head='replace'
  )
  seen = {
    name: finetuned_text.hold_out(
      *(features(model, params, x) for x in texts), num_rows=group.num_held_out
    )
    for name, params in dict(published=published, random=fresh).items()
  }
  size, noisy = config.batch_size, f'epsilon {config.dp.epsilon:g}'
  arms = {
    f'{noisy}, batches of {size}': ('published', {}),
    f'{noisy}, batches of {group.small_batch}': (
      'published',
      dict(batch_size=group.small_batch),
    ),
    f'no noise, batches of {size}': ('published', dict(epsilon=math.inf)),
    f'{noisy}, random weights': ('random', {}),
  }
  scalars, scores = {}, []
  for name, (weights, changes) in arms.items():
    found = private_rates.choose(
      config,
      name,
      seen[weights],
      num_classes=train.num_classes,
      rates=group.rates,
      seeds=seeds,
      **changes,
    )
    scores.append(found.scores)
    scalars[f'features, {name}: rate'] = [found.rate]
    for rate, of_rate in zip(group.rates, found.all_scores, strict=True):
      scalars[f'features, {name}, rate {rate:g}: test accuracy'] = of_rate
  private, small, plain, random = scores
  drawn = plots.bars(
    {
      name.replace(', ', '\n'): {'test accuracy': x}
      for name, x in zip(arms, scores, strict=True)
    },
    ylabel='test accuracy',
  )
  return dict(
    features_pretraining_gain=private - random,
    features_cost=plain - private,
    features_large_batch_gain=private - small,
    **scalars,
  ), {'features': drawn}


def features(
  model: nn.Module, params: types.PyTree, texts: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The mean of an encoder's outputs over each text's tokens, and its label.

  Of root mean square 1 a text: what one text is scaled by, no other one tells.

  Args:
    model: A `transformer.Encoder`.
    params: Its parameters.
    texts: 'tokens' [N, L], 'token_mask' [N, L] and 'label' [N].

  Returns:
    'image', which linear models read, [N, D], and 'label'.
  """

  @jax.jit
  def read(params, tokens, mask):
    found = model.apply({'params': params}, tokens, train=False, mask=mask)
    mean = jnp.sum(found * mask[..., None], 1)
    return mean / (jnp.sqrt(jnp.mean(mean**2, -1, keepdims=True)) + 1e-12)

  tokens, mask = texts['tokens'], texts['token_mask']
  lengths = (mask > 0).sum(1)
  order = np.argsort(lengths, kind='stable')
  seen = np.zeros((len(tokens), model.hidden_dim), np.float32)
  for first in range(0, len(order), _ROWS):
    rows = order[first : first + _ROWS]
    width = min(-(-lengths[rows[-1]] // _WIDTH) * _WIDTH, tokens.shape[1])
    seen[rows] = read(params, tokens[rows, :width], mask[rows, :width])
  return {'image': seen, 'label': texts['label']}
