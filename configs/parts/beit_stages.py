"""What the stages of BEiT are made of: a tokenizer, pre-training, fine-tuning.

`configs/beit.py` has the numbers, `configs/studies/beit.py` the study.
"""

import functools
import math
import pathlib

import jax
from ml_collections import config_dict
import numpy as np
import optax

from repjax import checkpoint
from repjax import loop
from repjax import optim
from repjax import plots
from repjax import start
from repjax import types
from repjax.data.images import block_masks
from repjax.data.images import recipes
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.layers import frozen
from repjax.methods import beit as pretraining
from repjax.methods import dvae as tokenizing
from repjax.methods import mixup
from repjax.metrics import language
from repjax.models import beit
from repjax.models import dvae
from repjax.weights import beit_weights
from repjax.weights import dvae_weights


def of_stage(config: config_dict.ConfigDict, stage: str):
  """The config with what a stage changes."""
  if stage not in config.stages:
    raise types.InputError(
      f'config.stage is one of {", ".join(config.stages)}; got {stage!r}.'
    )
  config = config.copy_and_resolve_references()
  config.stage = stage
  config.update(config.stages[stage])
  return config


def build(config: config_dict.ConfigDict) -> types.Experiment:
  """One training run of one stage."""
  restored = functools.partial(_restored, config)
  config = of_stage(config, config.stage)
  data = of_images.read(config)
  if config.stage == 'tokenizer':
    return _build_tokenizer(config, data)
  if config.stage == 'pretrain':
    return _build_pretraining(config, data, restored)
  return _build_classifier(config, data, restored)


def _build_tokenizer(config, data):
  recipe = token_recipe(config, data.recipe)
  return wiring.of_sources(
    config,
    tokenizer_method(config, recipe.shape, data.steps),
    batches=wiring.shuffled(config, data.train, recipe),
    sources=functools.partial(load, config),
    steps=data.steps,
    measure=_measure_tokenizer,
    figures=lambda rows, outputs, columns: {
      'tokens': plots.lines(
        {'test': _usage(outputs['ids'], config.tokenizer.vocab_size)},
        xlabel='token, most frequent first',
        ylabel='share of patches',
      )
    },
    recipe=recipe,
  )


def _build_pretraining(config, data, restored):
  if not config.tokenizer.run and not config.tokenizer.untrained:
    raise types.InputError(
      'config.tokenizer.run is empty: train a tokenizer first '
      '(--config.stage=tokenizer) and give its --workdir, or allow one that is '
      'not trained by --config.tokenizer.untrained.'
    )
  sampler, length = masks_of(config)
  recipe = data.recipe
  tokenizer = pretraining.of_encoder(
    _token_encoder(config, token_recipe(config, recipe).shape),
    config.tokenizer.vocab_size,
  )
  method = pretraining_method(config, tokenizer, recipe.shape, data.steps)
  if config.tokenizer.size:
    recipe = recipe._replace(
      train=transforms.compose(recipe.train, _token_images(config)),
      evaluate=transforms.compose(recipe.evaluate, _token_images(config)),
    )
  hide = block_masks.hide(sampler, length)

  def sources(split):
    rows = load(config, split)
    masks = block_masks.fixed(sampler, length, len(rows), seed=config.seed)
    return rows.with_columns(**masks)

  def warm_start(state):
    if not config.tokenizer.run:
      return state
    if config.tokenizer.run.endswith('.safetensors'):
      (old,) = state.model_state[types.FROZEN].values()
      trained = dvae_weights.load(config.tokenizer.run, old)
    else:
      trained = restored('tokenizer', config.tokenizer.run)['encoder']
    return pretraining.with_tokenizer(state, {'params': trained})

  return wiring.of_sources(
    config,
    method,
    batches=wiring.shuffled(
      config,
      data.train,
      recipe._replace(train=transforms.compose(recipe.train, hide)),
    ),
    sources=sources,
    steps=data.steps,
    measure=_measure_pretraining,
    figures=lambda rows, outputs, columns: {},
    recipe=recipe,
    warm_start=warm_start,
  )


