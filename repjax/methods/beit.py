"""Device code: masked image modeling, BEiT's pre-training.

Bao, Dong, Piao and Wei, 'BEiT: BERT Pre-Training of Image Transformers', ICLR
2022, https://arxiv.org/abs/2106.08254. What it has learnt is fine-tuned, or
probed, by `methods.supervised` on `models.beit.Classifier`.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from repjax import types
from repjax.layers import patches
from repjax.methods import step as steps
from repjax.models import beit
from repjax.types import InputError


class Tokenizer(NamedTuple):
  """What makes the targets: images -> one visual token a patch.

  Attributes:
    init: (rng, image) -> its variables, which pre-training never changes.
    ids: (variables, image [B, H, W, C]) -> tokens, int32 [B, rows, columns].
    vocab_size: Tokens are in [0, vocab_size).
  """

  init: Callable[[jax.Array, jax.Array], types.PyTree]
  ids: Callable[[types.PyTree, jax.Array], jax.Array]
  vocab_size: int


def of_encoder(encoder: nn.Module, vocab_size: int) -> Tokenizer:
  """The likeliest tokens of an encoder of `models.dvae`.

  Its variables are {'params': those of the encoder}, for instance
  {'params': trained['encoder']} of a trained `dvae.Dvae`.

  Args:
    encoder: Images -> logits [B, rows, columns, vocab_size].
    vocab_size: V.
  """

  def ids(variables, image):
    return encoder.apply(variables, image).argmax(-1).astype(jnp.int32)

  return Tokenizer(encoder.init, ids, vocab_size)


def known(vocab_size: int) -> Tokenizer:
  """The tokens themselves: 'token_image' of a batch is int [B, rows, columns].

  For tokens that were made ahead, where images are not augmented.

  Args:
    vocab_size: Tokens are in [0, vocab_size).
  """
  return Tokenizer(lambda rng, ids: {}, lambda _, ids: ids, vocab_size)


def make(
  model: beit.MaskedImageModel,
  tokenizer: Tokenizer,
  tx: optax.GradientTransformation,
  *,
  compute_dtype: str = 'float32',
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy of the visual tokens of hidden patches (eq. 2).

  The loss of a row is the mean over its hidden patches, so that gradients are
  means of one gradient a row. (The authors take the mean over all hidden
  patches of a batch, which is the same where all masks have one count.) What is
  reported as 'nats' and 'accuracy' is a mean over patches.

  The tokenizer's variables are in `TrainState.model_state`, where nothing
  trains them; `with_tokenizer` puts trained ones there.

  Args:
    model: With the vocabulary of the tokenizer.
    tokenizer: Makes the targets of 'token_image', or of 'image' where that
      column is missing, in float32.
    tx: Optax chain.
    compute_dtype: 'float32' or 'bfloat16', of the model.
    transform: (batch, rng) -> batch on the devices, before the loss.
    **settings: microbatches, ema_decay; arguments of `steps.make`.

  Returns:
    A `types.Method` over batches of 'image' [B, H, W, C], optional
    'token_image', and 'masked' and 'masked_weight' [B, K], which
    `data.images.block_masks` makes. Sums: 'loss', 'nats' and 'accuracy'.
    `predict` gives, a row, 'nll' (sum over its hidden patches, nats), 'patches'
    (their number), 'hits', 'ids' int32 [B, N] (the targets of all patches) and
    'guess' [B, N] (the same with what the model says in place of hidden ones).

  Raises:
    InputError: If model and tokenizer differ in their vocabulary or, at `init`,
      in their grid.
  """
  if model.vocab_size != tokenizer.vocab_size:
    raise InputError(
      f'the model predicts {model.vocab_size} visual tokens, and the tokenizer '
      f'has {tokenizer.vocab_size}: make vocab_size equal'
    )

  def logits_and_ids(params, model_state, batch, **apply):
    """Logits of hidden patches [B, K, V], and ids of all patches [B, N]."""
    ids = tokenizer.ids(model_state[types.FROZEN], _token_image(batch))
    ids = ids.reshape(ids.shape[0], -1)
    rows = jnp.arange(ids.shape[0])[:, None]
    hidden = jnp.zeros(ids.shape, jnp.float32)
    # Padding is at place 0 with weight 0, which does not hide it.
    hidden = hidden.at[rows, batch['masked']].max(batch['masked_weight'])
    logits = model.apply(
      {'params': params},
      batch['image'],
      hidden,
      places=batch['masked'],
      **apply,
    )
    return logits, ids

  def score(logits, ids, batch):
    """(nll, hits, weight) of the hidden patches, [B, K] each."""
    targets = jnp.take_along_axis(ids, batch['masked'], axis=1)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    weight = batch['masked_weight']
    return nll * weight, (logits.argmax(-1) == targets) * weight, weight

  def loss_fn(params, model_state, batch, rng):
    logits, ids = logits_and_ids(
      params, model_state, batch, train=True, rngs={'dropout': rng}
    )
    nll, hits, weight = score(logits, ids, batch)
    count = weight.sum(1)
    return types.Losses(
      # A row without a hidden patch has loss 0.
      loss=nll.sum(1) / jnp.where(count > 0, count, 1),
      model_state=model_state,
      metrics={
        'nats': nll.sum(1),
        'accuracy': hits.sum(1),
        'patches': count,
      },
    )

  def with_token_image(batch, rng):
    # Of the tokenizer, which stays float32 whatever the model sees.
    batch = batch if transform is None else transform(batch, rng)
    return {**batch, 'token_image': _token_image(batch)}

  step = steps.make(
    loss_fn,
    tx,
    compute_dtype=compute_dtype,
    transform=with_token_image,
    finish=_over_patches,
    **settings,
  )

  def init(rng, batch):
    rng_model, rng_tokenizer = jax.random.split(rng)
    image, token_image = batch['image'], _token_image(batch)
    variables = tokenizer.init(rng_tokenizer, token_image)
    grid = patches.grid_shape(image.shape[1:3], model.encoder.patch_size)
    found = jax.eval_shape(tokenizer.ids, variables, token_image).shape[1:]
    if grid != found:
      raise InputError(
        f'the model has {grid[0]} x {grid[1]} patches an image, and the '
        f'tokenizer gives {found[0]} x {found[1]} tokens: change patch_size, '
        'the size of the images, or the tokenizer'
      )
    hidden = jnp.ones((image.shape[0], grid[0] * grid[1]))
    made = model.init(rng_model, image, hidden, train=False)
    return step.init({**made, types.FROZEN: variables})

  def predict(state, batch):
    params = steps.variables(state)['params']
    seen = {
      **steps.cast_inputs(batch, compute_dtype),
      'token_image': _token_image(batch),
    }
    logits, ids = logits_and_ids(params, state.model_state, seen, train=False)
    nll, hits, weight = score(logits, ids, batch)
    rows = jnp.arange(ids.shape[0])[:, None]
    # Places of padding are beyond the last patch, and so are dropped.
    places = jnp.where(weight > 0, batch['masked'], ids.shape[1])
    guess = ids.at[rows, places].set(logits.argmax(-1), mode='drop')
    return {
      'nll': nll.sum(1),
      'patches': weight.sum(1),
      'hits': hits.sum(1),
      'ids': ids,
      'guess': guess,
    }

  return types.Method(init, step.update, predict)


def with_tokenizer(
  state: types.TrainState, variables: types.PyTree
) -> types.TrainState:
  """The state with a trained tokenizer.

  Args:
    state: Of a method of `make`.
    variables: Like those that the tokenizer's `init` gives.

  Raises:
    InputError: They are of another tokenizer.
  """
  old = state.model_state[types.FROZEN]
  if jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, variables):
    raise InputError(
      'these are the weights of another tokenizer: give the settings that it '
      'was trained with'
    )
  return state.replace(
    model_state={**state.model_state, types.FROZEN: variables}
  )


def _token_image(batch):
  return batch['token_image' if 'token_image' in batch else 'image']


def _over_patches(sums):
  """Divides what belongs to patches by their number."""
  sums = dict(sums)
  count, _ = sums.pop('patches')
  return {
    **sums,
    'nats': (sums['nats'][0], count),
    'accuracy': (sums['accuracy'][0], count),
  }
