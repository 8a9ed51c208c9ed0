"""What an attention takes: all, a part, or too little."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import attention
from repjax.layers import performer
from repjax.layers import rfa
from repjax.layers.attention import multi_head
from repjax.layers.attention import signature
from repjax.types import InputError

ARRAYS = [
  jnp.asarray(x, jnp.float32)
  for x in np.random.default_rng(0).normal(size=(3, 2, 5, 2, 4))
]


class Caller(nn.Module):
  """Calls an attention as layers do."""

  attention_fn: signature.AttentionFn

  def __call__(self, *arrays, **settings):
    return signature.call(self.attention_fn, *arrays, module=self, **settings)


def call(attention_fn, mutable=(), **settings):
  return Caller(attention_fn).apply({}, *ARRAYS, mutable=mutable, **settings)


@pytest.mark.parametrize(
  'fn', [attention.Softmax(), performer.Favor(), rfa.Rfa()]
)
def test_all_attentions_have_the_arguments_of_flax(fn):
  ours = inspect.signature(fn).parameters
  theirs = inspect.signature(nn.dot_product_attention).parameters
  assert list(ours) == list(theirs)[: len(ours)]
  assert [x.default for x in ours.values()] == [
    theirs[name].default for name in ours
  ]


def test_every_setting_arrives_under_its_name():
  names = [name for name in signature.Settings._fields if name != 'module']

  class Echo(signature.Attention):
    def _attend(self, query, key, value, settings):
      assert query is ARRAYS[0] and key is ARRAYS[1] and value is ARRAYS[2]
      return settings

  given = dict(zip(names, range(1, 9), strict=True))
  assert Echo()(*ARRAYS, **given) == (*range(1, 9), None)
  assert Echo()(*ARRAYS, *range(1, 10)) == tuple(range(1, 10))
  drops = [
    Echo()(*ARRAYS, dropout_rate=0.1, deterministic=x).drops for x in (0, 1)
  ]
  assert drops == [True, False]


def test_an_attention_gets_no_more_than_it_takes():
  def bare(query, key, value):
    return value

  def anything(query, key, value, **settings):
    return settings

  output, _ = call(bare, deterministic=True, dtype=None)
  assert output is ARRAYS[2]
  settings, _ = call(anything, ('intermediates',), mask=1, dtype=None)
  assert settings == dict(mask=1, dtype=None)


def test_what_would_be_lost_is_refused_by_name():
  def bare(query, key, value):
    return value

  with pytest.raises(InputError, match=r'bare.* takes no mask, which'):
    call(bare, mask=jnp.ones((2, 1, 1, 5)))
  with pytest.raises(InputError, match='no bias and no dropout_rate, which'):
    call(bare, bias=0, dropout_rate=0.1, broadcast_dropout=False)


def test_weights_are_shown_where_they_are_asked_for():
  _, sown = call(attention.Softmax(), ('intermediates',))
  (weights,) = sown['intermediates']['attention_weights']
  assert weights.shape == (2, 2, 5, 5)
  assert not call(attention.Softmax(), ('other',))[1]


def test_equal_rows_drop_weights_of_their_own():
  layer = multi_head.MultiHeadAttention(
    2, dropout_rate=0.5, kernel_init=nn.initializers.normal(1.0)
  )
  row = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
  tokens = np.repeat(row, 2, 0)
  variables = layer.init(jax.random.key(0), tokens, train=False)
  (one, other), _ = layer.apply(
    variables, tokens, train=True, rngs={'dropout': jax.random.key(1)}
  )
  assert np.abs(one - other).max() > 1e-3
