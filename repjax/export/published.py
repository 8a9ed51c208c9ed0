"""Host side: a network as a folder that `transformers` or `peft` loads back.

    published.write(folder, network)

writes `config.json` and `model.safetensors`, or of a network with LoRA the
files of `peft`, with the base beside them. What has no published form is
refused before anything is written.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import files
from repjax import types
from repjax.export import form
from repjax.export import images
from repjax.export import networks
from repjax.export import texts
from repjax.layers import adapters
from repjax.models import beit
from repjax.models import clip
from repjax.models import stack
from repjax.models import swin
from repjax.models import t5
from repjax.models import transformer
from repjax.models import vit
from repjax.weights import peft_files
from repjax.weights import swin_weights
from repjax.weights import vit_weights

_NPZ = "The authors' VisionTransformer"
# Folder of the base of LoRA, inside of that of the LoRA.
BASE = 'base'
_PROCESSOR = 'preprocessor_config.json'


class Written(NamedTuple):
  """What was written.

  Attributes:
    form: The network in the words of `transformers`.
    base: Of LoRA: the base, as its config names it, seen from the folder; '' of
      whole weights.
  """

  form: form.Form
  base: str = ''


class Scaling(NamedTuple):
  """What pixels go through.

  Attributes:
    mean: Of value / 255, one number or one a channel.
    std: Of value / 255, one number or one a channel.
  """

  mean: Sequence[float]
  std: Sequence[float]


def form_of(
  network: networks.Network, class_names: Sequence[str] | None = None
) -> form.Form:
  """The network, without adapters, in the words of `transformers`.

  Args:
    network: Found by `networks.of`.
    class_names: One a class, or None.

  Raises:
    InputError: It has no published form; says why.
  """
  model = network.base
  if isinstance(
    model,
    vit.ViT | beit.Classifier | beit.MaskedImageModel | swin.Swin | clip.Clip,
  ):
    image = _image_shape(network)
    if isinstance(model, vit.ViT):
      return images.of_vit(model, image, class_names)
    if isinstance(model, swin.Swin):
      return images.of_swin(model, image, class_names)
    if isinstance(model, clip.Clip):
      return images.of_clip(model, image)
    return images.of_beit(model, image, class_names)
  if isinstance(model, transformer.DecoderLM):
    return texts.of_decoder(model)
  if isinstance(model, transformer.EncoderDecoder):
    return texts.of_encoder_decoder(model)
  if isinstance(model, t5.T5):
    return texts.of_t5(model)
  if isinstance(model, transformer.Encoder):
    return texts.of_encoder(model, class_names)
  return form.refuse(
    f'The {type(model).__name__} of this run',
    'ViT, BEiT, Swin, CLIP, BERT, RoBERTa, GPT-2, BART and T5 have one',
  )


def write(
  folder: str | os.PathLike,
  network: networks.Network,
  *,
  class_names: Sequence[str] | None = None,
  scaling: Scaling | None = None,
  token_ids: Mapping[str, int] | None = None,
  base: str = '',
) -> Written:
  """Writes a network as `transformers` or `peft` have it.

  Args:
    folder: Made if it is not there.
    network: Found by `networks.of`.
    class_names: One a class, or None.
    scaling: Of a network of images: what its pixels go through, for the file
      that tells the image processor.
    token_ids: Of a network of texts: 'pad_token_id' and the like -> id.
    base: Of a network with LoRA: the folder or name of published weights that
      are its base; '' writes the base to `folder`/base.

  Raises:
    InputError: It has no published form; says why.
  """
  folder = pathlib.Path(folder).expanduser()
  made = form_of(network, class_names)
  if token_ids is not None and isinstance(
    network.base, stack.TokenModel | t5.T5
  ):
    made.config.update(token_ids)
    if made.config['model_type'] == 'roberta' and (
      made.config['pad_token_id'] != 1
    ):
      form.refuse(
        'RoBERTa with a vocabulary of its own',
        'its positions are counted behind padding, whose id is 1, and here '
        f'{made.config["pad_token_id"]}',
      )
  model = network.module
  names = (
    _lora_names(model, made) if isinstance(model, adapters.Adapted) else None
  )
  processor = scaling and _processor(_image_shape(network), scaling)
  if not isinstance(model, adapters.Adapted) or names is None:
    _write_whole(_made(folder), made, network, processor)
    return Written(made)
  # First, since it may refuse.
  peft_files.save_lora(
    folder,
    model,
    network.variables['params'],
    names=names,
    task_type=made.task_type or None,
  )
  if not base:
    base = BASE
    _write_whole(_made(folder / BASE), made, network, None)
  if processor is not None:
    files.write_json(folder / _PROCESSOR, processor)
  config = folder / 'adapter_config.json'
  files.write_json(
    config, {**files.read_json(config), 'base_model_name_or_path': base}
  )
  return Written(made, base)


def write_npz(folder: str | os.PathLike, network: networks.Network) -> None:
  """Writes a ViT as `model.npz`, under the names of its authors.

  Raises:
    InputError: It is no ViT, has adapters, or the authors' would say something
      else of its images.
  """
  model = network.base
  adapted = isinstance(network.module, adapters.Adapted)
  if adapted or not isinstance(model, vit.ViT):
    raise types.InputError(
      f'--format=npz has the names of ViT, and this run has a '
      f'{type(network.module).__name__} of {type(network.base).__name__}: give '
      '--format=transformers or jax, or --merge for the LoRA of a ViT.'
    )
  form.check_attention(_NPZ, model.attention_fn)
  form.check(_NPZ, model, representation_dim=None, position='learned')
  vit_weights.save_npz(_made(folder) / 'model.npz', network.params)


def write_timm(folder: str | os.PathLike, network: networks.Network) -> None:
  """Writes a Swin as `model.safetensors`, under timm's names.

  Raises:
    InputError: It is no Swin, has adapters, or timm's would say something else
      of its images.
  """
  model = network.base
  adapted = isinstance(network.module, adapters.Adapted)
  if adapted or not isinstance(model, swin.Swin):
    raise types.InputError(
      f'--format=timm has the names of Swin, and this run has a '
      f'{type(network.module).__name__} of {type(network.base).__name__}: give '
      '--format=transformers or jax.'
    )
  images.check_timm(model, _image_shape(network))
  swin_weights.save(
    _made(folder) / 'model.safetensors', network.params, layout='timm'
  )


def _lora_names(model: adapters.Adapted, made: form.Form) -> peft_files.Names:
  """What `peft` calls our leaves; refuses adapters that it has no files of."""
  kinds = sorted({x.name for _, x in model.plan.rules})
  what = f'The {type(model.plan.model).__name__} with {" and ".join(kinds)}'
  if kinds != ['lora']:
    form.refuse(what, 'peft has files of LoRA alone')
  if made.names is None:
    form.refuse(
      what,
      'peft has files of BERT, RoBERTa, GPT-2 and BART; --merge makes LoRA a '
      'part of the weights',
    )
  return made.names


def _write_whole(folder, made: form.Form, network, processor):
  # First, since it may refuse.
  made.save(folder / 'model.safetensors', network.params)
  files.write_json(folder / 'config.json', made.config)
  if processor is not None:
    files.write_json(folder / _PROCESSOR, processor)


def _made(folder) -> pathlib.Path:
  """The folder, which is there now."""
  path = pathlib.Path(folder).expanduser()
  path.mkdir(parents=True, exist_ok=True)
  return path


def _image_shape(network) -> tuple[int, int, int]:
  shape: tuple[int, ...] = tuple(
    np.shape(network.args[0] if network.args else 0)
  )
  if len(shape) != 4:
    raise types.InputError(
      f'The {type(network.base).__name__} of this run was called without '
      'images: --format=jax writes what it was called for.'
    )
  return shape[1], shape[2], shape[3]


def _processor(image, scaling: Scaling) -> Mapping[str, Any]:
  """What ViTImageProcessor is told: it resizes, divides by 255, scales."""
  height, width, channels = image

  def each(values):
    return [float(x) for x in np.broadcast_to(np.asarray(values), channels)]

  return dict(
    image_processor_type='ViTImageProcessor',
    do_resize=True,
    size=dict(height=height, width=width),
    resample=2,  # Bilinear.
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=each(scaling.mean),
    image_std=each(scaling.std),
    do_convert_rgb=channels == 3,
  )
