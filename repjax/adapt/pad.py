"""Device code: a deployed policy that adapts to the world that it meets.

Hansen, Jangir, Sun, Alenya, Abbeel, Efros, Pinto and Wang, 'Self-Supervised
Policy Adaptation during Deployment' (PAD), ICLR 2021.
https://arxiv.org/abs/2007.04309

There is no reward after deployment. After every step the encoder and the head
of a self-supervised task take one gradient step of the task's loss on the
transition that was just seen (sec. 3.3); the actor is frozen, and acts on what
the encoder has become.

    adapter = pad.make(loss_fn, optax.adam(1.0), transform=..., copies=32)
    state = adapter.init(params, rate=1e-3)
    state, loss = adapter.update(state, transition, rng)
    action = policy(state.params, observation)

`deploy` is many episodes of it side by side, acting and adapting in one scan.
"""

from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from repjax import trees
from repjax import types
from repjax.data.environments import environment

# What the task trains, of the groups of an agent's parameters
# (`models.agent`): all that is shared, and the task's own head. Convolutions
# of the encoder after the task branches off have no gradient, and stay.
ADAPTED = ('encoder', 'task')

# Mean loss of the last steps, about so many, that the harm detector looks at.
_MEMORY = 5.0

# (parameters, observation [...], key) -> action [A].
Act = Callable[[types.PyTree, jax.Array, jax.Array], jax.Array]


class AdaptState(NamedTuple):
  """One agent that adapts, in one episode.

  Attributes:
    params: All of the agent's parameters.
    opt_state: Of what adapts.
    rate: What updates are multiplied with; 0 is no adaptation.
    limit: Adaptation waits while the task's recent loss is at most this, as in
      training; -1 never waits.
    recent: Mean of the task's loss over the last steps, the latest the most.
    steps: Transitions seen, an int32 scalar.
  """

  params: types.PyTree
  opt_state: types.PyTree
  rate: jax.Array
  limit: jax.Array
  recent: jax.Array
  steps: jax.Array


class Transition(NamedTuple):
  """One step of one episode.

  Attributes:
    observation: What was seen, [...].
    action: What the agent did, [A].
    next_observation: What was seen then, [...].
  """

  observation: jax.Array
  action: jax.Array
  next_observation: jax.Array


class Adapter(NamedTuple):
  """How an agent adapts: pure functions of one agent; `jax.vmap` for more.

  Attributes:
    init: (params, rate, limit=-1) -> AdaptState.
    update: (state, transition, key) -> (state, the task's loss before it).
  """

  init: Callable[..., AdaptState]
  update: Callable[
    [AdaptState, Transition, jax.Array], tuple[AdaptState, jax.Array]
  ]


def make(
  loss_fn: types.LossFn,
  tx: optax.GradientTransformation,
  *,
  copies: int = 32,
  transform: Callable[[types.Batch, jax.Array], types.Batch] | None = None,
  column: str = 'image',
  adapted: Callable[[trees.Path], bool] = lambda path: path[0] in ADAPTED,
) -> Adapter:
  """Adapts by one gradient of a self-supervised loss a step.

  Args:
    loss_fn: The task's loss, over batches of `column`, `next_` + `column` and
      'action'.
    tx: Optimizer of rate 1; `AdaptState.rate` is that of an agent. It begins
      anew with `init`, as in the authors' code.
    copies: Times that the transition is in the batch.
    transform: (batch, key) -> batch: what makes the copies differ, such as
      random crops; None for nothing, where one copy is enough.
    column: Of observations.
    adapted: Path of a parameter -> whether it adapts. All others are the same
      bits afterwards.

  Raises:
    InputError: If `copies` is not positive.
  """
  types.check_range('[1, inf)', copies=copies)

  def init(params, rate, limit=-1.0):
    chosen, _ = _divide(params, adapted)
    return AdaptState(
      params=params,
      opt_state=tx.init(chosen),
      rate=jnp.asarray(rate, jnp.float32),
      limit=jnp.asarray(limit, jnp.float32),
      recent=jnp.zeros(()),
      steps=jnp.zeros((), jnp.int32),
    )

  def update(state, transition, rng):
    rng_transform, rng_loss = jax.random.split(rng)
    batch = {
      column: transition.observation,
      f'next_{column}': transition.next_observation,
      'action': transition.action,
      'mask': jnp.ones(()),
    }
    batch = environment.repeat(batch, copies)
    if transform is not None:
      batch = transform(batch, rng_transform)
    chosen, still = _divide(state.params, adapted)

    def mean_loss(chosen):
      params = _join(chosen, still)
      return loss_fn(params, {}, batch, rng_loss).loss.mean()

    loss, grads = jax.value_and_grad(mean_loss)(chosen)
    recent = _recent_mean(state, loss)
    harmless = recent > state.limit
    updates, opt_state = tx.update(grads, state.opt_state, chosen)
    rate = jnp.where(harmless, state.rate, 0.0)
    moved = jax.tree.map(
      lambda x, u: x + (rate * u).astype(x.dtype), chosen, updates
    )
    opt_state = jax.tree.map(
      lambda new, old: jnp.where(harmless, new, old), opt_state, state.opt_state
    )
    state = state._replace(
      params=_join(moved, still),
      opt_state=opt_state,
      recent=recent,
      steps=state.steps + 1,
    )
    return state, loss

  return Adapter(init, update)


