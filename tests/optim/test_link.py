"""Every link that needs more than the gradient says what it misses."""

import jax
import jax.numpy as jnp
import pytest

from repjax import optim
from repjax.optim import rehearsal
from repjax.types import InputError

PARAMS = {'w': jnp.ones(2)}
LINKS = {
  'a_gem': rehearsal.a_gem(),
  'dp_sgd': optim.dp_sgd(
    1.0, 1.0, expected_batch_size=4, key=jax.random.key(0)
  ),
  'gradient_vaccine': optim.gradient_vaccine(2),
  'sam': optim.sam(0.1),
  'task_cosines': optim.task_cosines(2),
}


@pytest.mark.parametrize('name', LINKS)
def test_what_is_missing_is_named_with_the_link(name):
  state = LINKS[name].init(PARAMS)
  call = r'call tx\.update\(grads, opt_state, params, grad_fn=grad_fn\)'
  for args, settings, missing in (
    ((PARAMS,), {}, 'grad_fn'),
    ((), {'grad_fn': lambda params: (params, None)}, 'params'),
    ((), {}, 'params and grad_fn'),
  ):
    with pytest.raises(InputError, match=f'^{name} needs {missing}: {call}'):
      LINKS[name].update(PARAMS, state, *args, **settings)


def test_a_link_without_need_of_a_grad_fn_asks_for_params_alone():
  link = rehearsal.ewc(1.0)
  with pytest.raises(InputError, match=r'^ewc needs params: '):
    link.update(PARAMS, link.init(PARAMS))
