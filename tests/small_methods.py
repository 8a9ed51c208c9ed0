"""One small method of each kind that takes an optax chain, and rows for it."""

import jax
import numpy as np

from repjax import types
from repjax.data.images import block_masks
from repjax.data.series import series as seriess
from repjax.data.series import windows
from repjax.methods import afn
from repjax.methods import anomaly_transformer
from repjax.methods import augmix
from repjax.methods import behaviour_cloning
from repjax.methods import beit
from repjax.methods import class_conditional
from repjax.methods import classifier
from repjax.methods import clip
from repjax.methods import coral
from repjax.methods import dann
from repjax.methods import describing
from repjax.methods import detection
from repjax.methods import domain_mixup
from repjax.methods import dvae
from repjax.methods import erm
from repjax.methods import esvit
from repjax.methods import finetuning
from repjax.methods import fixmatch
from repjax.methods import forecasting
from repjax.methods import group_dro
from repjax.methods import group_invariance
from repjax.methods import grouped
from repjax.methods import instruction_tuning
from repjax.methods import irm
from repjax.methods import language_modeling
from repjax.methods import lp_ft
from repjax.methods import mixup
from repjax.methods import moco
from repjax.methods import model_inputs
from repjax.methods import multi_crop
from repjax.methods import multitask
from repjax.methods import noisy_student
from repjax.methods import partial_labels
from repjax.methods import pico
from repjax.methods import pseudo_label
from repjax.methods import regression
from repjax.methods import sagnet
from repjax.methods import simclr
from repjax.methods import startup
from repjax.methods import supervised
from repjax.methods import swav
from repjax.methods import token_refinement
from repjax.methods import vae
from repjax.methods import vrex
from repjax.models import agent
from repjax.models import anomaly_transformer as anomaly_model
from repjax.models import beit as beit_model
from repjax.models import clip as clip_model
from repjax.models import describer
from repjax.models import dvae as dvae_model
from repjax.models import linear_forecaster
from repjax.models import mlp
from repjax.models import refined_vit
from repjax.models import shot_detector
from repjax.models import transformer
from repjax.models import vae as vae_model
from repjax.models import vit

ROWS, CLASSES = 8, 3
NET = mlp.Mlp(CLASSES, features=(6,))
_WIDTHS = dict(hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1)
_VIT = vit.ViT(
  CLASSES, patch_size=2, pool='average', position='sincos', **_WIDTHS
)
_TOWER = clip_model.TowerConfig(**_WIDTHS)
_LM = transformer.DecoderLM(7, num_positions=8, **_WIDTHS)


def _normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(ROWS, *shape)).astype(np.float32)


def _ints(count, *shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, count, (ROWS, *shape)).astype(np.int32)


_ROWS = dict(
  image=_normal(8, 8, 1),
  strong=_normal(8, 8, 1, seed=1),
  strong_2=_normal(8, 8, 1, seed=2),
  unlabelled=_normal(8, 8, 1, seed=4),
  label=np.arange(ROWS, dtype=np.int32) % CLASSES,
  pseudo=_ints(CLASSES),
  pseudo_target=np.full((ROWS, CLASSES), 1 / CLASSES, np.float32),
  group=np.arange(ROWS, dtype=np.int32) // 2 % 2,
  # One task has a single row, which weighs as much as all others together.
  task=(np.arange(ROWS) == 0).astype(np.int32),
  candidates=np.eye(CLASSES, dtype=bool)[_ints(CLASSES)] | [True, False, False],
  index=np.arange(ROWS, dtype=np.int32),
  action=np.tanh(_normal(2)),
  mask=np.ones(ROWS, np.float32),
)
_SOME = {**_ROWS, 'labelled': (np.arange(ROWS) < 3).astype(np.float32)}
_TEXT = dict(
  tokens=_ints(7, 6),
  weights=(_normal(6) > -0.5).astype(np.float32),
  mask=_ROWS['mask'],
)
_CAPTIONS = {
  **_ROWS,
  'tokens': np.where(np.arange(6) == 4, 9, _ints(9, 6)),
  'token_mask': np.ones((ROWS, 6), np.float32),
}
_HIDDEN = {
  **_ROWS,
  'token_image': _ints(5, 4, 4),
  **block_masks.fixed(
    block_masks.as_in_text((4, 4), ratio=0.3, min_block=2), 6, ROWS, seed=0
  ),
}


def _views(batch, rng):
  del rng  # Told apart, and drawn by nobody.
  return batch, {**batch, 'image': 0.5 * batch['image'] ** 2 + 1}