def _build_classifier(config, data, restored):
  num_classes = data.train.num_classes
  model = classifier(config, num_classes, data.recipe.shape)
  method = mixup.make(
    model,
    adamw(config, data.steps),
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )

  def warm_start(state):
    path = config.pretrained
    if not path:
      return state
    if pathlib.Path(path, 'checkpoints').is_dir():
      load = functools.partial(
        beit_weights.transfer, restored('pretrain', path)
      )
    else:
      load = functools.partial(beit_weights.load, path, head='replace')
    return start.fill(state, load)

  return of_images.classifier(
    config, data, method, multiple=2, warm_start=warm_start
  )


# Parts of the experiments.


def num_steps(config, num_rows):
  return wiring.num_steps(
    num_rows,
    batch_size=config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )


def load(config, split):
  return source.load(config.data.name, split, data_dir=config.data.dir)


def _token_images(config):
  """Adds what the tokenizer sees, made from what the model sees."""
  size = config.tokenizer.size
  resize = transforms.resize(size, size)
  mean, std = (
    np.asarray(x, np.float32) for x in (config.augment.mean, config.augment.std)
  )

  def apply(columns, draws):
    pixels = {'image': columns['image'] * std + mean}
    pixels = resize.apply(pixels, draws)['image']
    return {**columns, 'token_image': dvae.dalle_pixels(pixels)}

  return transforms.Transform(0, apply)


def token_recipe(config, recipe: recipes.Recipe) -> recipes.Recipe:
  """The recipe for the tokenizer alone: its images stand in for the model's."""
  size = config.tokenizer.size
  if not size:
    return recipe

  def swap(columns, draws):
    del draws  # Nothing is random.
    return {**columns, 'image': columns['token_image']}

  rest = (_token_images(config), transforms.Transform(0, swap))
  return recipe._replace(
    train=transforms.compose(recipe.train, *rest),
    evaluate=transforms.compose(recipe.evaluate, *rest),
    shape=(size, size, recipe.shape[-1]),
  )


def masks_of(config):
  """(sampler of masks, most patches that one can hide)."""
  masks, grid = config.masks, (config.patch_grid, config.patch_grid)
  count, size = masks.num_masked, config.patch_grid**2
  blocks = dict(min_block=masks.min_block)
  if masks.kind == 'blocks':
    sampler = block_masks.as_in_code(grid, num_masked=count, **blocks)
  elif masks.kind == 'blocks_text':
    sampler = block_masks.as_in_text(grid, ratio=count / size, **blocks)
  elif masks.kind == 'random':
    sampler = block_masks.at_random(grid, num_masked=count)
  else:
    raise types.InputError(
      "config.masks.kind is 'blocks', 'blocks_text' or 'random'; got "
      f'{masks.kind!r}.'
    )
  if masks.exact:
    return block_masks.exactly(sampler, count), count
  return sampler, size if masks.kind == 'blocks_text' else count


def _token_encoder(config, shape):
  settings = config.tokenizer
  if settings.kind == 'dalle':
    return dvae.DalleEncoder(
      settings.vocab_size,
      hidden_dim=settings.hidden_dim,
      blocks_per_group=settings.num_blocks,
    )
  if settings.kind != 'small':
    raise types.InputError(
      f"config.tokenizer.kind is 'dalle' or 'small'; got {settings.kind!r}."
    )
  return dvae.Encoder(
    settings.vocab_size,
    hidden_dim=settings.hidden_dim,
    num_halvings=_num_halvings(config, shape),
    num_blocks=settings.num_blocks,
  )


def _num_halvings(config, shape):
  if config.tokenizer.kind == 'dalle':
    return 3
  return round(math.log2(max(shape[0] / config.patch_grid, 1)))


def autoencoder(config, shape):
  return dvae.Dvae(
    _token_encoder(config, shape),
    dvae.Decoder(
      shape[-1],
      hidden_dim=config.tokenizer.hidden_dim,
      num_halvings=_num_halvings(config, shape),
      num_blocks=config.tokenizer.num_blocks,
    ),
  )


