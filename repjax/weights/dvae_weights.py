"""Host code: weights of DALL-E's published image encoder, BEiT's tokenizer.

They were published as a pickled PyTorch module, which this package does not
open: unpickling runs any code that a file holds. Who trusts the file can load
it with PyTorch and the authors' package, apart from all else, and save its
`state_dict()` by `safetensors.torch.save_file`: that is what is read here.
"""

import os

import numpy as np

from repjax.types import PyTree
from repjax.weights import torch_layout

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
  names = torch_layout.flatten(params)
  wanted = {torch_layout.rename(name, _NAMES): name for name in names}
  torch_layout.check_names(path, wanted, source)
  return torch_layout.fill(path, source, wanted, params)


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
