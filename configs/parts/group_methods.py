"""Methods for two groups of rows, by their names in a config."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.methods import class_conditional
from repjax.methods import erm
from repjax.methods import group_dro
from repjax.methods import group_invariance
from repjax.methods import irm
from repjax.methods import vrex


def steps_of(epochs: float, epoch: float) -> int:
  """Updates of so many epochs, of `epoch` updates each; at least one."""
  return max(1, round(epochs * epoch))


def method(
  name: str,
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_classes: int,
  epoch: float,
  after: float,
  ramp: float,
  weight: float,
  other_weight: float,
  dro_step: float,
  weight_decay: float,
  **settings,
) -> types.Method:
  """A method of the comparison of Ahmed et al. (ICLR 2021).

  https://openreview.net/forum?id=b9PoimzZFJ

  Args:
    name: 'pgi'; 'erm' without groups; 'reweight', the same on rows that bring
      a column 'weight'; 'balanced' groups; 'irm', 'vrex', 'group_dro'; and
      class by class 'cirm', 'cvrex', 'cdro', 'cmmd'.
    model: Classifier.
    tx: Optax chain, which the weight decay is put in front of.
    num_classes: C.
    epoch: Updates of an epoch.
    after: Epochs before penalties begin.
    ramp: Epochs in which their weight rises.
    weight: Of PGI's penalty.
    other_weight: Of the penalties of all others. The sums of IRM and V-REx
      (of all rows and by class), and their weight decay with them, are divided
      by what has risen of it where that is above 1, as in the authors' code.
    dro_step: Of the weights of GroupDRO.
    weight_decay: gamma, a part of the gradient.
    **settings: microbatches and so on; see `methods.step.make`.
  """
  groups, classes = dict(num_groups=2), dict(num_classes=num_classes)
  rising = group_invariance.ramp(
    weight if name == 'pgi' else other_weight,
    start=steps_of(after, epoch),
    steps=steps_of(ramp, epoch),
  )
  scaled = dict(weight=rising, rescale=True)
  kinds = dict(
    pgi=(group_invariance.make, dict(**classes, weight=rising)),
    erm=(erm.make, {}),
    reweight=(erm.make, {}),
    balanced=(erm.make, dict(**groups, balance='groups')),
    irm=(irm.make, dict(**groups, **scaled, form='vector')),
    vrex=(vrex.make, dict(**groups, **scaled)),
    group_dro=(group_dro.make, dict(**groups, step_size=dro_step)),
    cirm=(class_conditional.make, dict(**classes, **scaled, form='irm')),
    cvrex=(class_conditional.make, dict(**classes, **scaled, form='vrex')),
    cmmd=(class_conditional.make, dict(**classes, weight=rising, form='mmd')),
    cdro=(class_conditional.dro, dict(**classes, step_size=dro_step)),
  )
  make, own = presets.choose('method', name, kinds)
  # A schedule for all of them, so that each goes on from any other's state.
  decay = _decay(
    optim.divided(weight_decay, rising if 'rescale' in own else 1.0)
  )
  return make(model, optax.chain(decay, tx), **own, **settings)


def _decay(schedule: optax.Schedule) -> optax.GradientTransformation:
  """`optax.add_decayed_weights` of a schedule, which older ones do not take."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    strength = schedule(state.count)
    decayed = jax.tree.map(lambda g, p: g + strength * p, updates, params)
    return decayed, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(init, update)
