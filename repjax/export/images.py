"""Host side: networks of images in the words of `transformers`.

What `repjax.weights` reads is written here, so that both ways meet: the fields
of config.json, beside the arrays that `repjax.weights` names.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from repjax import types
from repjax.export import form
from repjax.layers.positions import grid_positions
from repjax.models import beit
from repjax.models import clip
from repjax.models import swin
from repjax.models import vit
from repjax.weights import beit_weights
from repjax.weights import clip_weights
from repjax.weights import swin_weights
from repjax.weights import vit_weights

Names = Sequence[str] | None
Shape = tuple[int, ...]


def of_vit(model: vit.ViT, image: Shape, names: Names) -> form.Form:
  """ViTForImageClassification, or IJepaForImageClassification.

  The latter is the ViT without a class token, which averages its patches. Fixed
  positions become a table of their values.

  Args:
    model: With exact attention and no layer before the head.
    image: (height, width, channels) of what it sees.
    names: Of the classes, or None.
  """
  averages = model.pool == 'average'
  kind = 'IJepa' if averages else 'ViT'
  what = f'{kind}ForImageClassification'
  form.check_attention(what, model.attention_fn)
  form.check(what, model, representation_dim=None)
  config = dict(
    architectures=[what],
    model_type=kind.lower(),
    image_size=form.size(image[:2]),
    patch_size=form.size(_pair(model.patch_size)),
    num_channels=image[2],
    hidden_act=form.ACTIVATIONS[f'gelu_{model.gelu}'],
    qkv_bias=True,
    **_widths(model),
    **form.labels(model.num_classes, names),
  )

  def save(path, params):
    if model.position == 'sincos':
      params = {**params, 'positions': {'embedding': _table(model, image)}}
    vit_weights.save_safetensors(path, params)

  return _classifier(config, save)


def of_beit(
  model: beit.Classifier | beit.MaskedImageModel, image: Shape, names: Names
) -> form.Form:
  """BeitForImageClassification or BeitForMaskedImageModeling.

  Args:
    model: The network.
    image: (height, width, channels) of what it sees.
    names: Of the classes, or None.
  """
  encoder, masked = model.encoder, isinstance(model, beit.MaskedImageModel)
  what = f'BeitFor{"MaskedImageModeling" if masked else "ImageClassification"}'
  form.check_attention(what, encoder.attention_fn)
  config = dict(
    architectures=[what],
    model_type='beit',
    image_size=form.size(image[:2]),
    patch_size=form.size(_pair(encoder.patch_size)),
    num_channels=image[2],
    hidden_act=form.ACTIVATIONS[f'gelu_{encoder.gelu}'],
    use_mask_token=masked,
    use_mean_pooling=masked or model.pool == 'average',
    use_absolute_position_embeddings=encoder.position == 'learned',
    use_shared_relative_position_bias=encoder.relative == 'shared',
    use_relative_position_bias=encoder.relative == 'per_layer',
    layer_scale_init_value=encoder.layer_scale,
    drop_path_rate=encoder.drop_path_rate,
    **_widths(encoder),
  )
  if isinstance(model, beit.MaskedImageModel):
    config['vocab_size'] = model.vocab_size
    return form.Form(
      config,
      beit_weights.save,
      auto='BeitForMaskedImageModeling',
      task='image-feature-extraction',
    )
  config |= form.labels(model.num_classes, names)
  return _classifier(config, beit_weights.save)


def of_swin(model: swin.Swin, image: Shape, names: Names) -> form.Form:
  """SwinForImageClassification.

  Args:
    model: The network.
    image: (height, width, channels) of what it sees.
    names: Of the classes, or None.
  """
  form.check('SwinForImageClassification', model, layer_norm_epsilon=1e-5)
  sides = [math.ceil(x / model.patch_size) for x in image[:2]]
  for stage in range(len(model.depths)):
    if min(sides) < model.window:
      form.refuse(
        'SwinForImageClassification',
        'it fails on maps smaller than its windows: those of stage '
        f'{stage} are {sides[0]} x {sides[1]}, and window={model.window}',
      )
    sides = [-(-x // 2) for x in sides]
  config = dict(
    architectures=['SwinForImageClassification'],
    model_type='swin',
    image_size=form.size(image[:2]),
    patch_size=model.patch_size,
    num_channels=image[2],
    embed_dim=model.hidden_dim,
    depths=list(model.depths),
    num_heads=list(model.num_heads),
    window_size=model.window,
    mlp_ratio=model.mlp_ratio,
    qkv_bias=True,
    use_absolute_embeddings=False,
    hidden_act=form.ACTIVATIONS[f'gelu_{model.gelu}'],
    hidden_dropout_prob=model.dropout_rate,
    attention_probs_dropout_prob=model.attention_dropout_rate,
    drop_path_rate=model.drop_path_rate,
    layer_norm_eps=model.layer_norm_epsilon,
    **form.labels(model.num_classes, names),
  )
  return _classifier(config, swin_weights.save)


def check_timm(model: swin.Swin, image: Shape) -> None:
  """Refuses a Swin of which timm's SwinTransformer has other logits.

  It cuts windows and tables down to small maps, side by side, and pads what
  windows do not divide behind the shift, not before.

  Args:
    model: The network.
    image: (height, width, channels) of what it sees.
  """
  what = "timm's SwinTransformer"
  form.check(what, model, gelu='exact', layer_norm_epsilon=1e-5)
  sides = [image[0] / model.patch_size, image[1] / model.patch_size]
  for stage in range(len(model.depths)):
    whole = not any(x % model.window for x in sides)
    if not whole or (model.window in sides and sides[0] != sides[1]):
      form.refuse(
        what,
        f'windows of {model.window} must divide its maps, and that of stage '
        f'{stage} is {sides[0]:g} x {sides[1]:g}; --format=transformers pads '
        'as we do',
      )
    sides = [-(-x // 2) for x in sides]


def of_clip(model: clip.Clip, image: Shape) -> form.Form:
  """CLIPModel.

  Args:
    model: Of the published towers; texts end with a token of their own.
    image: (height, width, channels) of what it sees.
  """
  what, tower, text = 'CLIPModel', model.image_tower, model.text_tower
  if not (
    isinstance(tower, clip.VisionTower) and isinstance(text, clip.TextTower)
  ):
    form.refuse(
      what,
      'its towers are VisionTower and TextTower, and here '
      f'{type(tower).__name__} and {type(text).__name__}',
    )
  form.check(what, model, initial_bias=None)
  patch = _pair(tower.patch_size)
  if image[0] != image[1] or patch[0] != patch[1]:
    form.refuse(what, f'images and patches are square; got {image=}, {patch=}')
  # Of id 2, transformers takes the largest id for the end.
  if text.end_token in (None, 2):
    form.refuse(what, f'texts end with a token; got end_token={text.end_token}')
  config = dict(
    architectures=[what],
    model_type='clip',
    projection_dim=model.features,
    logit_scale_init_value=float(np.log(model.initial_scale)),
    vision_config=dict(
      model_type='clip_vision_model',
      image_size=image[0],
      patch_size=patch[0],
      num_channels=image[2],
      projection_dim=model.features,
      **_tower(tower.config, causal=False),
    ),
    text_config=dict(
      model_type='clip_text_model',
      vocab_size=text.vocab_size,
      max_position_embeddings=text.num_positions,
      eos_token_id=text.end_token,
      projection_dim=model.features,
      **_tower(text.config, causal=True),
    ),
  )
  return form.Form(
    config,
    clip_weights.save,
    auto='AutoModel',
    task='zero-shot-image-classification',
  )


def _classifier(config, save) -> form.Form:
  return form.Form(
    config,
    save,
    auto='AutoModelForImageClassification',
    task='image-classification',
  )


def _widths(model) -> dict[str, Any]:
  return dict(
    hidden_size=model.hidden_dim,
    intermediate_size=model.mlp_dim,
    num_attention_heads=model.num_heads,
    num_hidden_layers=model.num_layers,
    hidden_dropout_prob=model.dropout_rate,
    attention_probs_dropout_prob=model.attention_dropout_rate,
    layer_norm_eps=model.layer_norm_epsilon,
  )


def _tower(config: clip.TowerConfig, *, causal: bool) -> dict[str, Any]:
  if config.attention_fn is not None:
    form.check_attention('CLIPModel', config.attention_fn, causal=causal)
  named = {'gelu_quick': 'quick_gelu', 'gelu_exact': 'gelu'}
  if config.activation not in named:
    form.refuse('CLIPModel', f'it has no activation={config.activation!r}')
  return dict(
    hidden_size=config.hidden_dim,
    intermediate_size=config.mlp_dim,
    num_attention_heads=config.num_heads,
    num_hidden_layers=config.num_layers,
    hidden_act=named[config.activation],
    layer_norm_eps=config.layer_norm_epsilon,
    attention_dropout=0.0,
  )


def _table(model: vit.ViT, image: Shape) -> types.PyTree:
  """The fixed positions of a model, [1, T, D]."""
  height, width = _pair(model.patch_size)
  prefix = int(model.pool == 'token')
  table = grid_positions.sincos_2d(
    (image[0] // height, image[1] // width),
    model.hidden_dim,
    num_prefix_tokens=prefix,
  )
  return np.asarray(table)


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
  return (sides, sides) if isinstance(sides, int) else sides
