"""What comes of pretraining without labels, and how training goes on from it.

U-WILDS (Sagawa et al., ICLR 2022, https://arxiv.org/abs/2112.05090) pretrains
networks by SwAV on rows without labels, and trains them with labels after that.
"""

from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from repjax import start
from repjax import types

# Layers that start afresh: the classifier's last one, and DANN's adversary.
_OWN = ('head', 'adversary')


def begun(
  state: types.TrainState, variables: Mapping[str, types.PyTree]
) -> types.TrainState:
  """A fresh state whose network is that of a pretrained one, but for its head.

  Args:
    state: Of an algorithm of WILDS, fresh; of one model or of many.
    variables: Of a method that has the network in 'model', as `swav` does.

  Raises:
    InputError: If the networks differ; names the leaf.
  """
  params = variables['params']['model']
  if 'adversary' in state.params:
    params = {'model': params}
  state = start.with_params(
    state,
    params,
    keep=lambda path: path[0] in _OWN or path[:2] == ('model', 'head'),
    what='config.pretrained',
  )
  kept = {k: x for k, x in variables.items() if k in ('batch_stats',)}
  return state.replace(model_state={**state.model_state, **kept})


def from_run(workdir: str) -> Callable[[types.TrainState], types.TrainState]:
  """(fresh state) -> the state to train from; as it is if no run is named.

  Args:
    workdir: Of a run of 'swav', or ''.

  Raises:
    InputError: If there is no such run, or it was one of another kind.
  """
  if not workdir:
    return lambda state: state
  variables = start.from_run(workdir, field='config.pretrained')
  if not {'model', 'prototypes'} <= set(variables['params']):
    raise types.InputError(
      f'config.pretrained={workdir} has not been pretrained: train one with '
      '--config.algorithm=swav, or name a run that starts from it as '
      '--config.teacher.'
    )
  return lambda state: begun(state, variables)


def measure(
  outputs: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """What clusters say of labels that they have never seen.

  Args:
    outputs: 'scores' [N, K].
    columns: 'label' [N].

  Returns:
    'accuracy' of guessing the most frequent label of a row's cluster, of the
    same rows, and 'clusters', how many have rows.
  """
  cluster, label = outputs['scores'].argmax(-1), columns['label']
  table = np.zeros((outputs['scores'].shape[1], label.max() + 1), int)
  np.add.at(table, (cluster, label), 1)
  return {
    'accuracy': float(table.max(1).sum() / len(label)),
    'clusters': float((table.sum(1) > 0).sum()),
  }