class Deployment(NamedTuple):
  """What E agents met in K episodes of T steps each.

  Attributes:
    reward: [K, T, E].
    loss: The task's loss before each update, [K, T, E].
    recent: Its mean over the last steps, which the harm detector looks at.
    adapting: Whether the harm detector let the agent adapt, [K, T, E].
    params: Parameters after the last step, with a leading axis E.
  """

  reward: jax.Array
  loss: jax.Array
  recent: jax.Array
  adapting: jax.Array
  params: types.PyTree


def deploy(
  env: environment.Environment,
  act: Act,
  adapter: Adapter,
  params: types.PyTree,
  looks: environment.Look,
  rng: jax.Array,
  *,
  rate: float | jax.Array,
  limit: float | jax.Array = -1.0,
  episodes: int = 1,
  reset: Literal['episode', 'never'] = 'episode',
  actions: Literal['own', 'shuffled'] = 'own',
) -> Deployment:
  """Episodes side by side, an agent each: act, see, adapt, in one scan.

  Args:
    env: The world.
    act: (params, observation, key) -> action; what the policy does.
    adapter: From `make`.
    params: Of the agent that is deployed in all of them.
    looks: Of the world of each agent, [E, ...]; the same in all its episodes.
    rng: Of the episodes: with the same key, agents of all rates begin at the
      same places.
    rate: Step size of the adaptation, of all or one each, [E]; 0 for none.
    limit: Loss up to which adaptation waits (see `training_limit`), of all or
      one each, [E].
    episodes: K, one after the other.
    reset: Whether an agent is as trained again at the beginning of each
      episode, as in the authors' code, or goes on adapting.
    actions: 'own' is PAD. 'shuffled' is its control: the task is told what
      another agent did in its place.

  Raises:
    InputError: If a setting is unknown or out of range.
  """
  types.check_choice('reset', reset, ('episode', 'never'))
  types.check_choice('actions', actions, ('own', 'shuffled'))
  types.check_range('[1, inf)', episodes=episodes)
  num = jax.tree.leaves(looks)[0].shape[0]
  if actions == 'shuffled' and num < 2:
    raise types.InputError(
      f"actions='shuffled' needs two agents side by side, got {num}."
    )
  fresh = jax.vmap(adapter.init, (None, 0, 0))(
    params,
    jnp.broadcast_to(jnp.asarray(rate, jnp.float32), num),
    jnp.broadcast_to(jnp.asarray(limit, jnp.float32), num),
  )

  def step(carry, rng):
    agents, worlds, seen = carry
    rng_act, rng_adapt = jax.random.split(rng)
    done = jax.vmap(act)(agents.params, seen, jax.random.split(rng_act, num))
    worlds, reward = jax.vmap(env.step)(worlds, done)
    then = jax.vmap(env.observe)(worlds)
    told = done if actions == 'own' else jnp.roll(done, 1, axis=0)
    agents, loss = jax.vmap(adapter.update)(
      agents, Transition(seen, told, then), jax.random.split(rng_adapt, num)
    )
    adapting = (agents.recent > agents.limit) & (agents.rate > 0)
    return (agents, worlds, then), (reward, loss, agents.recent, adapting)

  def episode(agents, rng):
    if reset == 'episode':
      agents = fresh
    rng_reset, rng_steps = jax.random.split(rng)
    worlds = jax.vmap(env.reset)(jax.random.split(rng_reset, num), looks)
    seen = jax.vmap(env.observe)(worlds)
    (agents, _, _), told = jax.lax.scan(
      step,
      (agents, worlds, seen),
      jax.random.split(rng_steps, env.num_steps),
    )
    return agents, told

  agents, told = jax.lax.scan(episode, fresh, jax.random.split(rng, episodes))
  reward, loss, recent, adapting = told
  return Deployment(reward, loss, recent, adapting, agents.params)


def training_limit(recent: jax.Array, quantile: float = 0.95) -> jax.Array:
  """The loss of the task in training, for the harm detector.

  Where the recent loss is no higher than nearly always in the world of
  training, there is nothing to adapt to, and steps can only do harm.

  Args:
    recent: `Deployment.recent` of agents in the world of training, rate 0.
    quantile: Part of the steps there at which adaptation waits, in [0, 1].
  """
  types.check_range('[0, 1]', quantile=quantile)
  return jnp.quantile(recent, quantile)


def _recent_mean(state, loss):
  """Mean over the last steps; of all of them while they are few."""
  part = 1.0 / jnp.minimum(state.steps + 1.0, _MEMORY)
  return state.recent + part * (loss - state.recent)


def _divide(params, adapted):
  """(leaves that adapt, the others), each by path."""
  trees.mask(params, adapted)  # Fails if it selects nothing.
  leaves = traverse_util.flatten_dict(params)
  return tuple(
    {path: x for path, x in leaves.items() if bool(adapted(path)) is which}
    for which in (True, False)
  )


def _join(chosen, still):
  """The tree that `_divide` divided."""
  return traverse_util.unflatten_dict({**chosen, **still})
