"""Learning from images without labels: networks, methods, and their runs.

What is read of a config: `data` (name, dir, train_split, eval_splits,
num_workers, canvas), `augment`, `crops`, `method`, `network` and its group,
`esvit`, `contrast`, `probe`, `tx`, `step`, `weights`.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
import optax

from configs import presets
from repjax import files
from repjax import optim
from repjax import plots
from repjax import start
from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.data.sets import canvas
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.methods import step as steps
from repjax.protocols import probes

# Numbers of networks and methods that EsViT is compared with.
OTHERS: presets.Layer = dict(
  paper=dict(
    vit=dict(
      **dict(patch_size=16, hidden_dim=384, mlp_dim=1536),
      **dict(num_heads=6, num_layers=12),
    ),
    mlp=dict(features=(2048, 2048)),
    contrast=dict(
      **dict(temperature=0.2, dim=128, hidden=2048),
      **dict(queue_size=65_536, momentum=0.999),
    ),
  ),
  small=dict(
    vit=dict(
      **dict(patch_size=2, hidden_dim=28, mlp_dim=48),
      **dict(num_heads=4, num_layers=2),
    ),
    mlp=dict(features=(256, 128)),
    contrast=dict(
      temperature=0.5, dim=64, hidden=0, queue_size=960, momentum=0.99
    ),
  ),
  gpu=dict(
    on='paper',
    vit=dict(
      **dict(patch_size=4, hidden_dim=192, mlp_dim=768),
      **dict(num_heads=3, num_layers=6),
    ),
  ),
  smoke=dict(contrast=dict(dim=8, queue_size=64)),
)

_DISTILLED = ('esvit', 'dino')


def rows(config: Any, split: str) -> source.Source:
  """A split of the set, on its canvas where there is one."""
  loaded = of_images.load(config, split)
  if not config.data.canvas:
    return loaded
  # Places of training rows are not those of test rows.
  seed = sum(split.encode())
  return canvas.place(loaded, config.data.canvas, seed=seed)


def read(config: Any) -> of_images.Data:
  """The training rows; a step makes its own views of whole images."""
  data = of_images.data(config, rows(config, config.data.train_split))
  for name in ('padding', 'flip'):
    if config.augment[name]:
      raise types.InputError(
        f'config.augment.{name}={config.augment[name]} counts for nothing '
        'here: a step makes views of its own, by config.crops.'
      )
  recipe = transforms.Recipe(
    train=data.recipe.evaluate,
    evaluate=data.recipe.evaluate,
    decode_train=data.recipe.decode_evaluate,
    decode_evaluate=data.recipe.decode_evaluate,
    shape=data.recipe.shape,
  )
  return data._replace(recipe=recipe)


def backbone(config: Any):
  """The network; its head is not used."""
  types.check_choice('config.network', config.network, ('swin', 'vit', 'mlp'))
  # No program loads the others.
  if config.network == 'swin':
    from repjax.models import swin

    return swin.Swin(1, **config.swin)
  if config.network == 'vit':
    from repjax.models import vit

    return vit.ViT(1, pool='average', position='sincos', **config.vit)
  from repjax.models import mlp

  return mlp.Mlp(1, **config.mlp)


def method(
  config: Any, steps: int, optimizer: types.Optimizer = optax.adamw
) -> types.Method:
  """How it learns.

  Args:
    config: With `method`: 'esvit', 'dino' (views alone), 'simclr', 'moco', or
      'supcon', which reads labels.
    steps: Of the run, for its schedules.
    optimizer: The last link.
  """
  tx = config.tx
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=tx.end
  )
  chain = optax.chain(
    optax.clip_by_global_norm(tx.clip or math.inf),
    optimizer(rate, weight_decay=tx.weight_decay, mask=optim.weight_decay_mask),
  )
  make = presets.choose(
    'method',
    config.method,
    dict(
      esvit=functools.partial(_distilled, config, steps, regions=True),
      dino=functools.partial(_distilled, config, steps, regions=False),
      simclr=functools.partial(_simclr, config, positives='rows'),
      moco=functools.partial(_moco, config),
      supcon=functools.partial(_simclr, config, positives='labels'),
    ),
  )
  return make(backbone(config), chain)


def _distilled(config, steps, model, chain, *, regions):
  from repjax.methods import esvit
  from repjax.methods import multi_crop

  own = dict(config.esvit)
  temperatures = own.pop('teacher_temperature')
  if len(temperatures) != 2:
    raise types.InputError(
      'config.esvit.teacher_temperature has two numbers, at the beginning and '
      f'behind warm; got {temperatures}'
    )
  for value in temperatures:
    limits = {'config.esvit.teacher_temperature': value}
    types.check_range('(0, inf)', **limits)
  warm, frozen = own.pop('warm'), own.pop('frozen')
  momentum = own.pop('momentum')
  types.check_range('[0, 1]', **{'config.esvit.momentum': momentum})
  types.check_range(
    '[0, 1]', **{'config.esvit.warm': warm, 'config.esvit.frozen': frozen}
  )
  if config.step.ema_decay:
    raise types.InputError(
      'config.step.ema_decay must be 0: the teacher is an average already.'
    )
  if not regions:
    own['region_weight'] = 0.0
  return esvit.make(
    model,
    chain,
    crops=multi_crop.MultiCrop(**config.crops),
    teacher_temperature=optax.linear_schedule(
      *temperatures, max(1, round(warm * steps))
    ),
    # From `momentum` to 1, along half a cosine.
    momentum=lambda step: (
      1 - (1 - momentum) * optax.cosine_decay_schedule(1.0, steps)(step)
    ),
    frozen_steps=round(frozen * steps),
    microbatches=config.step.microbatches,
    compute_dtype=config.step.compute_dtype,
    **own,
  )


def _two_views(config):
  from repjax.data.images import views
  from repjax.methods import two_views

  crops = config.crops
  view = views.random_views(
    area=crops.area,
    flip=crops.flip,
    brightness=crops.brightness,
    contrast=crops.contrast,
    saturation=crops.saturation,
    size=crops.size,
  )
  return two_views.of_images(view, view)


def _simclr(config, model, chain, *, positives):
  from repjax.methods import simclr

  own = config.contrast
  return simclr.make(
    model,
    chain,
    views=_two_views(config),
    positives=positives,
    temperature=own.temperature,
    dim=own.dim,
    hidden=own.hidden,
    **config.step,
  )


def _moco(config, model, chain):
  from repjax.methods import moco

  own = config.contrast
  return moco.make(model, chain, views=_two_views(config), **own, **config.step)


def network_params(config: Any, state: types.TrainState) -> types.PyTree:
  """Parameters of the network that features come from: a teacher's, if any."""
  if config.method in _DISTILLED:
    return state.extra.teacher['backbone']
  return steps.variables(state)['params']['model']


