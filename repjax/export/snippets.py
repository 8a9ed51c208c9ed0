"""Host side: lines of Python by which an exported model is loaded."""

import pathlib
import textwrap

from repjax.export import card
from repjax.export import generators
from repjax.export import networks
from repjax.export import program
from repjax.export import published
from repjax.models import swin
from repjax.models import vit

# Classes that are named one by one, and the name of one that has none.
_FEW, _NAMELESS = 20, 'LABEL_0'
_AS_GIVEN = 'What it sees is what repjax has made of the data: see below.'


def of_published(
  written: published.Written, *, has_tokenizer: bool = False
) -> card.Use:
  """How `transformers`, or `peft`, loads a folder.

  Args:
    written: What is in it.
    has_tokenizer: Whether the tokenizer is in it, too.
  """
  form = written.form
  is_image = 'num_channels' in form.config
  lines, notes = [f'from transformers import {form.auto}'], []
  load = f"model = {form.auto}.from_pretrained('.')"
  if written.base:
    lines.insert(0, 'from peft import PeftModel')
    more = _classes(form.config)
    place = pathlib.PurePath(written.base)
    if place.is_absolute():
      notes.append(
        '`BASE` is the folder of the published weights that the run began with '
        f'({"/".join(place.parts[-2:])}); `adapter_config.json` says where it '
        'was.'
      )
    name = 'BASE' if place.is_absolute() else written.base
    load = (
      f'base = {form.auto}.from_pretrained({name!r}{more})\n'
      "model = PeftModel.from_pretrained(base, '.')"
    )
  if is_image:
    lines.insert(-1, 'from transformers import AutoImageProcessor')
    load += "\nprocessor = AutoImageProcessor.from_pretrained('.')"
    notes.append(
      'Images go in as [rows, channels, height, width], scaled as '
      '`preprocessor_config.json` says.'
    )
  elif has_tokenizer:
    lines.append('from transformers import AutoTokenizer')
    load += "\ntokenizer = AutoTokenizer.from_pretrained('.')"
  else:
    notes.append(
      'The tokens are those of the vocabulary that the run has learned or was '
      'given, which is not in this folder.'
    )
  library = 'peft' if written.base else 'transformers'
  return card.Use(library, '\n'.join([*lines, '', load]), form.task, notes)


def _classes(config):
  """What the base of LoRA is told of the classes, as the last argument."""
  if 'id2label' not in config:
    return ''
  names = {int(i): name for i, name in config['id2label'].items()}
  if len(names) > _FEW or names[0] == _NAMELESS:
    return f', num_labels={len(names)}'
  return f', id2label={names}'


def of_npz(network: networks.Network) -> card.Use:
  """How timm loads the authors' names."""
  model, shape = network.base, network.args[0].shape
  assert isinstance(model, vit.ViT)  # As `published.write_npz` has checked.
  code = f"""
    import functools

    from timm.models import vision_transformer
    import torch

    model = vision_transformer.VisionTransformer(
      img_size={tuple(shape[1:3])},
      patch_size={model.patch_size},
      in_chans={shape[3]},
      num_classes={model.num_classes},
      embed_dim={model.hidden_dim},
      depth={model.num_layers},
      num_heads={model.num_heads},
      mlp_ratio={model.mlp_dim / model.hidden_dim},
      global_pool={'token' if model.pool == 'token' else 'avg'!r},
      class_token={model.pool == 'token'},
      fc_norm=False,
      act_layer={'gelu_tanh' if model.gelu == 'tanh' else 'gelu'!r},
      norm_layer=functools.partial(
        torch.nn.LayerNorm, eps={model.layer_norm_epsilon}
      ),
    )
    model.load_pretrained('model.npz')
  """
  return card.Use(
    'timm', textwrap.dedent(code), 'image-classification', (_AS_GIVEN,)
  )


def of_timm(network: networks.Network) -> card.Use:
  """How timm loads its own names."""
  model, shape = network.base, network.args[0].shape
  assert isinstance(model, swin.Swin)  # As `published.write_timm` has checked.
  code = f"""
    from safetensors import torch
    from timm.models import swin_transformer

    model = swin_transformer.SwinTransformer(
      img_size={tuple(shape[1:3])},
      patch_size={model.patch_size},
      in_chans={shape[3]},
      num_classes={model.num_classes},
      embed_dim={model.hidden_dim},
      depths={tuple(model.depths)},
      num_heads={tuple(model.num_heads)},
      window_size={model.window},
      mlp_ratio={model.mlp_ratio},
    )
    model.load_state_dict(torch.load_file('model.safetensors'))
  """
  return card.Use(
    'timm', textwrap.dedent(code), 'image-classification', (_AS_GIVEN,)
  )


def of_generator(
  signature: program.Signature, scale: generators.Pixels
) -> card.Use:
  """How JAX makes images, without repjax."""
  use = of_program(signature)
  drawn = (
    'Latents are drawn from the standard normal distribution. In images '
    f'{scale.black} is black and {scale.white} is white, of one channel or of '
    'each; what is beyond is to be cut off: `numpy.clip((image - black) / '
    '(white - black), 0, 1)`.'
  )
  return use._replace(notes=(*use.notes[:-1], drawn))


def of_program(signature: program.Signature) -> card.Use:
  """How JAX runs a program, without repjax."""
  arguments = ', '.join(f'{x!r}: {x}' for x in sorted(signature.inputs))
  code = f"""
    from jax import export
    import safetensors.numpy

    with open('{program.PROGRAM}', 'rb') as file:
      predict = export.deserialize(bytearray(file.read()))
    weights = safetensors.numpy.load_file('{program.WEIGHTS}')
    outputs = predict.call(weights, {{{arguments}}})
  """
  lines = [
    f'- `{kind}` `{name}`: {x["dtype"]}[{", ".join(map(str, x["shape"]))}]'
    for kind, group in signature._asdict().items()
    for name, x in group.items()
  ]
  return card.Use(
    'jax',
    textwrap.dedent(code),
    notes=(
      'It runs on a CPU, a GPU or a TPU, for any number of `rows` where the '
      'shapes below say so; `flatbuffers` must be installed, repjax need not.',
      '\n'.join(lines),
      _AS_GIVEN,
    ),
  )
