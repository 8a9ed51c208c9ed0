"""BEiT (Bao et al., ICLR 2022): predict the visual tokens of hidden patches.

The paper reports that a transformer which was pre-trained without labels, by
predicting the tokens that a discrete autoencoder gives to hidden patches,
classifies better after fine-tuning than the same network trained from scratch
(83.2 % against 81.8 % on ImageNet-1k for the base size, abstract).

A run of `launch.train` is one stage: 'tokenizer', then 'pretrain' with
config.tokenizer.run, then 'finetune' or 'probe' with config.pretrained, each
the work directory of a run before. Settings of a stage are in config.stages.

paper: B/16 on ImageNet-1k. What differs from the authors: no colour jitter, and
  fine-tuning has Mixup alone where they alternate with CutMix.
small: a 3-layer network on `digits`. One tokenizer for all runs; 3 seeds of
  pre-training on all training images without labels, then fine-tuning on 100
  labels. It must show: >= 3 points more test accuracy than the same network
  from scratch, and blockwise masks harder to fill in than random ones.
"""

import functools
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
from matplotlib import figure as mpl_figure
from ml_collections import config_dict
import numpy as np
import optax

from repjax import checkpoint
from repjax import experiment
from repjax import loop
from repjax import metrics
from repjax import optim
from repjax import plots
from repjax import study
from repjax import types
from repjax.data import block_masks
from repjax.data import recipes
from repjax.data import source
from repjax.data import transforms
from repjax.methods import beit as pretraining
from repjax.methods import dvae as tokenizing
from repjax.methods import mixup
from repjax.methods import supervised
from repjax.models import beit
from repjax.models import beit_weights
from repjax.models import dvae

_PAPER = dict(
  seed=0,
  stage='pretrain',
  # Work directory of a run of the stage before, or, for `pretrained`, a file in
  # Hugging Face's layout.
  pretrained='',
  batch_size=2048,
  eval_batch_size=1024,
  epochs=800.0,
  min_steps=0,
  data=dict(
    name='imagenet2012',
    dir='',
    train_split='train',
    eval_splits=('validation',),
    num_workers=8,
  ),
  augment=dict(
    size=224,
    area=(0.08, 1.0),
    padding=0,
    flip=True,
    rand_augment_layers=0,
    rand_augment_magnitude=9,
    erasing=0.0,
    mean=(0.5,),
    std=(0.5,),
  ),
  # An image is cut into patch_grid x patch_grid patches.
  patch_grid=14,
  model=dict(
    hidden_dim=768,
    mlp_dim=3072,
    num_heads=12,
    num_layers=12,
    layer_scale=0.1,
    drop_path_rate=0.1,
  ),
  # kind: 'dalle', the published encoder's shape, or 'small'. Images are resized
  # to size x size for it, or, with 0, it sees what the model sees. `untrained`
  # allows pre-training without a run of the stage 'tokenizer'.
  tokenizer=dict(
    kind='dalle',
    run='',
    untrained=False,
    vocab_size=8192,
    hidden_dim=256,
    num_blocks=2,
    size=112,
    kl_weight=1e-4,
    temperature=(1.0, 0.0625),
  ),
  # kind: 'blocks' as in the authors' code, 'blocks_text' as in the paper's
  # text, or 'random'; `exact` makes all counts equal.
  masks=dict(kind='blocks', num_masked=75, min_block=16, exact=False),
  tx=dict(
    learning_rate=1.5e-3,
    weight_decay=0.05,
    warmup=0.0125,
    end=0.0067,
    clip=3.0,
    layer_decay=1.0,
  ),
  mixup=dict(alpha=0.0),
  step=dict(
    label_smoothing=0.0,
    microbatches=1,
    compute_dtype='bfloat16',
    ema_decay=0.0,
  ),
  # What a stage changes above.
  stages=dict(
    tokenizer=dict(
      batch_size=512,
      epochs=20.0,
      tx=dict(learning_rate=1e-3, weight_decay=0.0),
    ),
    pretrain=dict(),
    finetune=dict(
      batch_size=1024,
      epochs=100.0,
      augment=dict(rand_augment_layers=2, erasing=0.25),
      tx=dict(learning_rate=4e-3, warmup=0.2, end=0.00025, layer_decay=0.65),
      mixup=dict(alpha=0.8),
      step=dict(label_smoothing=0.1),
    ),
    probe=dict(
      batch_size=1024,
      epochs=100.0,
      tx=dict(learning_rate=4e-3, weight_decay=1e-4),
    ),
  ),
  run=dict(
    log_every=100,
    eval_every=5000,
    save_every=1000,
    keep=2,
    best='',
    best_mode='max',
  ),
)

