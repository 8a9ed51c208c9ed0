"""LP-FT: fit the head on frozen features first, then fine-tune everything.

Kumar, Raghunathan, Jones, Ma and Liang, 'Fine-Tuning can Distort Pretrained
Features and Underperform Out-of-Distribution', ICLR 2022. A random head sends
large gradients into the backbone, which moves the features of the training
distribution and leaves those of other inputs behind. A head that fits already
(`repjax.analysis.linear_probe`, or `make(stage='probe')`) has little to send.

    state = method.init(rng, batch)
    state = lp_ft.begin(state, lp_ft.with_backbone(state.params, pretrained))
    probe = linear_probe.of_model(model, state, ...)
    state = lp_ft.begin(state, lp_ft.with_head(state.params, *probe.head))

and then `loop.fit` from that state. Two older ways of keeping features are
here to compare with: `l2_sp` and `interpolate` (WiSE-FT).
"""

from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import trees
from repjax import types
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.methods import supervised
from repjax.types import InputError

Stage = Literal['probe', 'tune']


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  stage: Stage = 'tune',
  head: str = 'head',
  mode: Literal['eval', 'train'] = 'eval',
  inputs: model_inputs.Inputs = model_inputs.image,
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy from a given start, in the head or everywhere.

  Args:
    model: As for `supervised.make`.
    tx: Optax chain. With stage='probe' it sees the head alone.
    stage: 'probe' trains the head and leaves all else bit for bit; 'tune'
      trains everything (`partition` gives the head a rate of its own).
    head: Module names of the head, joined by '/'.
    mode: 'eval' runs the network in training as it is evaluated: batch norms
      use the running statistics and keep them, nothing is dropped. This is
      what makes tuning start at the probe, and what the authors' code does
      with `use_net_val_mode`. 'train' is the usual mode, for 'tune' only.
    inputs: See `supervised.make`.
    **settings: Other arguments of `supervised.make`.

  Returns:
    A `types.Method`. `init` draws a new head and a new backbone: see `begin`.

  Raises:
    InputError: If the stage or the mode is unknown, or they do not go together;
      by `init`, if the model has no such head.
  """
  if stage not in ('probe', 'tune') or mode not in ('eval', 'train'):
    raise InputError(
      f"stage is 'probe' or 'tune', mode 'eval' or 'train'; got {stage=}, "
      f'{mode=}'
    )
  if stage == 'probe':
    if mode == 'train':
      raise InputError(
        "A probe is trained in mode='eval': mode='train' would move the "
        'statistics of the frozen backbone.'
      )
    tx = partition(at_head=tx, elsewhere=optax.set_to_zero(), head=head)
  if mode == 'eval':
    settings['apply_fn'] = _eval_forward
  method = supervised.make(model, tx, inputs=inputs, **settings)

  def init(rng, batch):
    state = method.init(rng, batch)
    _leaves_of_head(state.params, head)  # A misspelt head is found here.
    return state

  return method._replace(init=init)


def _eval_forward(model, inputs, variables, batch, rng):
  del rng  # Nothing is drawn.
  model_state, _ = steps.pop_params(variables)
  return model_inputs.evaluate(model, inputs, variables, batch), model_state


# Where training starts.


def with_backbone(
  params: types.PyTree, pretrained: types.PyTree, *, head: str = 'head'
) -> types.PyTree:
  """Takes all but the head from a pretrained network.

  Args:
    params: Of the new network; keeps its head.
    pretrained: Its head may be missing, or of another shape.
    head: Module names of the head, joined by '/'.

  Raises:
    InputError: If a leaf of the backbone is missing, left over or of another
      shape; names it.
  """
  old, new = trees.flatten(pretrained), trees.flatten(params)
  own = _leaves_of_head(params, head)
  missing = sorted('/'.join(path) for path in new.keys() - old.keys() - own)
  left_over = sorted(
    '/'.join(path)
    for path in old.keys() - new.keys()
    if not _is_under(path, head)
  )
  if missing or left_over:
    raise InputError(
      f'The pretrained parameters do not fit outside of {head=}: missing '
      f'{missing}, left over {left_over}.'
    )

  def choose(path, leaf):
    if path in own:
      return leaf
    if np.shape(old[path]) != np.shape(leaf):
      raise InputError(
        f'The pretrained {"/".join(path)} has shape {np.shape(old[path])}; the '
        f'network wants {np.shape(leaf)}.'
      )
    return jnp.asarray(old[path], leaf.dtype)

  return _map_with_path(choose, params)


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
  names = {path[-1]: path for path in _leaves_of_head(params, head)}
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
  return _map_with_path(
    lambda path, leaf: jnp.asarray(by_path.get(path, leaf), leaf.dtype), params
  )


def begin(state: types.TrainState, params: types.PyTree) -> types.TrainState:
  """The state with these parameters, which `l2_sp` then holds on to.

  Args:
    state: Fresh from `method.init`; the optimizer's moments are as it made
      them.
    params: Where to start.
  """
  return steps.with_params(
    state.replace(
      opt_state=jax.tree.map(
        lambda x: L2SpState(params) if isinstance(x, L2SpState) else x,
        state.opt_state,
        is_leaf=lambda x: isinstance(x, L2SpState),
      )
    ),
    params,
  )


# What the head sees.


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
    inputs: See `supervised.make`.

  Returns:
    (state, batch) -> 'features' [B, D], flattened and float32, and 'logits'.

  Raises:
    InputError: When called, if the model has no such layer or applies it more
      than once.
  """

  def predict(state, batch):
    seen, found = set(), []

    def interceptor(next_fn, args, kwargs, context):
      name = '/'.join(context.module.path)
      if context.method_name == '__call__' and name:
        seen.add(name)
        if name == layer:
          found.append(args[0] if args else next(iter(kwargs.values())))
      return next_fn(*args, **kwargs)

    with nn.intercept_methods(interceptor):
      logits = model_inputs.evaluate(
        model, inputs, steps.variables(state), batch
      )
    if len(found) != 1:
      raise InputError(
        f'The model applies the layer {layer!r} {len(found)} times, not once.'
        f'{trees.nearest(layer, seen)} It has: {", ".join(sorted(seen))}'
      )
    rows = found[0].reshape((len(found[0]), -1)).astype(jnp.float32)
    return {'features': rows, 'logits': logits.astype(jnp.float32)}

  return predict


