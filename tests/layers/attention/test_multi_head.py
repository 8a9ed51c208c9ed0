"""The layer around an attention."""

import jax
import jax.numpy as jnp
import pytest

from repjax.layers.attention import multi_head
from repjax.types import InputError


@pytest.mark.parametrize('num_heads', [3, 0, -2])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads):
  with pytest.raises(InputError, match='multiple of num_heads'):
    multi_head.MultiHeadAttention(num_heads).init(
      jax.random.key(0), jnp.ones((1, 3, 8)), train=False
    )


def test_rotary_attention_is_of_one_sequence_with_places():
  layer = multi_head.MultiHeadAttention(2, rotary=True)
  tokens, places = jnp.ones((1, 3, 8)), jnp.arange(3)[None]
  variables = layer.init(
    jax.random.key(0), tokens, train=False, positions=places
  )
  with pytest.raises(InputError, match='of its tokens'):
    layer.apply(variables, tokens, train=False)
  with pytest.raises(InputError, match='rotary=False'):
    layer.apply(variables, tokens, tokens, train=False, positions=places)
  state = multi_head.CrossState(
    jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3), bool)
  )
  with pytest.raises(InputError, match='rotary=False'):
    layer.apply(
      *(variables, tokens[:, :1]),
      **dict(train=False, positions=places[:, :1], state=state),
    )
