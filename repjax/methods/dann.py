"""Device code: domain-adversarial training (DANN).

Ganin et al., 'Domain-Adversarial Training of Neural Networks', JMLR 2016
(https://arxiv.org/abs/1505.07818), eq. 9 to 15. An adversary tells from the
features which group a row is of; the features are trained against it. By the
'reversal' of its gradient, in one step of one optimizer, as the paper and WILDS
do; or 'alternating' steps of two optimizers, as DomainBed does. Results
differ.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from repjax import parallel
from repjax import types
from repjax.layers import norms
from repjax.methods import classifier
from repjax.methods import grouped
from repjax.methods import model_inputs
from repjax.methods import step as steps
from repjax.types import InputError

# Of the adversary's batch statistics in the method's state.
_STATE = 'adversary'


class Adversary(nn.Module):
  """Features [B, D] -> logits of groups [B, G]: dense layers with relu.

  Attributes:
    num_groups: G.
    features: Widths of the hidden layers; (1024, 1024) in WILDS.
    normalize: Whether batch normalisation comes before each relu, as in WILDS.
  """

  num_groups: int
  features: Sequence[int] = (64, 64)
  normalize: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, D] -> [B, G], float32; `mask` tells which rows are real."""
    for index, width in enumerate(self.features):
      types.check_range('[1, inf)', features=width)
      x = nn.Dense(width, name=f'hidden_{index}')(x)
      if self.normalize:
        x = norms.BatchNorm(name=f'norm_{index}')(x, train=train, mask=mask)
      x = nn.relu(x)
    return nn.Dense(self.num_groups, name='head')(x).astype(jnp.float32)


def make(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  num_groups: int,
  weight: optax.ScalarOrSchedule,
  form: Literal['reversal', 'alternating'] = 'reversal',
  adversary: nn.Module | None = None,
  tx_adversary: optax.GradientTransformation | None = None,
  adversary_steps: int = 1,
  group_counts: Sequence[int] | None = None,
  inputs: model_inputs.Inputs = model_inputs.image,
  head: str = 'head',
  **settings: Any,
) -> types.Method:
  """Minimizes the cross-entropy, with features that hide the groups.

  Rows without a label, such as those of a target domain, are hidden, too.

  Args:
    model: Any linen classifier.
    tx: Optax chain. Of 'reversal' it trains {'model': ..., 'adversary': ...}
      (`optax.multi_transform` gives them rates of their own); of 'alternating'
      the model alone.
    num_groups: G, the domains.
    weight: lambda, >= 0, or a schedule over steps. Of 'reversal' it multiplies
      the adversary's whole loss, as in WILDS, of 'alternating' only what the
      features see, as in DomainBed.
    form: 'reversal' or 'alternating', as above.
    adversary: Called as `Adversary` is, with an output for each domain that
      has training rows; by default one of these.
    tx_adversary: Of 'alternating', the adversary's optax chain.
    adversary_steps: Of 'alternating': how many updates train the adversary
      before one trains the model, each on a batch of its own.
    group_counts: Training rows of each group, labelled or not, [G]: groups
      without any are no outputs of the adversary, as in WILDS. None: all have
      rows.
    inputs: What the model is called with, in place of images.
    head: Module names of the last layer, whose input are the features.
    **settings: microbatches, compute_dtype, ema_decay, transform, finish, see
      `steps.make`; of 'alternating' there are none.

  Returns:
    A `types.Method`; see `classifier.make`. Its sums have 'adversary_loss' and
    'adversary_accuracy', over all real rows; rows of no group count as 0.

  Raises:
    InputError: If a setting is out of range, or, when the step is traced, if
      the batch has no groups.
  """
  types.check_range('[1, inf)', num_groups=num_groups)
  types.check_choice('form', form, ('reversal', 'alternating'))
  if not callable(weight):
    types.check_range('[0, inf)', weight=weight)
  if (form == 'alternating') != (tx_adversary is not None):
    raise InputError(
      "tx_adversary goes with form='alternating', and only with it; got "
      f'{form=}.'
    )
  domain_of = domains(num_groups, group_counts)
  num_domains = int(domain_of.max()) + 1
  adversary = adversary or Adversary(num_domains)

  def judge(params, state, features, batch):
    """(loss of each row, its accuracy, new state) of the adversary."""
    grouped.check_groups(batch)
    member = grouped.members(batch['group'], batch['mask'], num_groups)
    # Groups that are no domain are as far outside as those beyond G.
    inside = (member * (domain_of >= 0)[None]).sum(1)
    logits, new = adversary.apply(
      {'params': params, **state},
      features,
      train=True,
      mask=inside,
      mutable=list(state),
    )
    if logits.shape[-1] != num_domains:
      raise InputError(
        f'{num_domains} groups have training rows; the adversary has '
        f'{logits.shape[-1]} outputs.'
      )
    place = jnp.where(inside > 0, batch['group'], 0)
    domain = jnp.where(inside > 0, jnp.asarray(domain_of)[place], 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, domain)
    hits = (logits.argmax(-1) == domain).astype(jnp.float32)
    return inside * nll, inside * hits, {**state, **new}

  def look(params, model_state, batch, rng):
    """The forward pass and losses of the model."""
    out = classifier.forward(
      model, inputs, {'params': params, **model_state}, batch, rng, head=head
    )
    loss, metrics = classifier.supervised(out.logits, batch)
    return out, loss, metrics

  def begin(rng, batch, variables):
    variables = dict(variables)
    # Whatever is drawn, only the shape of the features counts.
    out = jax.eval_shape(
      lambda x: (
        classifier.forward(
          model, inputs, x, batch, jax.random.key(0), head=head
        ).features
      ),
      variables,
    )
    own = adversary.init(rng, jnp.zeros(out.shape), train=False)
    state, params = steps.pop_params(own)
    rest, of_model = steps.pop_params(variables)
    both = {'params': {'model': of_model, 'adversary': params}, **rest}
    return {**both, _STATE: state} if state else both

  def of_model(variables):
    rest, params = steps.pop_params(variables)
    return {'params': params['model'], **_without(rest)}

  if form == 'reversal':

    def loss_fn(params, model_state, batch, rng):
      out, loss, metrics = look(
        params['model'], _without(model_state), batch, rng
      )
      nll, hits, state = judge(
        params['adversary'],
        model_state.get(_STATE, {}),
        reverse(out.features),
        batch,
      )
      return types.Losses(
        loss + batch[classifier.WEIGHT] * nll,
        _with(out.model_state, state),
        {**metrics, 'adversary_loss': nll, 'adversary_accuracy': hits},
      )

    return classifier.make(
      loss_fn,
      model,
      tx,
      inputs=inputs,
      weight=weight,
      begin=begin,
      of_model=of_model,
      **settings,
    )
  if settings:
    raise InputError(f"form='alternating' takes no {sorted(settings)}.")
  types.check_range('[1, inf)', adversary_steps=adversary_steps)
  return _alternating(
    model, tx, tx_adversary, weight, adversary_steps, inputs, look, judge, begin
  )