_SMALL = dict(
  batch_size=64,
  eval_batch_size=512,
  epochs=0.0,
  min_steps=2500,
  data=dict(name='digits', eval_splits=('test',), num_workers=0),
  augment=dict(size=0, flip=False),
  patch_grid=4,
  model=dict(
    hidden_dim=64,
    mlp_dim=128,
    num_heads=4,
    num_layers=3,
    drop_path_rate=0.0,
  ),
  tokenizer=dict(
    kind='small',
    vocab_size=32,
    hidden_dim=32,
    num_blocks=1,
    size=0,
    kl_weight=0.01,
    temperature=(1.0, 0.1),
  ),
  masks=dict(num_masked=6, min_block=2),
  tx=dict(learning_rate=3e-3, warmup=0.05, end=0.01),
  step=dict(compute_dtype='float32'),
  stages=dict(
    tokenizer=dict(
      batch_size=64, epochs=0.0, min_steps=600, tx=dict(learning_rate=3e-3)
    ),
    finetune=dict(
      batch_size=50,
      epochs=0.0,
      min_steps=300,
      augment=dict(rand_augment_layers=0, erasing=0.0),
      tx=dict(learning_rate=3e-3, warmup=0.1, end=0.0),
      mixup=dict(alpha=0.0),
      step=dict(label_smoothing=0.0),
    ),
    probe=dict(
      batch_size=50,
      epochs=0.0,
      min_steps=300,
      tx=dict(learning_rate=1e-2, weight_decay=0.0),
    ),
  ),
  run=dict(log_every=100, eval_every=500, save_every=500),
)

# The thresholds stood here before the first run of the study.
_CLAIMS = dict(
  few_label_gain=dict(
    says='100 labels: test accuracy after fine-tuning, pre-trained without '
    'labels minus from scratch',
    paper='+1.4 points (83.2 against 81.8, ImageNet-1k, base size, abstract)',
    at_least=0.03,
  ),
  blockwise_harder=dict(
    says='test loss of hidden tokens (nats), blockwise masks minus random ones',
    paper='not reported',
    at_least=0.0,
  ),
  blockwise_gain=dict(
    says='100 labels: test accuracy after fine-tuning, pre-trained with '
    'blockwise masks minus with random ones',
    paper='blockwise is better (ablation study)',
  ),
  probe_gain=dict(
    says='100 labels: test accuracy of a linear probe, BEiT minus the same '
    'network untrained',
    paper='not reported',
    at_least=0.0,
  ),
  token_accuracy=dict(
    says='share of hidden tokens that are predicted right, over that of the '
    'most frequent token',
    paper='not reported',
    at_least=1.0,
  ),
)

_KINDS = ('blocks', 'random')  # Of masks, in the study.


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  config = config_dict.ConfigDict(_PAPER)
  config.claims = _CLAIMS
  config.seeds = (0, 1, 2)
  # Images have `masks_per_image` masks, which a study draws ahead.
  config.study = dict(few=100, masks_per_image=16)
  if preset == 'paper':
    return config
  config.update(_SMALL)
  if preset == 'smoke':
    few = dict(batch_size=16, min_steps=4)
    config.update(
      dict(
        batch_size=16,
        min_steps=8,
        model=dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1),
        tokenizer=dict(untrained=True, vocab_size=8, hidden_dim=8),
        stages={stage: few for stage in ('tokenizer', 'finetune', 'probe')},
        run=dict(log_every=4, eval_every=4, save_every=4),
        seeds=(0, 1),
        study=dict(few=40, masks_per_image=1),
      )
    )
  elif preset != 'small':
    raise ValueError(f'presets are paper, small and smoke; got {preset!r}')
  return config


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
  config = of_stage(config, config.stage)
  data = experiment.images(config)
  if config.stage == 'tokenizer':
    return _build_tokenizer(config, data)
  if config.stage == 'pretrain':
    return _build_pretraining(config, data)
  return _build_classifier(config, data)


