"""Device code: a caption of a set of features, and how likely it is anyway.

Hernandez, Schwettmann, Bau, Bagashvili, Torralba and Andreas, 'Natural Language
Descriptions of Deep Visual Features', ICLR 2022
(https://arxiv.org/abs/2201.11114), section 3: a recurrent decoder attends to
the exemplars of a unit, p(d | E), and a language model reads captions alone,
p(d). Sizes are those of the authors' code.
"""

from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import check_range


class CaptionState(NamedTuple):
  """What a captioner goes on with.

  Attributes:
    carry: Of the LSTM.
    features: What it attends to, [B, K, D].
    keys: What they are found by, [B, K, H].
  """

  carry: Any
  features: jax.Array
  keys: jax.Array


class _Gate(nn.Module):
  """Which features count, as wide as these are."""

  @nn.compact
  def __call__(self, hidden, width):
    return nn.sigmoid(nn.Dense(width, name='dense')(hidden))


class Captioner(nn.Module):
  """p(d | E): an LSTM that looks at all exemplars before each token.

  The exemplars are a set: their order changes nothing.

  Attributes:
    vocab_size: V.
    embed_dim: Of tokens.
    hidden_dim: Of the LSTM and of the attention.
    dropout_rate: On what the logits are made of.
  """

  vocab_size: int
  embed_dim: int = 128
  hidden_dim: int = 512
  dropout_rate: float = 0.5

  def setup(self):
    check_range(
      '[1, inf)', embed_dim=self.embed_dim, hidden_dim=self.hidden_dim
    )
    self.hidden, self.cell = (
      nn.Dense(self.hidden_dim, name=name) for name in ('hidden', 'cell')
    )
    self.query, self.key = (
      nn.Dense(self.hidden_dim, name=name) for name in ('query', 'key')
    )
    self.score = nn.Dense(1, name='score')
    self.gate = _Gate(name='gate')
    self.embed = nn.Embed(self.vocab_size, self.embed_dim, name='embed')
    self.lstm = nn.OptimizedLSTMCell(self.hidden_dim, name='lstm')
    self.dropout = nn.Dropout(self.dropout_rate, name='dropout')
    self.head = nn.Dense(self.vocab_size, name='head')

  def start(self, features: jax.Array) -> CaptionState:
    """[B, K, D] -> the state before the first token."""
    mean = features.mean(1)
    # flax has (cell, hidden).
    carry = jnp.tanh(self.cell(mean)), jnp.tanh(self.hidden(mean))
    return CaptionState(carry, features, self.key(features))

  def step(
    self, state: CaptionState, token: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array, CaptionState]:
    """(state, tokens [B]) -> (logits [B, V], attention [B, K], state)."""
    features, (_, hidden) = state.features, state.carry
    seen = self.query(hidden)[:, None] + state.keys
    attention = nn.softmax(self.score(jnp.tanh(seen))[..., 0])
    context = (attention[..., None] * features).sum(1)
    gated = self.gate(hidden, features.shape[-1]) * context
    inputs = jnp.concatenate([self.embed(token), gated], -1)
    carry, hidden = self.lstm(state.carry, inputs)
    logits = self.head(self.dropout(hidden, deterministic=not train))
    return logits, attention, state._replace(carry=carry)


class LanguageModel(nn.Module):
  """p(d): an LSTM of several layers over captions alone.

  Attributes:
    vocab_size: V.
    embed_dim: Of tokens.
    hidden_dim: Of each layer.
    num_layers: How many.
    dropout_rate: Between layers, and, unlike in the authors' code (PyTorch's
      nn.LSTM), behind the last one, on what the logits are made of.
  """

  vocab_size: int
  embed_dim: int = 128
  hidden_dim: int = 512
  num_layers: int = 2
  dropout_rate: float = 0.5

  def setup(self):
    check_range(
      '[1, inf)',
      embed_dim=self.embed_dim,
      hidden_dim=self.hidden_dim,
      num_layers=self.num_layers,
    )
    self.embed = nn.Embed(self.vocab_size, self.embed_dim, name='embed')
    self.layers = [
      nn.OptimizedLSTMCell(self.hidden_dim, name=f'lstm_{i}')
      for i in range(self.num_layers)
    ]
    self.dropout = nn.Dropout(self.dropout_rate, name='dropout')
    self.head = nn.Dense(self.vocab_size, name='head')

  def start(self, batch_size: int) -> Any:
    """The state before the first token of each row."""
    zeros = jnp.zeros((batch_size, self.hidden_dim))
    return [(zeros, zeros)] * self.num_layers

  def step(
    self, state: Any, token: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, Any]:
    """(state, tokens [B]) -> (logits [B, V], state)."""
    x, after = self.embed(token), []
    for layer, carry in zip(self.layers, state, strict=True):
      carry, x = layer(carry, x)
      x = self.dropout(x, deterministic=not train)
      after.append(carry)
    return self.head(x), after


class Scores(NamedTuple):
  """What both models say of each next token.

  Attributes:
    likelihood: log p(next | those before, E), [..., V].
    prior: log p(next | those before), [..., V].
    attention: Weights of the exemplars, [..., K].
  """

  likelihood: jax.Array
  prior: jax.Array
  attention: jax.Array


class Describer(nn.Module):
  """Both models, over one vocabulary; they share no parameter.

  Attributes:
    caption: The captioner.
    language: The language model.
    remat: Whether steps are computed again in the backward pass, which then
      keeps the state before each alone.
  """

  caption: Captioner
  language: LanguageModel
  remat: bool = False

  def start(self, features: jax.Array) -> Any:
    """Features of exemplars [B, K, D] -> the state before the first token."""
    return self.caption.start(features), self.language.start(len(features))

  def step(
    self, state: Any, token: jax.Array, *, train: bool = False
  ) -> tuple[Scores, Any]:
    """(state, tokens [B]) -> (scores of the next token [B, ...], state)."""
    caption, language = state
    logits, attention, caption = self.caption.step(caption, token, train=train)
    prior, language = self.language.step(language, token, train=train)
    scores = Scores(
      nn.log_softmax(logits.astype(jnp.float32)),
      nn.log_softmax(prior.astype(jnp.float32)),
      attention,
    )
    return scores, (caption, language)

  def __call__(
    self, features: jax.Array, tokens: jax.Array, *, train: bool
  ) -> Scores:
    """Reads captions: (features [B, K, D], tokens [B, T]) -> [B, T, ...]."""

    def advance(module, state, token):
      scores, state = module.step(state, token, train=train)
      return state, scores

    # A loop has nothing to be taken for the same.
    run = nn.remat(advance, prevent_cse=False) if self.remat else advance
    read = nn.scan(
      run,
      variable_broadcast='params',
      split_rngs={'params': False, 'dropout': True},
      in_axes=1,
      out_axes=1,
    )
    _, scores = read(self, self.start(features), tokens)
    return scores
