"""What a run starts from: another run, a published file, or another state.

Each gives parameters, and all that a state keeps of them follows here: trained
and frozen ones, their average, and what a link of the optimizer holds on to.

    # A file: a function that fills parameters, of which a new head stays.
    load = functools.partial(vit_weights.load_vit, 'vit.npz', head='replace')
    state = start.fill(state, load)

    # Another run, whatever it was a run of.
    old = frozen.joined(start.from_run('/tmp/probe'))
    state = start.with_params(state, old, keep=lambda path: path[0] == 'head')

`state` is fresh from `method.init`: an optimizer's moments stay as that made
them.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Literal

from flax import traverse_util
import jax

from repjax import checkpoint
from repjax import files
from repjax import trees
from repjax import types
from repjax.layers import frozen
from repjax.methods import step as steps

# Where methods that train more than a network have it, and its collection of
# running means and variances.
_NETWORK, _STATISTICS = 'model', 'batch_stats'


def parameters(
  state: types.TrainState, *, keep: frozen.Predicate = frozen.nothing
) -> types.PyTree:
  """All parameters of a state, trained and frozen ones, in one tree.

  Args:
    state: Of any method.
    keep: Path of a parameter -> whether to leave it out, as
      `adapters.added(model)` does.
  """
  leaves = traverse_util.flatten_dict(frozen.joined(_variables(state)))
  return traverse_util.unflatten_dict(
    {path: x for path, x in leaves.items() if not keep(path)}
  )


def with_params(
  state: types.TrainState,
  params: types.PyTree,
  *,
  keep: frozen.Predicate = frozen.nothing,
  what: str = 'The parameters to start from',
) -> types.TrainState:
  """The state with other parameters, wherever it has any.

  Args:
    state: Of a method of `methods.step`; fresh from its `init`.
    params: One tree of all parameters, trained and frozen, as `parameters` and
      `from_run` give it. They get the types of the old ones.
    keep: Path of a parameter -> whether it stays as it is, as a new head does,
      or an adapter; `params` need not have it, and may have another there.
    what: What `params` are, for the error: 'config.weights=vit.npz'.

  Raises:
    InputError: A leaf is missing, left over or of another shape; names it.
  """
  model_state, params = steps.pop_params(
    frozen.with_params(_variables(state), params, keep=keep, what=what)
  )
  averaged = isinstance(state.extra, steps.EmaState)
  return state.replace(
    params=params,
    model_state=model_state,
    extra=steps.average_from(params, model_state) if averaged else state.extra,
    opt_state=jax.tree.map(
      lambda x: x.started_at(params) if _holds_on(x) else x,
      state.opt_state,
      is_leaf=_holds_on,
    ),
  )


def fill(
  state: types.TrainState,
  load: Callable[[types.PyTree], types.PyTree],
  *,
  keep: frozen.Predicate = frozen.nothing,
) -> types.TrainState:
  """The state with the parameters that a function makes of its own ones.

  Args:
    state: Of a method of `methods.step`; fresh from its `init`.
    load: Parameters as `init` drew them -> a tree like it with pretrained
      leaves, as all of `repjax.weights` do. What it leaves, such as a new head,
      is what `init` drew.
    keep: Path of a parameter -> whether it stays and `load` does not see it:
      `adapters.added(model)`.
  """
  return with_params(state, load(parameters(state, keep=keep)), keep=keep)


def from_run(
  workdir: str | os.PathLike,
  *,
  field: str = 'workdir',
  step: int | None = None,
  which: Literal['trained', 'averaged', 'predicted'] = 'trained',
) -> dict[str, types.PyTree]:
  """The variables of a run's model, as they were last saved.

  The experiment need not be built again: arrays are read by their names.

  Args:
    workdir: That `run.fit` has written.
    field: Where the user has named it, for the error: 'config.pretrained'.
    step: Of the checkpoint; the newest whole one if None.
    which: Parameters that were 'trained', 'averaged' ones, or those that it
      'predicted' by: averaged where it keeps an average.

  Returns:
    'params' and the model's other collections; `frozen.joined` makes one tree
    of trained and frozen parameters. Keys of random numbers are their words.

  Raises:
    InputError: There is no such checkpoint, or it has no average, or `which`
      is another word.
  """
  types.check_choice('which', which, ('trained', 'averaged', 'predicted'))
  folder = files.path_of(workdir) / 'checkpoints'
  stored = None
  if folder.is_dir():
    store = checkpoint.Checkpoints(str(folder), read_only=True)
    stored = store.read(step=step)
    store.close()
  if stored is None:
    raise types.InputError(
      f'{field}={workdir} holds no checkpoint of a run: give the --workdir of '
      'one that has been trained.'
    )
  leaves = {tuple(name.split('/')): x for name, x in stored.arrays.items()}
  has_average = any(x[:2] == ('extra', 'params') for x in leaves)
  if which == 'averaged' and not has_average:
    raise types.InputError(
      f'{field}={workdir} keeps no average of its parameters '
      '(config.step.ema_decay=0).'
    )
  saved = traverse_util.unflatten_dict(leaves)
  variables = {**saved.get('model_state', {}), 'params': saved['params']}
  if which != 'trained' and has_average:
    average = saved['extra']
    variables['params'] = average['params']
    for name, x in average.get('statistics', {}).items():
      whole = name.endswith('batch_stats')  # Or of a second model.
      variables[name] = x if whole else {**variables[name], **x}
  return variables


def with_network(
  state: types.TrainState,
  variables: Mapping[str, types.PyTree],
  *,
  head: str = 'head',
  without: Sequence[str] = (),
  what: str = 'The network to start from',
) -> types.TrainState:
  """The state whose network is another one's, but for its last layer.

  Methods that train more than a network (`dann`, `swav`) have it in 'model';
  what else they train stays as it is.

  Args:
    state: Of a method of `methods.step`, fresh; of one model or of many.
    variables: As `from_run` gives them. Batch statistics come along.
    head: Name of the last layer.
    without: Names of layers that only the other one has, above its features.
    what: What the network is, for the error.

  Raises:
    InputError: A leaf is missing, left over or of another shape; names it.
  """
  params = frozen.joined(variables)
  params = params.get(_NETWORK, params)
  params = {k: x for k, x in params.items() if k not in without}
  nested = _NETWORK in state.params
  # Before the parameters: an average begins with these, too.
  state = _with_statistics(state, variables.get(_STATISTICS, {}), what)

  def keep(path):
    if nested:
      return path[0] != _NETWORK or path[1] == head
    return path[0] == head

  return with_params(
    state, {_NETWORK: params} if nested else params, keep=keep, what=what
  )


def _with_statistics(state, statistics, what):
  """The state with batch statistics of the layers that it has."""
  flat = traverse_util.flatten_dict
  old = flat(state.model_state.get(_STATISTICS, {}))
  new = {path: x for path, x in flat(statistics).items() if path in old}
  if not new:
    return state
  trees.check_leaves(new, {path: old[path] for path in new}, what=what)
  made = traverse_util.unflatten_dict({**old, **new})
  return state.replace(model_state={**state.model_state, _STATISTICS: made})


def begin_from(
  workdir: str,
  *,
  head: str = 'head',
  without: Sequence[str] = (),
  field: str = 'config.pretrained',
) -> Callable[[types.TrainState], types.TrainState]:
  """(fresh state) -> one with the network of another run, but for its head.

  Args:
    workdir: Of that run; '' for none: states stay as they are.
    head: Name of the last layer.
    without: Names of layers that only that run's network has.
    field: Where the user has named the run, for the error.

  Raises:
    InputError: There is no such run; when a state is given, if it has another
      network.
  """
  if not workdir:
    return lambda state: state
  variables = from_run(workdir, field=field)
  return lambda state: with_network(
    state,
    variables,
    head=head,
    without=without,
    what=f'{field}={workdir}',
  )


def as_predicted(state: types.TrainState) -> types.TrainState:
  """The state whose parameters are what its method predicts with.

  Those are averaged ones, where a run keeps an average; it is dropped then.
  """
  if not isinstance(state.extra, steps.EmaState):
    return state
  model_state, params = steps.pop_params(steps.variables(state))
  return state.replace(params=params, model_state=model_state, extra=())


def _variables(state):
  return {'params': state.params, **state.model_state}


def _holds_on(x):
  """Whether it is the state of a link that knows where training started."""
  return hasattr(x, 'started_at')