def _shifted(image, rngs):
  return image + jax.vmap(jax.random.normal)(rngs)[:, None, None, None]


def _of(module, model, batch, **settings):
  return lambda tx: module.make(model, tx, **settings), batch


def _tasks(weighting):
  return _of(
    multitask, NET, _ROWS, num_tasks=2, weighting=weighting, heads='one'
  )


def _loss(params, model_state, batch, rng):
  logits, _ = model_inputs.forward(
    NET, model_inputs.image, {'params': params}, batch, rng
  )
  return types.Losses(classifier.supervised(logits, batch)[0], model_state, {})


def _in_turn(tx):
  return dann.make(
    NET, tx, form='alternating', tx_adversary=tx, adversary_steps=1, **_PENALTY
  )


def _windows():
  numbers = np.random.default_rng(0).normal(size=ROWS + 8)
  source = windows.windows(
    seriess.from_arrays('x', numbers), length=7, horizon=2
  )
  return {**source.read(np.arange(ROWS)), 'mask': np.ones(ROWS, np.float32)}


_GROUPS = dict(num_groups=2)
_PENALTY = dict(weight=2.0, **_GROUPS)
_CLASSES = dict(num_classes=CLASSES)
_MIXED = dict(alpha=1.0, **_CLASSES)
_SETS = dict(num_rows=ROWS, **_CLASSES)
_FORECASTER = linear_forecaster.LinearForecaster

