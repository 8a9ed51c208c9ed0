"""Small networks with drawn weights, as `networks.of` finds those of runs."""

import functools

import jax
import numpy as np

from repjax.export import networks
from repjax.layers import adapters
from repjax.models import beit
from repjax.models import clip
from repjax.models import swin
from repjax.models import t5
from repjax.models import t5_block
from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit

VOCAB, LENGTH, SIDE, CHANNELS = 40, 7, 12, 3
_WIDTHS = dict(hidden_dim=16, mlp_dim=24, num_heads=2, num_layers=2)
_TOWER = dict(_WIDTHS, layer_norm_epsilon=1e-5)
_TEXT = dict(
  vocab_size=VOCAB, num_positions=20, layer_norm_epsilon=1e-5, **_WIDTHS
)
_POST = dict(_TEXT, norm='post', embedding_norm=True, activation='gelu_exact')
_BEIT = dict(_WIDTHS, patch_size=4)
_CLIP = clip.Clip(
  8,
  clip.VisionTower(clip.TowerConfig(**_TOWER), patch_size=4),
  clip.TextTower(clip.TowerConfig(**_TOWER), VOCAB, 20, end_token=VOCAB - 1),
)


def _t5(**fields):
  layer = dict(hidden_dim=16, head_dim=6, mlp_dim=24, num_heads=2)
  tied = not fields['gated']
  return t5.T5(
    VOCAB,
    config=t5_block.LayerConfig(**layer, **fields),
    num_layers=2,
    tied=tied,
    scaled=tied,
    num_buckets=8,
    max_distance=16,
  )


IMAGES = {
  'vit': vit.ViT(5, patch_size=4, **_WIDTHS),
  'vit of patches': vit.ViT(
    5, patch_size=4, pool='average', gelu='exact', **_WIDTHS
  ),
  'vit of waves': vit.ViT(5, patch_size=4, position='sincos', **_WIDTHS),
  'vit of waves and patches': vit.ViT(
    5,
    patch_size=(4, 3),
    position='sincos',
    pool='average',
    grid=(3, 4),
    **_WIDTHS,
  ),
  'beit': beit.Classifier(beit.Encoder(relative='per_layer', **_BEIT), 5),
  'beit of a token': beit.Classifier(
    beit.Encoder(relative='none', position='learned', layer_scale=0.0, **_BEIT),
    5,
    pool='token',
  ),
  'swin': swin.Swin(
    5, hidden_dim=8, depths=(1, 2), num_heads=(1, 2), patch_size=2, window=3
  ),
}
MASKED = beit.MaskedImageModel(beit.Encoder(relative='shared', **_BEIT), 11)
ENCODERS = {
  'bert': text_heads.Classifier(num_classes=3, num_token_types=2, **_POST),
  'bert of masked tokens': text_heads.MaskedLM(**_POST),
  'roberta': text_heads.Classifier(
    num_classes=3, num_token_types=1, position_offset=2, **_POST
  ),
}
DECODERS = {
  'gpt2': transformer.DecoderLM(**_TEXT),
  'gpt2 with a head': transformer.DecoderLM(
    **dict(_TEXT, activation='gelu_exact'), tied=False
  ),
}
BOTH = {
  'bart': transformer.EncoderDecoder(
    **_POST, position_offset=2, num_decoder_layers=1, scale_embedding=True
  ),
  't5': _t5(activation='relu', gated=False),
  't5 of version 1.1': _t5(activation='gelu_tanh', gated=True),
}
CLIP = _CLIP


def images(rows=3):
  """Images in the range that networks see, [rows, SIDE, SIDE, CHANNELS]."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(rows, SIDE, SIDE, CHANNELS)).astype(np.float32)


def tokens(rows=3, length=LENGTH, seed=0):
  """Texts without ids of padding, [rows, length]."""
  rng = np.random.default_rng(seed)
  return rng.integers(3, VOCAB - 1, (rows, length)).astype(np.int32)


def inputs(name):
  """(positional, named) arguments of the network of a name."""
  if name in IMAGES:
    return (images(),), {}
  if name in BOTH:
    return (tokens(),), {'source': tokens(length=9, seed=1)}
  return (tokens(),), {}


def named(name):
  """The network of a name, with weights that hide no error."""
  model = {**IMAGES, **ENCODERS, **DECODERS, **BOTH}[name]
  args, kwargs = inputs(name)
  return network(model, *args, **kwargs)


def network(model, *args, **kwargs):
  """A network with drawn weights: scales near 1, everything else near 0."""
  # Nothing but shapes is left of these: no program has to be compiled.
  init = functools.partial(model.init, train=False)
  variables = jax.eval_shape(init, jax.random.key(0), *args, **kwargs)
  rng = np.random.default_rng(7)

  def draw(path, leaf):
    name = path[-1].key
    center = float(name == 'scale')
    # Attention that is sure of itself tells keys from each other.
    return (center + 0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  drawn = jax.tree_util.tree_map_with_path(draw, variables)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args)
  return networks.Network(model, drawn, shapes)


def with_lora(name, train='head'):
  """The network of a name with LoRA at queries and values."""
  plain = {**IMAGES, **ENCODERS, **DECODERS, **BOTH}[name]
  attention = 'query|key|value' if name in DECODERS else 'query|value'
  model = adapters.adapt(
    plain,
    {rf'.*/({attention})': adapters.lora(2, alpha=6)},
    train=(lambda path: path[0] == train) if name in ENCODERS else None,
  )
  args, kwargs = inputs(name)
  return network(model, *args, **kwargs)


def outputs(found, *args, **kwargs):
  """What a network says; networks of equal fields have one program."""
  return _outputs(found.module, found.variables, *args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(module, variables, *args, **kwargs):
  return module.apply(variables, *args, train=False, **kwargs)
