"""Attacks a trained classifier of images; says whom that fools.

    python -m launch.attack --workdir=runs/a --attack=pgd,mi_fgsm --epsilon=0.1
    python -m launch.attack --workdir=runs/a --targets=runs/b,runs/c

Images are changed to fool the network of --workdir, within --epsilon of what
they were, with pixels in [0, 1]. Prints a table: accuracy on unchanged and on
changed images, of this network and of those of --targets, with its 95 %
interval over rows, and the share of predictions that change. Writes
attack_<split>.json and pictures into the work directory, which is not changed
otherwise. Runs on one device.
"""

from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch.lib import app
from launch.lib import image_runs
from launch.lib import restored
from repjax import files
from repjax import types

ATTACKS = ('fgsm', 'r_fgsm', 'pgd', 'mi_fgsm', 'di_fgsm', 'ti_fgsm', 'pi_fgsm')
# Their steps are of signs.
_OF_SIGNS = ('r_fgsm', 'pi_fgsm')

_FLAGS = restored.define_flags()
_SPLIT = flags.DEFINE_string(
  'split', 'test', 'Split that is attacked, for example test or train[:10%].'
)
_ATTACK = flags.DEFINE_list(
  'attack', ['fgsm', 'pgd'], f'Some of {", ".join(ATTACKS)}.'
)
_EPSILON = flags.DEFINE_float(
  'epsilon', 8 / 255, 'Radius of the ball; pixels are in [0, 1].'
)
_STEPS = flags.DEFINE_integer(
  'num_steps', 10, 'Steps of all attacks but fgsm and r_fgsm.'
)
_STEP_SIZE = flags.DEFINE_float(
  'step_size',
  0.0,
  'Length of a step; 0 for 2.5 epsilon / num_steps in pgd and for '
  'epsilon / num_steps in the others. pi_fgsm makes it ten times as long.',
)
_NORM = flags.DEFINE_enum(
  'norm',
  'linf',
  ['linf', 'l2'],
  f'Of the ball; of all attacks but {" and ".join(_OF_SIGNS)}.',
)
_DECAY = flags.DEFINE_float(
  'decay', 1.0, 'Of the momentum of mi_fgsm, di_fgsm and ti_fgsm.'
)
_RESTART = flags.DEFINE_bool(
  'random_start', False, 'Whether pgd starts somewhere in the ball.'
)
_CLASS = flags.DEFINE_integer(
  'target_class', -1, 'Class that images shall become; -1: any other.', -1
)
_HEADS = flags.DEFINE_enum(
  'heads',
  'last',
  ['last', 'ensemble', 'refined'],
  'What of a run of configs/vit_transfer.py is attacked: its output, that of '
  'all blocks, or that of their refined tokens.',
)
_TARGETS = flags.DEFINE_list(
  'targets', [], 'Further work directories, whose networks are asked, too.'
)
_NUM_ROWS = flags.DEFINE_integer(
  'num_rows', 1000, 'Rows of the split that are attacked, from the first.', 1
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 250, 'Rows at once.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is random in an attack.', 0)


def main() -> None:
  """Attacks the rows and prints a table."""
  _check()
  source = restored.restore(_FLAGS)

  import jax

  from launch.lib import attack_table
  from repjax import plots
  from repjax.protocols import transfer_matrix

  if jax.process_count() > 1:
    raise types.InputError(
      'launch.attack runs on one device: start one process.'
    )
  pixels, label = _rows(source)
  networks = {'itself': source}
  for workdir in _TARGETS.value:
    networks[workdir] = restored.beside(workdir, _FLAGS, '--targets')
  asked = {
    name: _asked(name, each, source, pixels, label)
    for name, each in networks.items()
  }
  measured = transfer_matrix.measure(
    {
      name: transfer_matrix.Attack(
        _images(name, _output(source)), asked['itself'].states
      )
      for name in _ATTACK.value
    },
    asked,
    pixels,
    label,
    seeds=(_SEED.value,),
    batch_size=_BATCH_SIZE.value,
  )
  table = attack_table.table(measured, len(label))
  print(attack_table.text(table, len(label)), end='', flush=True)
  _write(source, table, len(label))
  right = {'none': measured.accuracy['itself']}
  right |= {x: measured.robust[x, 'itself'] for x in measured.images}
  restored.draw(
    source.workdir,
    {
      f'attack_{restored.file_name(_SPLIT.value)}_{name}': _picture(
        plots, asked['itself'], images[:16], label[:16], right[name][0]
      )
      for name, images in {'none': pixels, **measured.images}.items()
    },
  )


