"""Mini-batches that share an update, for links that ask `grad_fn` again.

`optax.MultiSteps` gives its chain the mean gradient of k mini-batches and the
`grad_fn` of the last one, so that a link which asks again never sees the
others. And it cannot: SAM's second gradient is about all k at a point that is
known when the last of them has come. So one update gets them all, in the memory
of one:

    grad_fn = optim.over_batches(grad_fn_of, batches)  # [k, ...]
    grads, aux = grad_fn(params)
    updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from repjax import types


def over_batches(
  grad_fn_of: Callable[[Any], Callable[..., tuple[types.PyTree, Any]]],
  batches: types.PyTree,
) -> Callable[..., tuple[types.PyTree, Any]]:
  """The gradient of k mini-batches together, one after the other.

  For losses that give a mean. With one loss a row take `microbatches=k` of
  `repjax.gradients.GradFn` on all rows at once, which weighs rows alike
  (mini-batches count alike here) and answers all that links ask.

  Args:
    grad_fn_of: Mini-batch -> its `grad_fn`: (params, sync=True) -> (gradient,
      whatever comes with it).
    batches: k mini-batches of one shape, stacked, [k, ...].

  Returns:
    (params, sync=True) -> (mean of the k gradients, what came with each,
    [k, ...]).

  >>> pull = lambda target: lambda w, sync=True: (w - target, None)
  >>> grads, _ = over_batches(pull, jnp.array([1.0, 3.0]))(jnp.zeros(()))
  >>> float(grads)
  -2.0
  """

  def grad_fn(params, *, sync=True):
    def one(batch):
      return grad_fn_of(batch)(params, sync=sync)

    def add(total, batch):
      grads, aux = one(batch)
      return jax.tree.map(jnp.add, total, grads), aux

    like, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batches))
    # A sum in half precision stops growing at 256 equal terms.
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
      like,
    )
    total, aux = jax.lax.scan(add, zeros, batches)
    count = len(jax.tree.leaves(batches)[0])
    mean = jax.tree.map(lambda x, y: (x / count).astype(y.dtype), total, like)
    return mean, aux

  return grad_fn