def _build_tokenizer(config, data):
  recipe = _token_recipe(config, data.recipe)
  return experiment.of_sources(
    config,
    _tokenizer_method(config, recipe.shape, data.steps),
    train=data.train,
    sources=functools.partial(_load, config),
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


def _build_pretraining(config, data):
  if not config.tokenizer.run and not config.tokenizer.untrained:
    raise types.InputError(
      'config.tokenizer.run is empty: train a tokenizer first '
      '(--config.stage=tokenizer) and give its --workdir, or allow one that is '
      'not trained by --config.tokenizer.untrained.'
    )
  sampler, length = _masks(config)
  recipe = data.recipe
  tokenizer = pretraining.of_encoder(
    _token_encoder(config, _token_recipe(config, recipe).shape),
    config.tokenizer.vocab_size,
  )
  method = _pretraining_method(config, tokenizer, recipe.shape, data.steps)
  if config.tokenizer.size:
    recipe = recipe._replace(
      train=transforms.compose(recipe.train, _token_images(config)),
      evaluate=transforms.compose(recipe.evaluate, _token_images(config)),
    )
  hide = block_masks.hide(sampler, length)

  def sources(split):
    rows = _load(config, split)
    masks = block_masks.fixed(sampler, length, len(rows), seed=config.seed)
    return rows.with_columns(**masks)

  def warm_start(state):
    if not config.tokenizer.run:
      return state
    trained = _restored(config, 'tokenizer', config.tokenizer.run)
    return pretraining.with_tokenizer(state, {'params': trained['encoder']})

  return experiment.of_sources(
    config,
    method,
    train=data.train,
    sources=sources,
    steps=data.steps,
    measure=_measure_pretraining,
    figures=lambda rows, outputs, columns: {},
    recipe=recipe._replace(train=transforms.compose(recipe.train, hide)),
    warm_start=warm_start,
  )


def _build_classifier(config, data):
  num_classes = data.train.num_classes
  model = _classifier(config, num_classes, data.recipe.shape)
  method = mixup.make(
    model,
    _adamw(config, data.steps),
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )

  def warm_start(state):
    path = config.pretrained
    if not path:
      return state
    if pathlib.Path(path, 'checkpoints').is_dir():
      trained = _restored(config, 'pretrain', path)
      params = beit_weights.transfer(trained, state.params)
    else:
      params = beit_weights.load(path, state.params, head='replace')
    return supervised.with_params(state, params)

  return experiment.classifier(
    config, data, method, multiple=2, warm_start=warm_start
  )


def run(config: config_dict.ConfigDict, report) -> types.Report:
  """A tokenizer, pre-training with both kinds of masks, then few labels.

  Whatever can be is trained side by side in one call, since compiling takes
  as long as training here.
  """
  del report  # Nothing is written but what is returned.
  train, recipe, _ = experiment.images(config)
  test = _load(config, 'test')
  rows, test_rows = (study.rows(x, recipe.evaluate) for x in (train, test))
  reconstruct, ids, test_ids = _study_tokenizer(config, train, test, recipe)
  rows['token_image'], test_rows['token_image'] = ids, test_ids
  pretrained, fill, curves = _study_pretraining(
    config, rows, test_rows, recipe.shape
  )
  accuracy = {}
  for stage, groups in (
    ('finetune', (_KINDS, ('scratch',))),
    ('probe', ((*_KINDS, 'scratch'),)),
  ):
    for kinds in groups:
      trained = _study_classifiers(
        config,
        stage,
        rows,
        test_rows,
        recipe.shape,
        train.num_classes,
        {kind: pretrained.get(kind) for kind in kinds},
      )
      for kind, (scores, curve) in trained.items():
        accuracy[stage, kind] = scores
        curves[f'{stage}, {kind}'] = curve
  tokens = {name: curves.pop(name) for name in _KINDS}
  nats = {kind: _nats(outputs) for kind, outputs in fill.items()}
  right = {kind: token_accuracy(outputs, {}) for kind, outputs in fill.items()}
  return types.Report(
    scalars={
      'few_label_gain': accuracy['finetune', 'blocks']
      - accuracy['finetune', 'scratch'],
      'blockwise_harder': nats['blocks'] - nats['random'],
      'blockwise_gain': accuracy['finetune', 'blocks']
      - accuracy['finetune', 'random'],
      'probe_gain': accuracy['probe', 'blocks'] - accuracy['probe', 'scratch'],
      'token_accuracy': right['blocks'] / _majority(test_ids),
      **{f'{stage} {kind}': x for (stage, kind), x in accuracy.items()},
      **{f'nats {kind}': x for kind, x in nats.items()},
      **{f'tokens right {kind}': x for kind, x in right.items()},
      'tokens in use': [float(len(np.unique(test_ids)))],
    },
    arrays={},
    figures={
      'accuracy': plots.seed_curves(curves, ylabel='test accuracy'),
      'hidden_tokens': plots.seed_curves(
        tokens, ylabel='tokens behind blocks predicted right'
      ),
      'masks': _masks_figure(config),
      'reconstructions': _reconstructions(
        config, test_rows, fill['blocks'], reconstruct
      ),
    },
  )


def _study_tokenizer(config, train, test, recipe):
  """(ids -> images, tokens of training images, tokens of test images)."""
  config = of_stage(config, 'tokenizer')
  recipe = _token_recipe(config, recipe)
  rows, test_rows = (study.rows(x, recipe.evaluate) for x in (train, test))
  steps = _steps(config, len(train))
  method = _tokenizer_method(config, recipe.shape, steps)
  seeds = config.seeds[:1]
  trained = study.train(
    'tokenizer',
    method,
    study.per_seed(rows, seeds),
    test_rows,
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
    points=4,
    vectorize=False,  # See `loop.fit_seeds`.
    score=mean_squared_error,
  )
  ids = study.predict_fn(method)(trained.states, rows)['ids'][0]
  model = _dvae(config, recipe.shape)
  (params,) = _unstack(trained.states.params)
  reconstruct = jax.jit(
    lambda ids: model.apply({'params': params}, ids, method='decode')
  )
  return reconstruct, ids, trained.outputs['ids'][0]


def _study_pretraining(config, rows, test_rows, shape):
  """With both kinds of masks, all seeds of both side by side.

  Returns:
    Three dicts by kind: parameters, one tree a seed; what is predicted of the
    test images behind masks of that kind; (steps, share of tokens behind
    BLOCKS that are predicted right).
  """
  config = of_stage(config, 'pretrain')
  num_rows, seeds = len(rows['image']), tuple(config.seeds)
  again = np.tile(np.arange(num_rows), config.study.masks_per_image)
  runs = len(_KINDS) * len(seeds)
  columns = {
    name: np.stack([rows[name][again]] * runs)
    for name in ('image', 'token_image')
  }
  masks = [
    _fixed_masks(config, kind, len(again), seed)
    for kind in _KINDS
    for seed in seeds
  ]
  columns |= {name: np.stack([m[name] for m in masks]) for name in masks[0]}
  tests = {
    kind: {
      **test_rows,
      **_fixed_masks(config, kind, len(test_rows['image']), _test_seed(config)),
    }
    for kind in _KINDS
  }
  steps = _steps(config, num_rows)
  tokenizer = pretraining.known(config.tokenizer.vocab_size)
  method = _pretraining_method(config, tokenizer, shape, steps)
  trained = study.train(
    'pre-training',
    method,
    columns,
    tests['blocks'],
    seeds=seeds * len(_KINDS),
    batch_size=config.batch_size,
    steps=steps,
    points=10,
    score=token_accuracy,
  )
  predict = study.predict_fn(method)
  params, outputs, curves = {}, {}, {}
  at, scores = trained.curve
  for kind, part in zip(_KINDS, _parts(len(seeds)), strict=False):
    states = jax.tree.map(lambda x, part=part: x[part], trained.states)
    outputs[kind] = predict(states, tests[kind])
    curves[kind] = (at, scores[:, part])
    params[kind] = _unstack(states.params)
  return params, outputs, curves


def _study_classifiers(
  config, stage, rows, test_rows, shape, num_classes, pretrained
):
  """Trains on few labels: kind -> (test accuracy [S], curve).

  Args:
    config: Of the study.
    stage: 'finetune' or 'probe'.
    rows: Training rows.
    test_rows: Test rows.
    shape: Of the images.
    num_classes: Number of labels.
    pretrained: Kind -> parameters of pre-training, one tree a seed, or None to
      start from scratch. All kinds are trained side by side.
  """
  config = of_stage(config, stage)
  if list(pretrained.values()) == [None]:
    config.tx.layer_decay = 1.0  # There is nothing that is worth keeping.
  seeds = tuple(config.seeds)
  columns = study.per_seed(
    {key: rows[key] for key in ('image', 'label')},
    seeds,
    num_rows=config.study.few,
  )
  steps = _steps(config, config.study.few)
  method = supervised.make(
    _classifier(config, num_classes, shape), _adamw(config, steps)
  )
  batch = {'image': rows['image'][:1], 'mask': np.ones(1)}
  fresh = jax.jit(lambda rng: method.init(rng, batch))
  starts = []
  for trees in pretrained.values():
    for i, seed in enumerate(seeds):
      state = fresh(jax.random.key(seed))
      if trees is not None:
        params = beit_weights.transfer(trees[i], state.params)
        state = supervised.with_params(state, params)
      starts.append(state)
  trained = study.train(
    f'{stage}, {", ".join(pretrained)}',
    method,
    {
      name: np.concatenate([x] * len(pretrained)) for name, x in columns.items()
    },
    {key: test_rows[key] for key in ('image', 'label')},
    seeds=seeds * len(pretrained),
    batch_size=config.batch_size,
    steps=steps,
    points=10,
    states=jax.tree.map(lambda *x: jnp.stack(x), *starts),
  )
  at, scores = trained.curve
  return {
    kind: (trained.score[part], (at, scores[:, part]))
    for kind, part in zip(pretrained, _parts(len(seeds)), strict=False)
  }


def _parts(size):
  """slice(0, size), slice(size, 2 * size), ..."""
  return (slice(i * size, (i + 1) * size) for i in itertools.count())


def _unstack(tree):
  """A tree with a leading axis as a list of trees."""
  number = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(number)]


