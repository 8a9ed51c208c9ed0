"""Host code: published weights of the Inception that FID is measured with.

The weights that everybody compares by were published as a TensorFlow graph, and
by pytorch-fid (https://github.com/mseitzer/pytorch-fid) as a pickled state,
which this package does not open: unpickling runs any code that a file holds.
Who trusts `pt_inception-2015-12-05-6726825d.pth` can load it with PyTorch,
apart from all else, and save what it holds by `safetensors.torch.save_file`, or
by `numpy.savez` as arrays of the same names. That is what is read here:
`Mixed_5b.branch1x1.conv.weight` [out, in, height, width] and the like, and of
norms weight, bias, running_mean and running_var.
"""

import os

import jax
import jax.numpy as jnp

from repjax import files
from repjax.models import inception
from repjax.types import InputError
from repjax.types import PyTree
from repjax.weights import torch_layout

# What the files call our leaves: regular expressions, applied in turn.
_NAMES = (
  (r'bn/mean$', 'bn/running_mean'),
  (r'bn/var$', 'bn/running_var'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)
# Of the network that the FID is defined by; torchvision's has 1000.
_NUM_CLASSES = 1008
# What features do not need: classes, the second head, counters.
_LEFT_OUT = ('fc.', 'AuxLogits.')


def shapes() -> PyTree:
  """Parameters of `inception.Inception`, as shapes."""
  image = jnp.zeros((1, inception.SIDE, inception.SIDE, 3))
  return jax.eval_shape(
    lambda: inception.Inception().init(jax.random.key(0), image)
  )['params']


def stored_name(name: str) -> str:
  """What the files call one of our leaves, joined by '/'."""
  return torch_layout.rename(name, _NAMES)


def load(path: str | os.PathLike) -> PyTree:
  """Parameters of `inception.Inception` from a file.

  Args:
    path: A `.safetensors` or `.npz` file of named arrays. Those of the
      classifier, of the second head and the counters of norms may be there.

  Returns:
    For `inception.Inception().apply({'params': ...}, images)`.

  Raises:
    InputError: The file cannot be read, or does not fit; names the arrays that
      are missing, left over or of another shape.
  """
  path = files.path_of(path)
  if path.suffix == '.npz':
    found = files.read_arrays(path)
  else:
    found = torch_layout.read(path)
  classes = found.get('fc.weight')
  if classes is not None and len(classes) != _NUM_CLASSES:
    raise InputError(
      f'{path}: its classifier has {len(classes)} classes, and the network of '
      f'the FID {_NUM_CLASSES}: it is another Inception, whose distances '
      "compare with no published ones; take pytorch-fid's file."
    )
  source = {
    name: x
    for name, x in found.items()
    if not name.startswith(_LEFT_OUT)
    and not name.endswith('.num_batches_tracked')
  }
  params = shapes()
  wanted = {stored_name(name): name for name in torch_layout.flatten(params)}
  torch_layout.check_names(path, wanted, source)
  return torch_layout.fill(path, source, wanted, params)