def tokenizer_method(config, shape, steps):
  first, last = config.tokenizer.temperature
  return tokenizing.make(
    autoencoder(config, shape),
    adamw(config, steps),
    temperature=optax.cosine_decay_schedule(first, steps, last / first),
    kl_weight=config.tokenizer.kl_weight,
    microbatches=config.step.microbatches,
    ema_decay=config.step.ema_decay,
  )


def _encoder(config, shape, relative):
  grid = config.patch_grid
  for side in shape[:2]:
    if side % grid:
      raise types.InputError(
        f'config.patch_grid={grid} does not divide images of '
        f'{shape[0]} x {shape[1]}.'
      )
  return beit.Encoder(
    (shape[0] // grid, shape[1] // grid), relative=relative, **config.model
  )


def pretraining_method(config, tokenizer, shape, steps):
  step = {k: v for k, v in config.step.items() if k != 'label_smoothing'}
  return pretraining.make(
    beit.MaskedImageModel(
      _encoder(config, shape, 'shared'), tokenizer.vocab_size
    ),
    tokenizer,
    adamw(config, steps),
    **step,
  )


def classifier(config, num_classes, shape):
  encoder = _encoder(config, shape, 'per_layer')
  if config.stage != 'probe':
    return beit.Classifier(encoder, num_classes)
  # A probe reads what the encoder says in evaluation, where nothing drops.
  quiet = encoder.clone(
    dropout_rate=0.0, attention_dropout_rate=0.0, drop_path_rate=0.0
  )
  return frozen.train_only(
    beit.Classifier(quiet, num_classes), lambda path: path[0] != 'encoder'
  )


def adamw(config, steps):
  tx = config.tx
  schedule = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=tx.end
  )
  num_layers = config.model.num_layers
  return optax.chain(
    optax.clip_by_global_norm(tx.clip),
    optax.adamw(
      schedule, weight_decay=tx.weight_decay, mask=optim.weight_decay_mask
    ),
    optim.layer_decay(
      tx.layer_decay,
      functools.partial(beit.layer_of, num_layers=num_layers),
      num_layers=num_layers,
    ),
  )


def _restored(config, stage, workdir):
  """Parameters of a run of an earlier stage, as they were last saved.

  Args:
    config: As it was given, without what a stage changes.
    stage: That of the run.
    workdir: Of the run.
  """
  folder = pathlib.Path(workdir, 'checkpoints')
  if not folder.is_dir():
    raise types.InputError(
      f'{workdir} holds no checkpoint of a run of the stage {stage!r}.'
    )
  earlier = of_stage(config, stage)
  earlier.tokenizer.untrained = True  # A trained one is in the checkpoint.
  made = build(earlier)
  state = loop.init(made.method, made.train.batch(0), seed=0)
  store = checkpoint.Checkpoints(str(folder), read_only=True)
  restored = store.restore(state)
  if restored is None:
    raise types.InputError(
      f'{workdir} holds no checkpoint of a run of the stage {stage!r}.'
    )
  return jax.device_get(restored[0].params)


def _measure_tokenizer(outputs, columns):
  del columns  # The method knows the images.
  share = _usage(outputs['ids'], outputs['ids'].max() + 1)[1]
  share = share[share > 0]
  return {
    'mse': float(outputs['mse'].mean()),
    'kl': float(outputs['kl'].mean()),
    'tokens': float(len(share)),
    'token_perplexity': float(np.exp(-(share * np.log(share)).sum())),
  }


def _usage(ids, vocab_size):
  """(ranks, shares) of tokens, the most frequent one first."""
  counts = np.bincount(ids.ravel(), minlength=vocab_size)
  return np.arange(len(counts)), np.sort(counts)[::-1] / ids.size


def _measure_pretraining(outputs, columns):
  del columns  # The method knows the tokens.
  return language.measure(outputs['nll'], outputs['patches'], outputs['hits'])