def _fixed_masks(config, kind, num_rows, seed):
  config = config.copy_and_resolve_references()
  config.masks.kind = kind
  return block_masks.fixed(*_masks(config), num_rows, seed=seed)


def _test_seed(config):
  return 1 + max(config.seeds)


def mean_squared_error(outputs, test):
  """Of reconstructions, [S]."""
  del test  # The method knows the images.
  return outputs['mse'].mean(-1)


def token_accuracy(outputs, test):
  """Share of hidden patches whose token is predicted, [S]."""
  del test  # The method knows the tokens.
  return outputs['hits'].sum(-1) / outputs['patches'].sum(-1)


def _nats(outputs):
  return outputs['nll'].sum(-1) / outputs['patches'].sum(-1)


def _majority(ids):
  """Share of the most frequent token."""
  return np.bincount(ids.ravel()).max() / ids.size


# Parts of the experiments.


def _steps(config, num_rows):
  return experiment.num_steps(
    num_rows,
    batch_size=config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )


def _load(config, split):
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


def _token_recipe(config, recipe: recipes.Recipe) -> recipes.Recipe:
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


def _masks(config):
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


def _dvae(config, shape):
  return dvae.Dvae(
    _token_encoder(config, shape),
    dvae.Decoder(
      shape[-1],
      hidden_dim=config.tokenizer.hidden_dim,
      num_halvings=_num_halvings(config, shape),
      num_blocks=config.tokenizer.num_blocks,
    ),
  )


