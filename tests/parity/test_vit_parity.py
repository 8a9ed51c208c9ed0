"""ViT against Hugging Face's PyTorch ViT on the same weights."""

import functools

import jax
import numpy as np
import pytest

from repjax.layers.positions import grid_positions
from repjax.models import vit
from repjax.weights import vit_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SMALL = dict(hidden_size=384, intermediate_size=1536, num_attention_heads=6)
BASE = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)


def torch_model(seed=0, **fields):
  """A ViT whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(seed)
  config = transformers.ViTConfig(num_labels=10, **fields)
  model = transformers.ViTForImageClassification(config).eval()
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      # LayerNorm scales are near 1, everything else is near 0.
      center = 1.0 if leaf.ndim == 1 and 'norm' in name else 0.0
      spread = leaf.shape[-1] ** -0.5 if leaf.ndim == 2 else 0.1
      leaf.copy_(center + spread * torch.randn_like(leaf))
  return model


def images(size, rows=2):
  shape = (rows, size, size, 3)
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def torch_logits(model, image, **settings):
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    return model(pixels, **settings).logits.numpy()


def our_logits(folder, image, **settings):
  model = vit.ViT(**vit_weights.hf_config(folder))
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), image
  )
  params = vit_weights.load_vit(folder, shapes['params'], **settings)
  apply = jax.jit(functools.partial(model.apply, train=False))
  return np.asarray(apply({'params': params}, image)), params


def assert_equal_logits(found, expected):
  # Logits that hardly differ between images would prove little.
  assert np.abs(expected[0] - expected[1]).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  'geometry',
  [
    dict(SMALL, patch_size=16, num_hidden_layers=2),
    dict(BASE, patch_size=32, num_hidden_layers=2),
    dict(SMALL, patch_size=16, num_hidden_layers=12),
    dict(SMALL, patch_size=32, num_hidden_layers=1, hidden_act='gelu_new'),
  ],
  ids=['S/16 of 2 layers', 'B/32 of 2 layers', 'S/16', 'tanh gelu'],
)
def test_logits_are_those_of_pytorch_in_both_directions(geometry, tmp_path):
  model = torch_model(**geometry)
  image = images(224)
  expected = torch_logits(model, image)
  model.save_pretrained(tmp_path)
  found, params = our_logits(tmp_path, image)
  assert_equal_logits(found, expected)

  vit_weights.save_safetensors(tmp_path / 'model.safetensors', params)
  loaded, report = transformers.ViTForImageClassification.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not report['missing_keys'] and not report['unexpected_keys']
  np.testing.assert_array_equal(
    torch_logits(loaded.eval(), image), torch_logits(model, image)
  )


def test_logits_on_larger_images_are_those_of_pytorch_bicubic(tmp_path):
  model = torch_model(**SMALL, patch_size=32, num_hidden_layers=2)
  model.save_pretrained(tmp_path)
  image = images(320)
  found, _ = our_logits(tmp_path, image, resize='bicubic')
  assert_equal_logits(
    found, torch_logits(model, image, interpolate_pos_encoding=True)
  )


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('new', [(24, 24), (7, 7), (16, 9)])
def test_resized_grids_are_those_of_pytorch(method, new):
  grid = np.random.default_rng(0).normal(size=(14, 14, 5)).astype(np.float32)
  # PyTorch computes places in the type of the input: float32 is 3e-6 off.
  expected = torch.nn.functional.interpolate(
    torch.tensor(grid).double().permute(2, 0, 1)[None],
    size=new,
    mode=method,
    align_corners=False,
  )
  found = grid_positions.resize_grid(
    grid.reshape(1, -1, 5), (14, 14), new, num_prefix_tokens=0, method=method
  )
  np.testing.assert_allclose(
    found[0].reshape(*new, 5), expected[0].permute(1, 2, 0), atol=1e-6
  )