# Optimizers.


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
    own = _leaves_of_head(params, head)
    return _map_with_path(
      lambda path, _: 'head' if path in own else 'backbone', params
    )

  return optax.multi_transform({'head': at_head, 'backbone': elsewhere}, groups)


class L2SpState(NamedTuple):
  """State of `l2_sp`.

  Attributes:
    start: Parameters that are held on to.
  """

  start: types.PyTree


def l2_sp(
  strength: float, *, head_strength: float = 0.0, head: str = 'head'
) -> optax.GradientTransformation:
  """Adds the gradient of a pull towards the start, the penalty L2-SP.

  Li, Grandvalet and Davoine, 'Explicit Inductive Bias for Transfer Learning
  with Convolutional Networks', ICML 2018: strength / 2 |w - w0|^2 for the
  backbone, head_strength / 2 |w|^2 for the head, which has no start. The code
  of LP-FT leaves out the halves, and has no penalty on the head.

  It goes before the optimizer. The start is what `init` gets, or `begin`.
  """
  if strength < 0 or head_strength < 0:
    raise InputError(f'Need strengths >= 0; got {strength=}, {head_strength=}')

  def init_fn(params):
    _leaves_of_head(params, head)
    # A copy: a buffer that a state holds twice must not be donated.
    return L2SpState(jax.tree.map(jnp.copy, params))

  def update_fn(updates, state, params):
    start = trees.flatten(state.start)
    at, own = trees.flatten(params), _leaves_of_head(params, head)

    def add(path, update):
      if path in own:
        return update + head_strength * at[path]
      return update + strength * (at[path] - start[path])

    return _map_with_path(add, updates), state

  return optax.GradientTransformation(init_fn, update_fn)


def interpolate(
  start: types.PyTree, end: types.PyTree, share: float
) -> types.PyTree:
  """(1 - share) * start + share * end: WiSE-FT, with a share of 0.5.

  Wortsman et al., 'Robust fine-tuning of zero-shot models', CVPR 2022. Their
  start is a zero-shot classifier; the probed network stands for it here.
  """
  if not 0 <= share <= 1:
    raise InputError(f'Need 0 <= share <= 1; got {share=}')
  return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, end)


def _is_under(path, head):
  names = tuple(head.split('/'))
  return path[: len(names)] == names


def _leaves_of_head(params, head):
  """Paths of the head's leaves; raises if there are none."""
  paths = list(trees.flatten(params))
  own = {path for path in paths if _is_under(path, head)}
  if not own:
    modules = sorted({'/'.join(path[:-1]) for path in paths})
    raise InputError(
      f'The network has no parameters under {head=}.'
      f'{trees.nearest(head, modules)} It has: {", ".join(modules)}'
    )
  return own


def _map_with_path(fn, tree):
  leaves = [fn(path, leaf) for path, leaf in trees.flatten(tree).items()]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)
