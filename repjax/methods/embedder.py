"""Device code: a network, and the projection that contrastive losses compare.

Features are what the network's last layer sees; what a loss compares are unit
vectors behind a small MLP, which is thrown away in the end (Chen, Kornblith,
Norouzi and Hinton, 'A Simple Framework for Contrastive Learning of Visual
Representations', ICML 2020, section 2.1, https://arxiv.org/abs/2002.05709).
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import types
from repjax.methods import classifier
from repjax.methods import contrastive
from repjax.methods import lp_ft
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.models import mlp
from repjax.types import check_range


class Embedded(NamedTuple):
  """A forward pass.

  Attributes:
    vectors: Unit embeddings, [B, dim], float32.
    model_state: Other collections of the network after the pass.
  """

  vectors: jax.Array
  model_state: types.PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
  """Any linen classifier with a projection in place of its last layer.

  Parameters are {'model', 'projection'}; the network's last layer stays as it
  was drawn.

  Attributes:
    model: The classifier.
    dim: Of the embeddings.
    hidden: Width of the projection's hidden layer; 0 for that of the features.
    inputs: What the model is called with.
    head: Module names of its last layer, whose input are the features.
  """

  model: nn.Module
  dim: int = 128
  hidden: int = 0
  inputs: model_inputs.Inputs = model_inputs.image
  head: str = 'head'

  def __post_init__(self):
    check_range('[1, inf)', dim=self.dim)
    check_range('[0, inf)', hidden=self.hidden)

  def _project(self, width: int) -> mlp.Mlp:
    return mlp.Mlp(self.dim, features=(self.hidden or width,))

  def init(self, rng: jax.Array, batch: types.Batch) -> types.PyTree:
    """Variables: {'params': {'model', 'projection'}, other collections}."""
    rng_model, rng_projection = jax.random.split(rng)
    variables = model_inputs.init(self.model, self.inputs, rng_model, batch)
    rest, params = steps.pop_params(variables)
    features = jax.eval_shape(
      lambda: (
        classifier.forward(
          self.model, self.inputs, variables, batch, rng_model, head=self.head
        ).features
      )
    )
    projection = self._project(features.shape[-1]).init(
      rng_projection, jnp.zeros(features.shape), train=False
    )['params']
    return {'params': {'model': params, 'projection': projection}, **rest}

  def embed(
    self,
    params: types.PyTree,
    model_state: types.PyTree,
    batch: types.Batch,
    rng: jax.Array,
  ) -> Embedded:
    """A pass in training."""
    out = classifier.forward(
      self.model,
      self.inputs,
      {'params': params['model'], **model_state},
      batch,
      rng,
      head=self.head,
    )
    return Embedded(self._unit(params, out.features), out.model_state)

  def embed_as_it_is(
    self, params: types.PyTree, model_state: types.PyTree, batch: types.Batch
  ) -> jax.Array:
    """Unit embeddings in evaluation, [B, dim]: nothing is drawn or moves."""
    features = self._features(params, model_state, batch)
    return self._unit(params, features)

  def predict(self, state: types.TrainState, batch: types.Batch):
    """'features' [B, D] of a state, averaged where it keeps an average."""
    rest, params = steps.pop_params(steps.variables(state))
    return {'features': self._features(params, rest, batch)}

  def _features(self, params, model_state, batch):
    see = lp_ft.features(self.model, layer=self.head, inputs=self.inputs)
    shown = types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params['model'],
      opt_state=(),
      model_state=model_state,
      extra=(),
    )
    return see(shown, batch)['features']

  def _unit(self, params, features):
    projection = self._project(features.shape[-1])
    return contrastive.unit(
      projection.apply({'params': params['projection']}, features, train=True)
    )
