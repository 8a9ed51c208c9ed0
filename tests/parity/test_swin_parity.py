"""Swin against Hugging Face's PyTorch Swin on the same weights."""

import functools

import jax
import numpy as np
import pytest

from repjax.models import swin
from repjax.weights import swin_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def torch_model(**fields):
  """A Swin whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(0)
  config = transformers.SwinConfig(num_labels=10, **fields)
  model = transformers.SwinForImageClassification(config).eval()
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      center = 1.0 if leaf.ndim == 1 and 'norm' in name else 0.0
      spread = leaf.shape[-1] ** -0.5 if leaf.ndim == 2 else 0.1
      if 'bias_table' in name:
        spread = 1.0
      leaf.copy_(center + spread * torch.randn_like(leaf))
  return model


def images(size):
  """Fields of colours with noise: means over noise alone are all alike."""
  rng = np.random.default_rng(0)
  fields = rng.uniform(-5, 5, (2, 3, 3, 3)).astype(np.float32)
  rows, columns = (np.arange(side) * 3 // side for side in size)
  noise = rng.normal(size=(2, *size, 3)).astype(np.float32)
  return fields[:, rows][:, :, columns] + noise / 4


@pytest.mark.parametrize(
  ('size', 'fields'),
  [
    # Whole windows; maps as small as a window; odd sides everywhere.
    ((64, 64), dict(image_size=64, window_size=4, depths=[2, 2, 2])),
    ((60, 76), dict(image_size=64, window_size=3, depths=[2, 4, 2])),
    ((224, 224), dict(image_size=224, window_size=7, depths=[2, 2, 2, 2])),
  ],
)
def test_logits_are_those_of_pytorch_in_both_directions(size, fields, tmp_path):
  stages = len(fields['depths'])
  model = torch_model(embed_dim=24, num_heads=[2, 3, 6, 12][:stages], **fields)
  image = images(size)
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    expected = model(pixels).logits.numpy()
  model.save_pretrained(tmp_path)

  ours = swin.Swin(**swin_weights.hf_config(tmp_path))
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False), jax.random.key(0), image
  )
  params = swin_weights.load(tmp_path, shapes['params'])
  found = jax.jit(functools.partial(ours.apply, train=False))(
    {'params': params}, image
  )
  assert abs(expected[0] - expected[1]).max() > 0.05
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  swin_weights.save(tmp_path / 'model.safetensors', params)
  again = transformers.SwinForImageClassification.from_pretrained(tmp_path)
  for name, leaf in again.named_parameters():
    np.testing.assert_array_equal(
      leaf.detach().numpy(), model.get_parameter(name).detach().numpy()
    )
