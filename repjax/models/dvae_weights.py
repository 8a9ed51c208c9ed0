"""Host code: weights of DALL-E's published image encoder, BEiT's tokenizer.

They were published as a pickled PyTorch module, which this package does not
open. With PyTorch and the authors' package, make a file of it once:

    safetensors.torch.save_file(
      torch.load('encoder.pkl', weights_only=False).state_dict(),
      'encoder.safetensors',
    )
"""

import os

import jax.numpy as jnp
import numpy as np

from repjax.models import torch_layout
from repjax.types import InputError
from repjax.types import PyTree

# What the file calls our leaves: regular expressions, applied in turn.
_NAMES = (
  (r'^(group_\d)_(block_\d+)/(conv_\d)/', r'blocks.\1.\2.res_path.\3.'),
  (r'^(group_\d)_(block_\d+)/id_path/', r'blocks.\1.\2.id_path.'),
  (r'^input/', 'blocks.input.'),
  (r'^logits/', 'blocks.output.conv.'),
  (r'kernel$', 'w'),
  (r'bias$', 'b'),
)


def load(path: str | os.PathLike, params: PyTree) -> PyTree:
  """Fills the parameters of a `dvae.DalleEncoder` from a file.

  Args:
    path: A `.safetensors` file of the encoder's state.
    params: Parameters of the encoder, or their shapes.

  Returns:
    A tree like `params`, with its dtypes.

  Raises:
    InputError: The file cannot be read, or does not fit; names the leaves.
  """
  source = torch_layout.read(path)
  target = torch_layout.flatten(params)
  wanted = {torch_layout.rename(name, _NAMES): name for name in target}
  missing = sorted(wanted.keys() - source.keys())
  unexpected = sorted(source.keys() - wanted.keys())
  if missing or unexpected:
    raise InputError(
      f'{path} does not fit the encoder: missing {missing}; unexpected '
      f'{unexpected}'
    )
  loaded, misfits = {}, []
  for stored, name in wanted.items():
    leaf = target[name]
    array = torch_layout.from_torch(source[stored], name, leaf.shape)
    if array.shape != leaf.shape:
      misfits.append(f'{stored} {array.shape} for {name} {leaf.shape}')
    loaded[name] = jnp.array(array, leaf.dtype)
  if misfits:
    raise InputError(
      f'{path} does not fit the encoder, shapes differ: {", ".join(misfits)}'
    )
  return torch_layout.unflatten(params, loaded)


def save(path: str | os.PathLike, params: PyTree) -> None:
  """Writes parameters of a `dvae.DalleEncoder` under the published names.

  Args:
    path: File to write. Replaced in one step.
    params: Parameters of the encoder.
  """
  arrays = {
    torch_layout.rename(name, _NAMES): torch_layout.to_torch(
      np.asarray(leaf), name
    )
    for name, leaf in torch_layout.flatten(params).items()
  }
  torch_layout.save(path, arrays)