def _check() -> None:
  """Refuses flags before anything is read."""
  from repjax import trees

  for name in _ATTACK.value:
    if name not in ATTACKS:
      raise types.InputError(
        f'--attack={name}: there is none of this name.'
        f'{trees.nearest(name, ATTACKS)} There are {", ".join(ATTACKS)}.'
      )
  if not _ATTACK.value:
    raise types.InputError('--attack names none: give at least one.')
  types.check_range('[0, inf)', **{'--epsilon': _EPSILON.value})
  types.check_range('[0, inf)', **{'--step_size': _STEP_SIZE.value})
  types.check_range('[0, inf)', **{'--decay': _DECAY.value})
  types.check_range('[1, inf)', **{'--num_steps': _STEPS.value})
  several = {*ATTACKS} - {'fgsm', 'r_fgsm'}
  for flag, kinds in (
    (_STEPS, several),
    (_STEP_SIZE, several),
    (_DECAY, {'mi_fgsm', 'di_fgsm', 'ti_fgsm'}),
    (_RESTART, {'pgd'}),
  ):
    if flag.present and not kinds & {*_ATTACK.value}:
      raise types.InputError(
        f'--{flag.name} is of {", ".join(sorted(kinds))}, none of which '
        '--attack names: leave it out.'
      )
  signs = [x for x in _ATTACK.value if x in _OF_SIGNS]
  if _NORM.value == 'l2' and signs:
    raise types.InputError(
      f'--norm=l2 is not of {signs[0]}, whose steps are of signs: take it out '
      'of --attack.'
    )


def _rows(source):
  """(pixels in [0, 1] [N, H, W, C], label [N]) of the split."""
  from repjax.data.batches import in_order

  evals = source.experiment.evals(_SPLIT.value)
  scale = image_runs.scale('--workdir', source)
  images, labels, found = [], [], 0
  rows = evals if isinstance(evals, in_order.EvalBatches) else ()
  for batch in rows:
    if 'image' not in batch or 'label' not in batch:
      break
    real = batch['mask'] > 0
    images.append(batch['image'][real])
    labels.append(batch['label'][real])
    found += int(real.sum())
    if found >= _NUM_ROWS.value:
      break
  if not found:
    raise types.InputError(
      f'--workdir={source.workdir} is a run whose {_SPLIT.value} has no images '
      'with labels.'
    )
  pixels = np.concatenate(images)[: _NUM_ROWS.value] * scale[1] + scale[0]
  pixels = np.clip(pixels, 0, 1).astype(np.float32)
  return pixels, np.concatenate(labels)[: _NUM_ROWS.value]


def _output(network, name: str | None = None):
  """(state, pixels) -> an output of `predict`, of a run's network."""
  import jax.numpy as jnp

  name = (
    name
    or {'last': 'logits', 'ensemble': 'plain', 'refined': 'refined'}[
      _HEADS.value
    ]
  )
  mean, std = (
    x.reshape((1, 1, 1, -1)) for x in image_runs.scale('--workdir', network)
  )

  def output(state, pixels):
    batch = {
      'image': (pixels - mean) / std,
      'label': jnp.zeros(len(pixels), jnp.int32),
      'mask': jnp.ones(len(pixels)),
    }
    said = network.experiment.method.predict(state, batch)
    if name not in said and name != 'logits':
      raise types.InputError(
        f'--heads={_HEADS.value} needs a run of configs/vit_transfer.py; '
        f'{network.workdir} predicts {", ".join(sorted(said))}.'
      )
    return said[name]

  return output


