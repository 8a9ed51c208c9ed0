"""Device code: a layer that imprints its input on the gradient, in any network.

Fowl, Geiping, Czaja, Goldblum and Goldstein, 'Robbing the Fed: Directly
Obtaining Private Data in Federated Learning with Modified Models', ICLR 2022,
section 3. https://arxiv.org/abs/2110.13057

All rows of its first matrix look along one direction, and differ by their
biases alone. So which rows a private input sets off is told by one number, and
the gradients of two rows differ by the inputs between their biases.
`repjax.attacks.imprint` chooses the parameters and reads the gradient.
"""

from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types

Kind = Literal['cumulative', 'sparse']
Connection = Literal['linear', 'addition', 'cat', 'softmax']

KINDS = ('cumulative', 'sparse')
CONNECTIONS = ('linear', 'addition', 'cat', 'softmax')


class Imprint(nn.Module):
  """Rows `rows`, and a way back to the shape of the input.

  Attributes:
    num_rows: k.
    kind: 'cumulative': relu, a row answers to all inputs above its bin's lower
      edge. 'sparse': two relus (a hard tanh), a row answers to the inputs of
      its own bin alone, and so steps of training leave the others in place.
    connection: How rows a [k] lead back to an output like the input x [d], by
      the names of the authors' code. 'linear': a layer `back`. 'addition': x +
      mean(a). 'cat': a in the place of the first k entries of x; each row then
      has an upstream gradient of its own, so that bins come apart with
      kind='sparse' alone. 'softmax': x times the sum of softmax(a), which is
      what the authors' code says: it is x, and no gradient reaches the rows.
    gain: Largest answer of a sparse row, > 0, in the units of its planted
      parameters.
    dtype: Type of the computation; None infers it from input and parameters.
  """

  num_rows: int
  kind: Kind = 'cumulative'
  connection: Connection = 'addition'
  gain: float = 1.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, ...] -> the same shape.

    Raises:
      InputError: If an attribute is unknown or the input does not fit.
    """
    types.check_choice('kind', self.kind, KINDS)
    types.check_choice('connection', self.connection, CONNECTIONS)
    types.check_range('[2, inf)', num_rows=self.num_rows)
    types.check_range('(0, inf)', gain=self.gain)
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise types.InputError(
        f'an imprint reads numbers, and what it is shown is {x.dtype}: put it '
        "behind the layer that embeds tokens, after='token_embedding'."
      )
    flat = x.reshape((x.shape[0], -1))
    if self.connection == 'cat' and self.num_rows > flat.shape[1]:
      raise types.InputError(
        f"connection='cat' puts num_rows={self.num_rows} into an input of "
        f'{flat.shape[1]} numbers: take fewer rows or another connection.'
      )
    rows = nn.Dense(self.num_rows, dtype=self.dtype, name='rows')(flat)
    seen = nn.relu(rows)  # [B, k]
    if self.kind == 'sparse':
      seen -= nn.relu(rows - self.gain)
    if self.connection == 'linear':
      back = nn.Dense(flat.shape[1], dtype=self.dtype, name='back')(seen)
    elif self.connection == 'addition':
      back = flat + seen.mean(1, keepdims=True)
    elif self.connection == 'cat':
      back = jnp.concatenate([seen, flat[:, self.num_rows :]], 1)
    else:
      back = flat * nn.softmax(seen).sum(1, keepdims=True)
    return back.reshape(x.shape)


class Imprinted(nn.Module):
  """Any linen model with an imprint in it.

  Attributes:
    model: As it is, with all arguments of its call.
    imprint: What is put in.
    after: The module of the model, names joined by '/', whose output goes
      through the imprint; '' is in front of the model.
  """

  model: nn.Module
  imprint: Imprint
  after: str = ''

  def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the model.

    Raises:
      InputError: If it has no module `after`, or applies it more than once.
    """
    if not self.after:
      return self.model(self.imprint(inputs), *args, **kwargs)
    seen, found = set(), []

    def intercept(next_fn, args, kwargs, context):
      out = next_fn(*args, **kwargs)
      path = context.module.path[1:]  # Without 'model'.
      if context.method_name != '__call__' or not path:
        return out
      seen.add('/'.join(path))
      if '/'.join(path) != self.after:
        return out
      found.append(self.after)
      if type(out) is tuple:  # A block returns more behind what it passes on.
        return self.imprint(out[0]), *out[1:]
      return self.imprint(out)

    with nn.intercept_methods(intercept):
      outputs = self.model(inputs, *args, **kwargs)
    if len(found) != 1:
      raise types.InputError(
        f'The model applies after={self.after!r} {len(found)} times, not once.'
        f'{trees.nearest(self.after, seen)} It has: {", ".join(sorted(seen))}'
      )
    return outputs