# Name -> (optax chain -> method, batch); what follows a space is a variant.
METHODS = {
  'supervised': _of(supervised, NET, _ROWS),
  'classifier': (lambda tx: classifier.make(_loss, NET, tx), _ROWS),
  'erm': _of(erm, NET, _ROWS),
  'erm of some labels': _of(erm, NET, _SOME),
  'erm of groups': _of(erm, NET, _ROWS, balance='groups', **_GROUPS),
  'lp_ft': (lambda tx: lp_ft.make(NET, tx), _ROWS),
  'mixup': _of(mixup, NET, _ROWS, **_MIXED),
  'mixup of nothing': _of(mixup, NET, _ROWS, alpha=0.0, **_CLASSES),
  'mixup of boxes': _of(mixup, NET, _ROWS, kind='cutmix', **_MIXED),
  'mixup of features': _of(
    mixup, NET, _ROWS, kind='manifold', layers=('hidden_0',), **_MIXED
  ),
  'domain_mixup': _of(domain_mixup, NET, _ROWS, **_CLASSES, **_GROUPS),
  'sagnet': _of(sagnet, NET, _ROWS, **_CLASSES),
  'dann': _of(dann, NET, _ROWS, **_PENALTY),
  'dann of some labels': _of(dann, NET, _SOME, **_PENALTY),
  'dann in turn': (_in_turn, _ROWS),
  'dann in turn of some labels': (_in_turn, _SOME),
  'afn': _of(afn, NET, _ROWS, weight=0.1),
  'afn by radius': _of(afn, NET, _ROWS, weight=0.1, form='hard'),
  'augmix': _of(augmix, NET, _ROWS),
  'pseudo_label': _of(pseudo_label, NET, _ROWS, weight=1.0),
  'pseudo_label of some labels': _of(
    pseudo_label, NET, _SOME, weight=1.0, threshold=0.0
  ),
  'fixmatch': _of(fixmatch, NET, _ROWS),
  'fixmatch of some labels': _of(fixmatch, NET, _SOME, threshold=0.0),
  'noisy_student': _of(noisy_student, NET, _ROWS),
  'noisy_student of some labels': _of(noisy_student, NET, _SOME),
  **{
    f'multitask {x}': _tasks(x)
    for x in ('rows', 'uniform', 'uncertainty', 'pcgrad', 'gradvac')
  },
  'grouped': (
    lambda tx: grouped.make(
      NET, tx, grouped.penalized(lambda rows: 0.0, 2), **_GROUPS
    ),
    _ROWS,
  ),
  'irm': _of(irm, NET, _ROWS, **_PENALTY),
  'vrex': _of(vrex, NET, _ROWS, **_PENALTY),
  'coral': _of(coral, NET, _ROWS, **_PENALTY),
  'group_dro': _of(group_dro, NET, _ROWS, **_GROUPS),
  'group_invariance': _of(group_invariance, NET, _ROWS, weight=2.0, **_CLASSES),
  'class_conditional': (
    lambda tx: class_conditional.make(
      NET, tx, form='mmd', **_CLASSES, **_PENALTY
    ),
    _ROWS,
  ),
  **{
    f'partial_labels {x}': _of(partial_labels, NET, _ROWS, kind=x, **_SETS)
    for x in partial_labels.KINDS
  },
  'pico': _of(
    pico,
    NET,
    _ROWS,
    views=_views,
    queue_size=16,
    dim=4,
    warmup_steps=0,
    target_momentum=0.9,
    **_SETS,
  ),
  'simclr': _of(simclr, NET, _ROWS, views=_views, dim=4),
  'moco': _of(moco, NET, _ROWS, views=_views, dim=4, queue_size=16),
  'swav': _of(
    swav,
    NET,
    _ROWS,
    num_prototypes=3,
    projection=swav.Projection(hidden_dim=7, dim=4),
  ),
  'startup': _of(startup, NET, _ROWS, views=_shifted),
  'startup of labels': _of(
    startup, NET, _ROWS, views=_shifted, objective=startup.Objective(1, 1, 0)
  ),
  'esvit': _of(
    esvit,
    _VIT,
    _ROWS,
    crops=multi_crop.MultiCrop(size=8, local_size=4, num_local=1),
    num_prototypes=5,
    hidden_dim=8,
    dim=3,
    region_weight=0.0,
  ),
  'clip': _of(
    clip,
    clip_model.Clip(
      4,
      clip_model.VisionTower(_TOWER, patch_size=2),
      clip_model.TextTower(_TOWER, 10, 6, end_token=9),
    ),
    _CAPTIONS,
  ),
  'beit': (
    lambda tx: beit.make(
      beit_model.MaskedImageModel(beit_model.Encoder(2, **_WIDTHS), 5),
      beit.known(5),
      tx,
    ),
    _HIDDEN,
  ),
  'dvae': _of(
    dvae,
    dvae_model.Dvae(
      dvae_model.Encoder(5, hidden_dim=8, num_halvings=1, num_blocks=0),
      dvae_model.Decoder(1, hidden_dim=8, num_halvings=1, num_blocks=0),
    ),
    _ROWS,
    temperature=1.0,
  ),
  'vae': _of(vae, vae_model.Vae(features=(6,), code_dim=1), _ROWS),
  'regression': _of(regression, NET, {**_ROWS, 'target': _normal(CLASSES)}),
  'behaviour_cloning': _of(
    behaviour_cloning,
    agent.Agent(
      agent.Encoder((4,), (2,)),
      agent.Actor(agent.Projection(6), agent.Trunk(4, (5,))),
    ),
    {**_ROWS, 'target': np.tanh(_normal(2))},
  ),
  'token_refinement': _of(
    token_refinement,
    refined_vit.RefinedViT(
      vit.ViT(CLASSES, patch_size=4, **{**_WIDTHS, 'num_layers': 2})
    ),
    _ROWS,
  ),
  'detection': _of(
    detection,
    shot_detector.ShotDetector(
      maps=(0,), sides=(3.0,), stage_sizes=(1,), width=4
    ),
    {
      **_ROWS,
      'label': np.ones(ROWS, np.int32),
      'box': np.tile(np.float32([1, 1, 5, 5]), (ROWS, 1)),
    },
  ),
  'describing': _of(
    describing,
    describer.Describer(
      describer.Captioner(8, embed_dim=3, hidden_dim=4, dropout_rate=0.0),
      describer.LanguageModel(
        8, embed_dim=3, hidden_dim=4, num_layers=1, dropout_rate=0.0
      ),
    ),
    dict(features=_normal(5, 6), tokens=_ints(8, 5), mask=_ROWS['mask']),
    width=4,
  ),
  'anomaly_transformer': _of(
    anomaly_transformer,
    anomaly_model.AnomalyTransformer(**_WIDTHS),
    dict(series=_normal(12, 3), mask=_ROWS['mask']),
  ),
  'forecasting': _of(forecasting, _FORECASTER(2), _windows()),
  'language_modeling': _of(language_modeling, _LM, _TEXT),
  'finetuning': (
    lambda tx: finetuning.writer(
      _LM, tx, objective='causal', max_new_tokens=1, end_id=0
    ),
    _TEXT,
  ),
  'instruction_tuning': _of(
    instruction_tuning, _LM, _TEXT, inputs=model_inputs.packed_text
  ),
  'instruction_tuning of rows': _of(
    instruction_tuning,
    _LM,
    _TEXT,
    inputs=model_inputs.packed_text,
    mean='rows',
  ),
}
