"""Protocol: which attacks on one network fool which others.

All networks are trained; sources and targets have one model a seed, and the
attack on a source's seed is tried on the same seed of each target.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from flax import errors
import jax
import jax.numpy as jnp
import numpy as np

from repjax import types


class Attack(NamedTuple):
  """How images are changed.

  Attributes:
    images: (state of the source, pixels [B, ...], label [B], key) ->
      adversarial pixels, of one seed.
    states: Of the source, with a leading seed axis.
  """

  images: Callable[
    [types.TrainState, jax.Array, jax.Array, jax.Array], jax.Array
  ]
  states: types.TrainState


class Target(NamedTuple):
  """Who is to be fooled.

  Attributes:
    logits: (state, pixels [B, ...]) -> [B, K], in evaluation, of one seed.
    states: With a leading seed axis.
  """

  logits: Callable[[types.TrainState, jax.Array], jax.Array]
  states: types.TrainState


class Measured(NamedTuple):
  """What became of all attacks.

  Attributes:
    accuracy: Target -> share of unchanged images that it classifies right, [S].
    fooled: (attack, target) -> share of images whose prediction changes, [S].
    robust: (attack, target) -> share of changed images classified right, [S].
    images: Attack -> changed images of the first seed, [N, ...].
  """

  accuracy: dict[str, np.ndarray]
  fooled: dict[tuple[str, str], np.ndarray]
  robust: dict[tuple[str, str], np.ndarray]
  images: dict[str, np.ndarray]


def measure(
  attacks: Mapping[str, Attack],
  targets: Mapping[str, Target],
  image: np.ndarray,
  label: np.ndarray,
  *,
  seeds: Sequence[int],
  batch_size: int = 500,
) -> Measured:
  """Changes all images by all attacks, and asks all targets.

  Args:
    attacks: Name -> attack on a source.
    targets: Name -> network.
    image: Pixels, [N, ...].
    label: [N].
    seeds: S seeds, of the keys that attacks get.
    batch_size: Images that are changed at once.

  Raises:
    InputError: There is no image, networks have other numbers of seeds, or a
      target cannot be asked about these images and labels.
  """
  if not len(image):
    raise types.InputError('there is no image to attack')
  given: dict[str, Any] = {**attacks, **targets}
  for name, each in given.items():
    found = len(jax.tree.leaves(each.states)[0])
    if found != len(seeds):
      raise types.InputError(
        f'{name} has models of {found} seeds, and there are {len(seeds)} seeds'
      )
  for name, target in targets.items():
    first = jax.tree.map(lambda x: x[0], target.states)
    check(name, target.logits, first, image, label)
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  ask = {name: jax.jit(_each_seed(x.logits)) for name, x in targets.items()}
  change = {name: jax.jit(_each_seed(x.images)) for name, x in attacks.items()}
  num_seeds = len(seeds)
  clean = np.broadcast_to(image, (num_seeds, *image.shape))

  def guesses(name, pixels):
    parts = [
      np.asarray(ask[name](targets[name].states, pixels[:, at]))
      for at in _parts(len(image), batch_size)
    ]
    logits = np.concatenate(parts, axis=1)
    # NaN predicts no class.
    return np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1)

  before = {name: guesses(name, clean) for name in targets}
  fooled, robust, images = {}, {}, {}
  for name, attack in attacks.items():
    parts = []
    for index, at in enumerate(_parts(len(image), batch_size)):
      key = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
      labels = np.broadcast_to(label[at], (num_seeds, len(label[at])))
      parts.append(
        np.asarray(change[name](attack.states, clean[:, at], labels, key))
      )
    changed = np.concatenate(parts, axis=1)
    images[name] = changed[0]
    for asked in targets:
      after = guesses(asked, changed)
      fooled[name, asked] = (after != before[asked]).mean(1)
      robust[name, asked] = (after == label).mean(1)
  return Measured(
    accuracy={x: (y == label).mean(1) for x, y in before.items()},
    fooled=fooled,
    robust=robust,
    images=images,
  )


def check(
  name: str,
  logits: Callable[[types.TrainState, jax.Array], jax.Array],
  state: types.TrainState,
  image: np.ndarray,
  label: np.ndarray,
) -> None:
  """Refuses a network that cannot be asked about some images and labels.

  Args:
    name: Of the network, as the message says it.
    logits: (state, pixels [B, ...]) -> [B, K].
    state: Of one model.
    image: Pixels, [N, ...].
    label: Their classes, [N].

  Raises:
    InputError: It does not take such images, or has no such classes.
  """
  try:
    shape = jax.eval_shape(logits, state, image[:1]).shape
  except (errors.FlaxError, TypeError, ValueError) as error:
    raise types.InputError(
      f'{name} does not take images of {list(image.shape[1:])}: '
      f'{str(error).splitlines()[0]}'
    ) from error
  wrong = [
    int(x) for x in (np.max(label), np.min(label)) if not 0 <= x < shape[-1]
  ]
  if len(shape) != 2 or wrong:
    raise types.InputError(
      f'{name} predicts {shape[-1]} classes, and class '
      f'{wrong[0] if wrong else int(np.max(label))} is asked for.'
    )


def _each_seed(fn):
  """A function of one seed's arguments, for all seeds one after the other.

  Side by side, convolutions of different networks are slow on CPUs.
  """

  def every(*args):
    return jax.lax.map(lambda x: fn(*x), args)

  return every


def _parts(total, size):
  return [slice(i, min(i + size, total)) for i in range(0, total, size)]