def experiment(
  config: Any, data: of_images.Data, method: types.Method
) -> types.Experiment:
  """A run that is judged by k-NN and linear probes while it trains.

  Its last step writes a Swin's features as `swin/model.safetensors` into the
  work directory, in Hugging Face's layout.
  """
  if config.method == 'supcon' and data.train.num_classes is None:
    raise types.InputError(
      f'config.method=supcon reads labels, and {data.train.name} has none: '
      'take simclr, moco, dino or esvit.'
    )

  def figures(source, outputs, columns):
    del source  # Features are drawn, not images.
    features = outputs['features']
    labels = columns.get('label', np.zeros(len(features), np.int32))
    return {'features': _drawn(features, labels)}

  made = wiring.of_sources(
    config,
    method,
    batches=wiring.shuffled(config, data.train, data.recipe),
    sources=functools.partial(rows, config),
    steps=data.steps,
    measure=probes.spread,
    figures=figures,
    recipe=data.recipe,
    warm_start=functools.partial(_begin, config),
  )
  measures = {}
  if data.train.num_classes:
    measures = probes.measures(
      method,
      functools.partial(made.evals, config.data.train_split),
      {x: functools.partial(made.evals, x) for x in made.eval_splits},
      num_classes=data.train.num_classes,
      neighbours=config.probe.neighbours,
      temperature=config.probe.temperature,
      strengths=config.probe.strengths,
    )
  return made._replace(companion=_companion(config, data.steps, measures))


def _companion(config, steps, measures):
  place = {}

  def begin(workdir, step):
    del step  # It writes at the last one alone.
    place['workdir'] = workdir

  def follow(step, state):
    writes = step == steps and config.network == 'swin'
    if writes and place.get('workdir') and jax.process_index() == 0:
      from repjax.weights import swin_weights

      folder = files.path_of(place['workdir']) / 'swin'
      folder.mkdir(exist_ok=True)
      params = dict(jax.device_get(network_params(config, state)))
      params.pop('head')  # Which nothing has trained.
      swin_weights.save(folder / 'model.safetensors', params)

  return types.Companion(begin=begin, follow=follow, measures=measures)


def _begin(config, state):
  """A fresh state, with the features of a file where there is one."""
  if not config.weights:
    return state
  if config.network != 'swin':
    raise types.InputError(
      f'config.weights are of a Swin: set config.network=swin; got '
      f'{config.network!r}.'
    )
  from repjax.weights import stored_config
  from repjax.weights import swin_weights

  stored_config.check_gelu(config.weights, 'exact', ('swin',))
  stored_config.warn_of_other_pixels(config.weights, config.augment)
  load = functools.partial(swin_weights.load, config.weights, head='replace')
  group = 'backbone' if config.method in _DISTILLED else 'model'
  filled = start.fill(
    state, lambda params: {**params, group: load(params[group])}
  )
  if config.method in _DISTILLED:
    teacher = {**state.extra.teacher, group: filled.params[group]}
    return filled.replace(extra=state.extra._replace(teacher=teacher))
  if config.method == 'moco':
    keys = {**state.extra.key_params, group: filled.params[group]}
    return filled.replace(extra=state.extra._replace(key_params=keys))
  return filled


def _drawn(features, labels):
  """The first two principal components, one colour a class."""
  centred = np.asarray(features, np.float64) - features.mean(0)
  _, _, axes = np.linalg.svd(centred, full_matrices=False)
  at = centred @ axes[:2].T
  return plots.lines(
    {str(x): tuple(at[labels == x].T) for x in np.unique(labels)[:10]},
    xlabel='first principal component of features',
    ylabel='second',
    joined=False,
  )