def _alternating(
  model, tx, tx_adversary, weight, adversary_steps, inputs, look, judge, begin
):
  """Steps of the adversary, then one of the model, again and again."""
  txs = {'model': tx, 'adversary': tx_adversary}

  def losses(params, model_state, batch, rng, *, trained, other):
    both = {trained: params, **other}
    out, loss, metrics = look(both['model'], _without(model_state), batch, rng)
    nll, hits, state = judge(
      both['adversary'],
      model_state.get(_STATE, {}),
      out.features,
      batch,
    )
    total = loss - batch[classifier.WEIGHT] * nll
    return types.Losses(
      nll if trained == 'adversary' else total,
      _with(out.model_state, state),
      {**metrics, 'adversary_loss': nll, 'adversary_accuracy': hits},
    )

  schedule = weight if callable(weight) else lambda step: weight

  def init(rng, batch):
    variables = model_inputs.init(model, inputs, rng, batch)
    variables = begin(jax.random.fold_in(rng, 1), batch, variables)
    model_state, params = steps.pop_params(variables)
    opt_state = {name: txs[name].init(params[name]) for name in txs}
    return types.TrainState(
      jnp.zeros((), jnp.int32), params, opt_state, model_state, ()
    )

  def update(state, batch, rng):
    columns = classifier.columns(batch, schedule(state.step))
    batch = {**batch, **columns}
    coupled = classifier.COUPLED if 'labelled' in batch else {}

    def train(name):
      def loss_fn(params, model_state, batch, rng):
        other = {k: x for k, x in state.params.items() if k != name}
        return losses(
          params, model_state, batch, rng, trained=name, other=other
        )

      bind = steps.binder(**coupled)
      grad_fn = bind(
        loss_fn, batch, parallel.device_rng(rng), state.model_state
      )
      params, opt_state, aux = steps.descend(
        txs[name], grad_fn, state.params[name], state.opt_state[name]
      )
      return state.replace(
        step=state.step + 1,
        params={**state.params, name: params},
        opt_state={**state.opt_state, name: opt_state},
        model_state=aux.model_state,
      ), aux.sums

    # What the chain of one part alone measures weighs nothing in the other's
    # steps.
    shapes = {name: jax.eval_shape(lambda x=name: train(x)[1]) for name in txs}
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      {**shapes['model'], **shapes['adversary']},
    )

    def turn(name):
      state, sums = train(name)
      return state, {**nothing, **sums}

    # The same on all devices, so that their collectives meet.
    return jax.lax.cond(
      state.step % (adversary_steps + 1) < adversary_steps,
      lambda: turn('adversary'),
      lambda: turn('model'),
    )

  def predict(state, batch):
    variables = {
      'params': state.params['model'],
      **_without(state.model_state),
    }
    logits = model_inputs.evaluate(model, inputs, variables, batch)
    return {'logits': logits.astype(jnp.float32)}

  return types.Method(init, update, predict)


def domains(
  num_groups: int, group_counts: Sequence[int] | None = None
) -> np.ndarray:
  """The adversary's output of each group, [G]; -1 without training rows.

  Args:
    num_groups: G.
    group_counts: Training rows of each group, [G]; None: all have rows.

  Raises:
    InputError: They are not so many numbers, or no group has rows.
  """
  if group_counts is None:
    return np.arange(num_groups)
  counts = np.asarray(group_counts)
  if counts.shape != (num_groups,) or counts.min() < 0 or not counts.any():
    raise InputError(
      f'group_counts are {num_groups} numbers of rows; got {group_counts}.'
    )
  return np.where(counts > 0, np.cumsum(counts > 0) - 1, -1)


def reverse(x: jax.Array) -> jax.Array:
  """x, with the opposite of its gradient."""
  return 2 * jax.lax.stop_gradient(x) - x


def _without(model_state):
  return {k: x for k, x in model_state.items() if k != _STATE}


def _with(model_state, state):
  return {**model_state, _STATE: state} if state else model_state