def _tokenizer_method(config, shape, steps):
  first, last = config.tokenizer.temperature
  return tokenizing.make(
    _dvae(config, shape),
    _adamw(config, steps),
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


def _pretraining_method(config, tokenizer, shape, steps):
  step = {k: v for k, v in config.step.items() if k != 'label_smoothing'}
  return pretraining.make(
    beit.MaskedImageModel(
      _encoder(config, shape, 'shared'), tokenizer.vocab_size
    ),
    tokenizer,
    _adamw(config, steps),
    **step,
  )


def _classifier(config, num_classes, shape):
  return beit.Classifier(
    _encoder(config, shape, 'per_layer'),
    num_classes,
    trains='head' if config.stage == 'probe' else 'all',
  )


def _adamw(config, steps):
  tx = config.tx
  schedule = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=tx.end
  )
  num_layers = config.model.num_layers
  decays = optim.decays
  if config.stage == 'probe':  # Decay would move what no gradient moves.
    decays = functools.partial(decays, exempt=('bias', 'encoder'))
  return optax.chain(
    optax.clip_by_global_norm(tx.clip),
    optax.adamw(schedule, weight_decay=tx.weight_decay, mask=decays),
    optim.layer_decay(
      tx.layer_decay,
      functools.partial(beit.layer_of, num_layers=num_layers),
      num_layers=num_layers,
    ),
  )


