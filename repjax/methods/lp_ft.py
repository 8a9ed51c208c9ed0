"""LP-FT: fit the head on frozen features first, then fine-tune everything.

Kumar, Raghunathan, Jones, Ma and Liang, 'Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution', ICLR 2022,
https://arxiv.org/abs/2202.10054. A random head sends large gradients into the
backbone, which moves the features of the training distribution and leaves those
of other inputs behind. A head that fits already (`protocols.linear_probe`, or
`layers.frozen.train_only`) has little to send.

    state = method.init(rng, batch)
    state = start.with_params(state, pretrained, keep=lambda p: p[0] == 'head')
    probe = linear_probe.of_model(model, state, ...)
    params = lp_ft.with_head(state.params, *probe.head)
    state = start.with_params(state, params)

and then `loop.fit` from that state. Two older ways of keeping features are
here to compare with: `optim.l2_sp` and `interpolate` (WiSE-FT).
"""

from collections.abc import Callable
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.layers import layer_inputs
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.methods import supervised
from repjax.types import InputError


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  mode: Literal['eval', 'train'] = 'eval',
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy from a given start.

  Args:
    model: A classifier, as in `supervised.make`; `frozen.train_only` of it
      trains the head alone, and `partition` gives the head a rate of its own.
    tx: Optax chain.
    mode: 'eval' runs the network in training as it is evaluated: batch norms
      use the running statistics and keep them, nothing is dropped. This is
      what makes tuning start at the probe, and what the authors' code does
      with `use_net_val_mode`. 'train' is the usual mode.
    inputs: What the model is called with, in place of images.
    **settings: Other arguments of `supervised.make`.

  Returns:
    A `types.Method`. `init` draws a new head and a new backbone; see `start`.

  Raises:
    InputError: If the mode is unknown, or a frozen backbone would move in it.
  """
  if mode not in ('eval', 'train'):
    raise InputError(f"mode is 'eval' or 'train'; got {mode=}")
  if mode == 'train' and isinstance(model, frozen.PartlyTrained):
    raise InputError(
      "What is frozen needs mode='eval': mode='train' would move the "
      'statistics of the frozen backbone.'
    )
  if mode == 'eval':
    settings['apply_fn'] = _eval_forward
  return supervised.make(model, tx, inputs=inputs, **settings)


def _eval_forward(model, inputs, variables, batch, rng):
  del rng  # Nothing is drawn.
  model_state, _ = steps.pop_params(variables)
  return model_inputs.evaluate(model, inputs, variables, batch), model_state


def with_head(
  params: types.PyTree,
  kernel: np.ndarray,
  bias: np.ndarray,
  *,
  head: str = 'head',
) -> types.PyTree:
  """Puts a linear classifier where the head is.

  Args:
    params: Of the network.
    kernel: [D, C].
    bias: [C]; must be zero if the head has none.
    head: Module names of an `nn.Dense`, joined by '/'.

  Raises:
    InputError: If the network has no such head, or of another shape.
  """
  given = {'kernel': np.asarray(kernel), 'bias': np.asarray(bias)}
  names = {path[-1]: path for path in trees.under(params, head)}
  leaves = trees.flatten(params)
  wanted = {name: np.shape(leaves[path]) for name, path in names.items()}
  found = {name: x.shape for name, x in given.items()}
  if 'bias' not in wanted and not given['bias'].any():
    del found['bias']
  if wanted != found:
    raise InputError(
      f'{head=} has the parameters {wanted}; the given classifier has {found} '
      '(fit it with intercept=False for a head without bias).'
    )
  by_path = {path: given[name] for name, path in names.items()}
  return trees.map_with_path(
    lambda path, leaf: jnp.asarray(by_path.get(path, leaf), leaf.dtype), params
  )


def features(
  model: nn.Module,
  *,
  layer: str = 'head',
  inputs: model_inputs.Inputs = model_inputs.image,
) -> Callable[[types.TrainState, types.Batch], dict[str, jax.Array]]:
  """A `predict` that gives the input of one layer, too, in evaluation mode.

  Args:
    model: Any linen network.
    layer: Module names, joined by '/'; what the head sees are the features.
    inputs: What the model is called with, in place of images.

  Returns:
    (state, batch) -> 'features' [B, D], flattened and float32, and 'logits'.

  Raises:
    InputError: When called, if the model has no such layer or applies it more
      than once.
  """

  def predict(state, batch):
    logits, rows = layer_inputs.with_input_of(
      lambda: model_inputs.evaluate(
        model, inputs, steps.variables(state), batch
      ),
      layer,
    )
    return {'features': rows, 'logits': logits.astype(jnp.float32)}

  return predict


def partition(
  *,
  at_head: optax.GradientTransformation,
  elsewhere: optax.GradientTransformation,
  head: str = 'head',
) -> optax.GradientTransformation:
  """One optimizer for the head and one for the backbone.

  Higher rates for the head are `partition(at_head=optax.sgd(1e-1),
  elsewhere=optax.sgd(1e-3))`.

  Args:
    at_head: Sees the head's leaves alone.
    elsewhere: Sees all others.
    head: Module names of the head, joined by '/'.
  """

  def groups(params):
    own = trees.under(params, head)
    return trees.map_with_path(
      lambda path, _: 'head' if path in own else 'backbone', params
    )

  return optax.multi_transform({'head': at_head, 'backbone': elsewhere}, groups)


def interpolate(
  start: types.PyTree, end: types.PyTree, share: float
) -> types.PyTree:
  """(1 - share) * start + share * end: WiSE-FT, with a share of 0.5.

  Wortsman et al., 'Robust fine-tuning of zero-shot models', CVPR 2022,
  https://arxiv.org/abs/2109.01903. Their start is a zero-shot classifier; the
  probed network stands for it here. Both are trees of all that moved between
  them: with mode='train', of batch statistics too.
  """
  if not 0 <= share <= 1:
    raise InputError(f'Need 0 <= share <= 1; got {share=}')
  return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, end)
