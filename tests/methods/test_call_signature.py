"""Models that methods cannot call are told what is missing."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import call_signature
from repjax.methods import model_inputs
from repjax.methods import supervised


class OfTutorials(nn.Module):
  """As most have it."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x.reshape(len(x), -1))


class Trains(OfTutorials):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(3)(x.reshape(len(x), -1))


class TakesAll(OfTutorials):
  @nn.compact
  def __call__(self, x, **kwargs):
    return nn.Dense(3)(x.reshape(len(x), -1))


BATCH = {
  'image': np.zeros((2, 3, 3, 1), np.float32),
  'label': np.zeros(2, np.int32),
  'mask': np.ones(2, np.float32),
}


@pytest.mark.parametrize(
  ('model', 'missing'),
  [(OfTutorials(), 'no train and no mask'), (Trains(), 'no mask: ')],
)
def test_what_a_call_lacks_is_named_with_a_remedy(model, missing):
  method = supervised.make(model, optax.sgd(0.1))
  with pytest.raises(types.InputError, match=missing) as error:
    method.init(jax.random.key(0), BATCH)
  assert 'def __call__(self, x, *, train, mask=None)' in str(error.value)


def test_a_call_with_any_names_is_one():
  supervised.make(TakesAll(), optax.sgd(0.1)).init(jax.random.key(0), BATCH)
  call_signature.check(Trains(), ('train',))
  method = supervised.make(
    Trains(),
    optax.sgd(0.1),
    inputs=lambda batch: (model_inputs.image(batch)[0], {}),
  )
  method.init(jax.random.key(0), BATCH)