def _restored(config, stage, workdir):
  """Parameters of a finished run of an earlier stage."""
  earlier = of_stage(config, stage)
  earlier.tokenizer.untrained = True  # It is in the checkpoint.
  made = build(earlier)
  state = loop.init(made.method, made.train.batch(0), seed=0)
  store = checkpoint.Checkpoints(
    str(pathlib.Path(workdir, 'checkpoints')), read_only=True
  )
  restored = store.restore(state)
  if restored is None:
    raise types.InputError(f'{workdir} holds no checkpoint of {stage!r} yet.')
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
  return metrics.language(outputs['nll'], outputs['patches'], outputs['hits'])


def _masks_figure(config, columns=8):
  """Masks of both kinds, hidden patches dark."""
  rows = {}
  for kind in _KINDS:
    config = config.copy_and_resolve_references()
    config.masks.kind = kind
    sampler, _ = _masks(config)
    rng = np.random.default_rng(0)
    rows[kind] = 1 - np.stack([sampler(rng) for _ in range(columns)])[..., None]
  return _pictures(rows)


def _reconstructions(config, test_rows, outputs, reconstruct, columns=8):
  """Images, their tokens, what is hidden, and what the model fills in."""
  grid = (config.patch_grid, config.patch_grid)
  image = test_rows['image'][:columns]
  ids, guess = (outputs[name][0, :columns] for name in ('ids', 'guess'))
  masks = _fixed_masks(config, 'blocks', columns, _test_seed(config))
  hidden = np.zeros(ids.shape)
  for row in range(len(ids)):
    weight = masks['masked_weight'][row] > 0
    hidden[row, masks['masked'][row][weight]] = 1
  scale = np.ones((1, image.shape[1] // grid[0], image.shape[2] // grid[1], 1))
  shown = np.kron(hidden.reshape(-1, *grid, 1), scale)
  return _pictures(
    {
      'image': image,
      'its tokens': reconstruct(ids.reshape(-1, *grid)),
      'seen': np.where(shown > 0, image.max(), image),
      'filled in': reconstruct(guess.reshape(-1, *grid)),
    }
  )


def _pictures(rows):
  """Rows of images with their names, all in one range of values."""
  fig = mpl_figure.Figure(figsize=(8, 1.05 * len(rows)))
  places = fig.subplots(len(rows), len(next(iter(rows.values()))))
  for line, (name, images) in zip(places, rows.items(), strict=True):
    images = np.asarray(images)
    low, high = images.min(), images.max()
    for axes, image in zip(line, (images - low) / (high - low), strict=True):
      axes.imshow(np.squeeze(image), cmap='gray', vmin=0, vmax=1)
      axes.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, fontsize=8)
  return fig
