"""The stages of BEiT: a tokenizer, pre-training, fine-tuning or a probe.

`configs/beit.py` has the numbers.
"""

import functools
import math

import flax.linen as nn
from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import beit_tokenizer
from repjax import files
from repjax import optim
from repjax import plots
from repjax import start
from repjax import types
from repjax.data.images import block_masks
from repjax.data.images import transforms
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.layers import attention
from repjax.layers import frozen
from repjax.methods import beit as pretraining
from repjax.methods import mixup
from repjax.metrics import averages
from repjax.models import beit
from repjax.weights import beit_weights
from repjax.weights import dvae_weights
from repjax.weights import stored_config


def of_stage(config: config_dict.ConfigDict, stage: str):
  """The config with what a stage changes."""
  changes = presets.choose('stage', stage, config.stages)
  config = config.copy_and_resolve_references()
  config.stage = stage
  config.update(changes)
  return config


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run of one stage."""
  config = of_stage(config, config.stage)
  if config.pretrained and config.stage in ('tokenizer', 'pretrain'):
    raise types.InputError(
      f'config.pretrained={config.pretrained} counts for nothing in '
      f'config.stage={config.stage}: it is what finetune and probe start from.'
    )
  data = of_images.read(config)
  tx = adamw(config, data.steps, optimizer)
  if config.stage == 'tokenizer':
    return _build_tokenizer(config, data, tx)
  if config.stage == 'pretrain':
    return _build_pretraining(config, data, tx)
  return _build_classifier(config, data, tx)


def _build_tokenizer(config, data, tx):
  recipe = beit_tokenizer.alone(config, data.recipe)

  def figures(rows, outputs, columns):
    usage = beit_tokenizer.usage(outputs['ids'], config.tokenizer.vocab_size)
    return {
      'tokens': plots.lines(
        {'test': usage},
        xlabel='token, most frequent first',
        ylabel='share of patches',
      )
    }

  return wiring.of_sources(
    config,
    beit_tokenizer.method(config, recipe.shape, data.steps, tx),
    batches=wiring.shuffled(config, data.train, recipe),
    sources=functools.partial(of_images.load, config),
    steps=data.steps,
    measure=beit_tokenizer.measure,
    figures=figures,
    recipe=recipe,
  )


def _build_pretraining(config, data, tx):
  if (
    config.tokenizer.run.endswith('.safetensors') and not config.tokenizer.size
  ):
    raise types.InputError(
      'config.tokenizer.size=0 shows the published encoder what the model '
      'sees, and it wants pixels of its own: set it, as to 112.'
    )
  if not config.tokenizer.run and not config.tokenizer.untrained:
    raise types.InputError(
      'config.tokenizer.run is empty: train a tokenizer first '
      '(--config.stage=tokenizer) and give its --workdir, or allow one that is '
      'not trained by --config.tokenizer.untrained.'
    )
  sampler, length = masks_of(config)
  tokenizer = pretraining.of_encoder(
    beit_tokenizer.encoder(
      config, beit_tokenizer.alone(config, data.recipe).shape
    ),
    config.tokenizer.vocab_size,
  )
  recipe = beit_tokenizer.beside(config, data.recipe)
  hide = block_masks.hide(sampler, length)

  def sources(split):
    rows = of_images.load(config, split)
    masks = block_masks.fixed(sampler, length, len(rows), seed=config.seed)
    return rows.with_columns(**masks)

  def warm_start(state):
    if not config.tokenizer.run:
      return state
    if config.tokenizer.run.endswith('.safetensors'):
      (old,) = state.model_state[types.FROZEN].values()
      trained = dvae_weights.load(config.tokenizer.run, old)
    else:
      saved = start.from_run(
        config.tokenizer.run, field='config.tokenizer.run', which='predicted'
      )
      trained = saved['params'].get(
        'encoder'
      )  # A run of another kind has none.
    return pretraining.with_tokenizer(state, {'params': trained})

  return wiring.of_sources(
    config,
    pretraining_method(config, tokenizer, data.recipe.shape, tx),
    batches=wiring.shuffled(
      config,
      data.train,
      recipe._replace(train=transforms.compose(recipe.train, hide)),
    ),
    sources=sources,
    steps=data.steps,
    measure=lambda outputs, columns: averages.of_tokens(
      outputs['nll'], outputs['patches'], outputs['hits']
    ),
    figures=lambda rows, outputs, columns: {},
    recipe=recipe,
    warm_start=warm_start,
  )


def _build_classifier(config, data, tx):
  num_classes = data.train.num_classes
  method = mixup.make(
    classifier(config, num_classes, data.recipe.shape),
    tx,
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )

  def warm_start(state):
    path = config.pretrained
    if not path:
      return state
    if (files.path_of(path) / 'checkpoints').is_dir():
      trained = start.from_run(path, field='config.pretrained')['params']
      load = functools.partial(beit_weights.transfer, trained)
    else:
      stored_config.check_gelu(path, 'exact', ('beit',))
      stored_config.warn_of_other_pixels(path, config.augment)
      load = functools.partial(beit_weights.load, path, head='replace')
    return start.fill(state, load)

  return of_images.classifier(
    config, data, method, multiple=2, warm_start=warm_start
  )


# What studies train, too.


def masks_of(config) -> tuple[block_masks.Sampler, int]:
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


def _encoder(config, shape, relative):
  grid = config.patch_grid
  for side in shape[:2]:
    if side % grid:
      raise types.InputError(
        f'config.patch_grid={grid} does not divide images of '
        f'{shape[0]} x {shape[1]}.'
      )
  return beit.Encoder(
    (shape[0] // grid, shape[1] // grid),
    relative=relative,
    # Exact anywhere; by a fused kernel where a GPU computes in bfloat16.
    attention_fn=attention.Flash(),
    **config.model,
  )


def pretraining_method(
  config,
  tokenizer: pretraining.Tokenizer,
  shape,
  tx: optax.GradientTransformation,
) -> types.Method:
  """Predicts the tokens of hidden patches of images of a shape [H, W, C]."""
  step = {k: v for k, v in config.step.items() if k != 'label_smoothing'}
  return pretraining.make(
    beit.MaskedImageModel(
      _encoder(config, shape, 'shared'), tokenizer.vocab_size
    ),
    tokenizer,
    tx,
    **step,
  )


def classifier(config, num_classes: int, shape) -> nn.Module:
  """What is fine-tuned or, in the stage 'probe', trained in its head alone."""
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


def adamw(
  config, steps: int, optimizer: types.Optimizer = optax.adamw
) -> optax.GradientTransformation:
  """Clipping, warm-up, cosine; rates fall from layer to layer downwards."""
  tx = config.tx
  schedule = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=tx.end
  )
  num_layers = config.model.num_layers
  return optax.chain(
    optax.clip_by_global_norm(tx.clip or math.inf),
    optimizer(
      schedule, weight_decay=tx.weight_decay, mask=optim.weight_decay_mask
    ),
    optim.layer_decay(
      tx.layer_decay,
      functools.partial(beit.layer_of, num_layers=num_layers),
      num_layers=num_layers,
    ),
  )
