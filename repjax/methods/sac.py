"""Device code: soft actor-critic, with a self-supervised task beside it.

Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel and
Levine, 'Soft Actor-Critic Algorithms and Applications', 2018
(https://arxiv.org/abs/1812.05905), in the form that PAD trains its agents with
(https://arxiv.org/abs/2007.04309): the encoder learns from the critic and the
task, and never from the actor.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from repjax import gradients
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.methods import squashed_policy
from repjax.methods import step as steps
from repjax.models import agent as agents
from repjax.optim import link

# A stream of an update's key beside those of the losses, and the column of the
# normal numbers that actions are drawn by.
_TRANSFORM, _NOISE = 3, 'action_noise'


class SacState(NamedTuple):
  """What soft actor-critic keeps beside the agent's parameters.

  Attributes:
    target: Slow averages of the groups 'encoder' and 'critic'.
    log_temperature: Logarithm of what entropy is worth, a scalar.
  """

  target: types.PyTree
  log_temperature: jax.Array


class Optimizers(NamedTuple):
  """One for each loss; `opt_state` is this tuple of their states.

  Attributes:
    critic: Of the groups 'encoder' and 'critic'.
    actor: Of the group 'actor'.
    temperature: Of the logarithm of the temperature.
    task: Of the groups 'encoder' and 'task'; in the authors' code the encoder
      has an optimizer of its own here, too, beside the critic's.
  """

  critic: Any
  actor: Any
  temperature: Any
  task: Any


class Every(NamedTuple):
  """Updates of the critic from one update to the next, of the rest.

  Attributes:
    actor: Of actor and temperature.
    target: Of the slow averages.
    task: Of the self-supervised task.
  """

  actor: int = 2
  target: int = 2
  task: int = 2


def make(
  model: agents.Agent,
  tx: Optimizers,
  *,
  action_dim: int,
  discount: float = 0.99,
  temperature: float = 0.1,
  critic_decay: float = 0.99,
  encoder_decay: float = 0.95,
  every: Every = Every(),
  task: types.LossFn | None = None,
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  view: Callable[[jax.Array], jax.Array] = lambda x: x,
  column: str = 'image',
) -> types.Method:
  """Learns from transitions, of whichever policy they are.

  Args:
    model: With a critic; with a task where there is a loss for it.
    tx: One optax chain for each loss.
    action_dim: Numbers of an action, A. The target of the entropy is -A.
    discount: What the next step's value counts, in [0, 1].
    temperature: What entropy is worth at the beginning, > 0.
    critic_decay: Part of the slow average of both values' layers that stays,
      in [0, 1].
    encoder_decay: That of what they read, as in the authors' code: the encoder
      and the critic's projection.
    every: How often the rest is updated.
    task: The self-supervised loss, or None for none.
    transform: (batch, rng) -> batch on the devices, before the losses, such as
      random crops; `rng` is equal on all devices.
    view: Of observations [B, ...], what the policy acts on, such as their
      middle.
    column: Of observations.

  Returns:
    A `types.Method` over batches of `column`, `next_` + `column`, 'action' [B,
    A] in [-1, 1], 'reward' [B] and 'discount' [B], 0 where the world ended for
    good (not where time was up), else 1. `predict` gives 'action', the
    policy's mode. The sums' 'loss' is the critic's.

  Raises:
    InputError: If a setting is out of range.
  """
  types.check_range('[1, inf)', action_dim=action_dim, **_each(every))
  types.check_range('(0, inf)', temperature=temperature)
  types.check_range(
    '[0, 1]',
    discount=discount,
    critic_decay=critic_decay,
    encoder_decay=encoder_decay,
  )

  def decay(path):
    is_read = path[0] == 'encoder' or path[:2] == ('critic', 'projection')
    return encoder_decay if is_read else critic_decay

  def critic_loss(state):
    weight = jnp.exp(state.extra.log_temperature)

    def loss_fn(params, model_state, batch, _):
      gaussian = model.apply(
        {'params': state.params}, batch[f'next_{column}'], method='policy'
      )
      action, log_prob = squashed_policy.squash(gaussian, batch[_NOISE])
      values = model.apply(
        {'params': state.extra.target},
        batch[f'next_{column}'],
        action,
        method='values',
      )
      target = targets(
        batch['reward'],
        discount * batch['discount'],
        values,
        log_prob,
        temperature=weight,
      )
      values = model.apply(
        {'params': params}, batch[column], batch['action'], method='values'
      )
      error = values - jax.lax.stop_gradient(target)[:, None]
      loss = jnp.square(error).sum(-1)
      return types.Losses(
        loss, model_state, {'loss': loss, 'value': values.mean(-1)}
      )

    return loss_fn

  def actor_loss(state):
    weight = jnp.exp(state.extra.log_temperature)

    def loss_fn(params, model_state, batch, _):
      # The encoder has moved with the critic, and does not with the actor.
      variables = {'params': {**state.params, **params}}
      gaussian = model.apply(
        variables, batch[column], stop=True, method='policy'
      )
      action, log_prob = squashed_policy.squash(gaussian, batch[_NOISE])
      values = model.apply(
        variables, batch[column], action, stop=True, method='values'
      )
      loss = weight * log_prob - values.min(-1)
      return types.Losses(
        loss, model_state, {'actor_loss': loss, 'entropy': -log_prob}
      )

    return loss_fn

  def descend(state, tx, name, groups, loss_fn, batch, rng):
    """One update of some groups: (state, sums)."""
    # Draws of actions stay with their rows.
    batch = {**batch, _NOISE: squashed_policy.noise(rng, batch['action'].shape)}
    grad_fn = gradients.GradFn(
      loss_fn, batch, parallel.device_rng(rng), state.model_state
    )
    chosen = {x: state.params[x] for x in groups}
    opt_state = state.opt_state._asdict()[name]
    chosen, opt_state, aux = steps.descend(tx, grad_fn, chosen, opt_state)
    state = state.replace(
      params={**state.params, **chosen},
      opt_state=state.opt_state._replace(**{name: opt_state}),
    )
    return state, aux.sums

  def act(state, batch, rng):
    """Actor and temperature."""
    state, sums = descend(
      state, tx.actor, 'actor', ('actor',), actor_loss(state), batch, rng
    )
    total, weight = sums['entropy']
    # d/d log_temperature of temperature * (entropy - target entropy).
    off = total / jnp.maximum(weight, 1.0) + action_dim
    off = jnp.where(weight > 0, off, 0.0)
    extra = state.extra
    updates, opt_state = tx.temperature.update(
      jnp.exp(extra.log_temperature) * off,
      state.opt_state.temperature,
      extra.log_temperature,
    )
    log_temperature = optax.apply_updates(extra.log_temperature, updates)
    state = state.replace(
      opt_state=state.opt_state._replace(temperature=opt_state),
      extra=extra._replace(log_temperature=log_temperature),
    )
    return state, sums

  def follow(state):
    slow = state.extra.target
    target = trees.map_with_path(
      lambda path, x, old: optax.incremental_update(x, old, 1 - decay(path)),
      {name: state.params[name] for name in slow},
      slow,
    )
    return state.replace(extra=state.extra._replace(target=target))

  def update(state, batch, rng):
    rng_critic, rng_actor, rng_task = jax.random.split(rng, 3)
    if transform is not None:
      batch = transform(batch, jax.random.fold_in(rng, _TRANSFORM))
    turn = state.step
    state, sums = descend(
      state,
      tx.critic,
      'critic',
      _present(state.params, ('encoder', 'critic')),
      critic_loss(state),
      batch,
      rng_critic,
    )
    state, of_actor = _sometimes(
      turn % every.actor == 0, lambda x: act(x, batch, rng_actor), state
    )
    state = jax.lax.cond(turn % every.target == 0, follow, lambda x: x, state)
    of_task = {}
    if task is not None:
      state, of_task = _sometimes(
        turn % every.task == 0,
        lambda x: descend(
          x,
          tx.task,
          'task',
          _present(x.params, ('encoder', 'task')),
          task,
          batch,
          rng_task,
        ),
        state,
      )
    one = jnp.ones(())
    sums = {
      **of_task,
      **of_actor,
      **sums,
      'temperature': (jnp.exp(state.extra.log_temperature), one),
    }
    return state.replace(step=turn + 1), sums

  def init(rng, batch):
    params = model.init(rng, view(batch[column]), batch['action'])['params']
    log_temperature = jnp.log(jnp.asarray(temperature, jnp.float32))
    slow = _present(params, ('encoder', 'critic'))
    opt_state = Optimizers(
      critic=tx.critic.init({x: params[x] for x in slow}),
      actor=tx.actor.init({'actor': params['actor']}),
      temperature=tx.temperature.init(log_temperature),
      task=tx.task.init(
        {x: params[x] for x in _present(params, ('encoder', 'task'))}
      ),
    )
    if 'dp_sgd' in link.asking(opt_state):
      raise types.InputError(
        'SAC is not private with dp_sgd: plain entropies move its temperature.'
      )
    target = jax.tree.map(jnp.copy, {x: params[x] for x in slow})
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=opt_state,
      model_state={},
      extra=SacState(target, log_temperature),
    )

  exploit = squashed_policy.exploiting(model, view=view)

  def predict(state, batch):
    return {'action': exploit(state.params, batch[column], rng=None)}

  return types.Method(init, update, predict)


def targets(
  reward: jax.Array,
  discount: jax.Array,
  values: jax.Array,
  log_prob: jax.Array,
  *,
  temperature: jax.Array | float,
) -> jax.Array:
  """What values should be: reward + discount (min of both - temperature log p).

  Args:
    reward: [B].
    discount: [B]; 0 where nothing comes after.
    values: Both slow critics' of the next observation and action, [B, 2].
    log_prob: Of that action, [B].
    temperature: What entropy is worth.

  Returns:
    [B].
  """
  return reward + discount * (values.min(-1) - temperature * log_prob)


def _sometimes(condition, fn, state):
  """fn(state) = (state, sums) under a condition; else zero sums."""
  shapes = jax.eval_shape(fn, state)[1]
  return jax.lax.cond(
    condition,
    fn,
    lambda state: (
      state,
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    ),
    state,
  )


def _present(params: Mapping[str, Any], names: tuple[str, ...]):
  """Those groups that an agent has: features need no encoder."""
  return tuple(x for x in names if x in params)


def _each(every):
  return {f'every.{name}': x for name, x in every._asdict().items()}