def _asked(name, network, source, pixels, label):
  """A network as a target, after a look at what it predicts."""
  import jax

  from repjax import start
  from repjax.data.own import kept_classes
  from repjax.protocols import transfer_matrix

  flag = '--workdir' if name == 'itself' else '--targets'
  image_runs.scale(flag, network)
  state = jax.device_get(start.as_predicted(network.state))
  logits = _output(network, 'logits')
  own = image_runs.shape(network)
  if own is not None and own != pixels.shape[1:]:
    # A network of convolutions would take them, and mean nothing by it.
    raise types.InputError(
      f'{flag}={network.workdir} was trained on images of {list(own)}; those '
      f'of --workdir are {list(pixels.shape[1:])}: attack runs on equal images.'
    )
  try:
    transfer_matrix.check(
      f'{flag}={network.workdir}',
      logits,
      state,
      pixels,
      np.append(label, _CLASS.value) if _CLASS.value >= 0 else label,
    )
  except KeyError as error:
    raise types.InputError(
      f'{flag}={network.workdir} is a run that does not predict classes from '
      'images alone: only such can be attacked.'
    ) from error
  names = [kept_classes.names_of(x.experiment) for x in (source, network)]
  if None not in names:
    for x in np.unique(label).tolist():
      own, other = (y[x] if x < len(y) else '' for y in names)
      if own != other:
        raise types.InputError(
          f'{flag}={network.workdir} calls class {x} {other!r}, and --workdir '
          f'calls it {own!r}: attack runs of the same classes.'
        )
  return transfer_matrix.Target(logits, jax.tree.map(lambda x: x[None], state))


def _images(name, logits_fn):
  """The attack of a name, by the flags: (state, pixels, label, key)."""
  import jax.numpy as jnp

  from launch.lib import named_attacks
  from repjax.attacks import losses

  norm: Any = _NORM.value
  attack = named_attacks.attack(
    name,
    epsilon=_EPSILON.value,
    num_steps=_STEPS.value,
    step_size=_STEP_SIZE.value,
    norm=norm,
    decay=_DECAY.value,
    random_start=_RESTART.value,
  )

  def images(state, pixels, label, key):
    aimed = _CLASS.value >= 0
    loss_fn = losses.cross_entropy(
      lambda x: logits_fn(state, x),
      jnp.full_like(label, _CLASS.value) if aimed else label,
      targeted=aimed,
    )
    return attack(loss_fn, pixels, key)

  return images


def _write(source, table, num_rows: int) -> None:
  path = source.workdir / f'attack_{restored.file_name(_SPLIT.value)}.json'
  settings = (
    _SPLIT,
    _EPSILON,
    _STEPS,
    _STEP_SIZE,
    _NORM,
    _DECAY,
    _RESTART,
    _CLASS,
    _HEADS,
    _SEED,
  )
  said = {
    'step': int(source.state.step),
    **{x.name: x.value for x in settings},
    'num_rows': num_rows,
    'networks': table,
  }
  try:
    files.write_json(path, said)
    logging.info('table: %s', path)
  except OSError as error:
    logging.warning('The table is not written: %s', error)


def _picture(plots, network, images, label, right):
  """The first images with what the attacked network says of them."""
  import jax

  from repjax import pictures

  state = jax.tree.map(lambda x: x[0], network.states)
  return plots.predictions(
    pictures.visible((255 * images).round().astype(np.uint8)),
    np.asarray(jax.jit(network.logits)(state, images)),
    label,
    wrong_rate=float(1 - right),  # Of all of them.
  )


if __name__ == '__main__':
  app.run(main)
