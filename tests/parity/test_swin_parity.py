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


def ours(folder, image, **fields):
  """Logits of the weights in a folder, and these."""
  made = swin.Swin(10, hidden_dim=24, num_heads=(2, 3, 6), **fields)
  shapes = jax.eval_shape(
    functools.partial(made.init, train=False), jax.random.key(0), image
  )
  params = swin_weights.load(folder, shapes['params'])
  apply = jax.jit(functools.partial(made.apply, train=False))
  return np.asarray(apply({'params': params}, image)), params


def renamed(stored, layout):
  """Hugging Face's arrays under the names of another layout, one by one."""
  found = {}
  for name, array in stored.items():
    if 'classifier' in name:
      head = 'head.fc' if layout == 'timm' else 'head'
      found[name.replace('classifier', head)] = array
    elif name.startswith('swin.embeddings.norm'):
      found[name.replace('swin.embeddings.norm', 'patch_embed.norm')] = array
    elif name.startswith('swin.embeddings'):
      found[f'patch_embed.proj.{name.split(".")[-1]}'] = array
    elif name.startswith('swin.layernorm'):
      found[f'norm.{name.split(".")[-1]}'] = array
    elif 'downsample' in name:
      stage, rest = name.split('.')[3], name.split('.', 4)[4]
      at = int(stage) + 1 if layout == 'timm' else int(stage)
      found[f'layers.{at}.{rest}'] = array
    else:
      _, _, _, stage, _, block, rest = name.split('.', 6)
      whole, kind = rest.rsplit('.', 1)
      place = f'layers.{stage}.blocks.{block}'
      if rest.endswith('relative_position_bias_table'):
        found[f'{place}.attn.relative_position_bias_table'] = array
      elif whole == 'attention.self.query':
        three = [stored[name.replace('query', x)] for x in ('query', 'key')]
        three.append(stored[name.replace('query', 'value')])
        found[f'{place}.attn.qkv.{kind}'] = torch.cat(three)
      elif whole not in ('attention.self.key', 'attention.self.value'):
        other = {
          'layernorm_before': 'norm1',
          'layernorm_after': 'norm2',
          'attention.output.dense': 'attn.proj',
          'intermediate.dense': 'mlp.fc1',
          'output.dense': 'mlp.fc2',
        }[whole]
        found[f'{place}.{other}.{kind}'] = array
  return found


@pytest.mark.parametrize('layout', ['timm', 'microsoft'])
def test_other_names_mean_the_same_network(layout, tmp_path):
  import safetensors.torch

  model = torch_model(
    embed_dim=24,
    num_heads=[2, 3, 6],
    image_size=64,
    window_size=4,
    depths=[2, 2, 2],
  )
  image = images((64, 64))
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    expected = model(pixels).logits.numpy()
  model.save_pretrained(tmp_path)
  path = tmp_path / 'model.safetensors'
  stored = renamed(safetensors.torch.load_file(path), layout)
  safetensors.torch.save_file(stored, path)
  found, params = ours(tmp_path, image, window=4, depths=(2, 2, 2))
  assert abs(expected[0] - expected[1]).max() > 0.05
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  swin_weights.save(path, params, layout=layout)
  again = safetensors.torch.load_file(path)
  assert set(again) == set(stored)
  for name, array in again.items():
    np.testing.assert_array_equal(array.numpy(), stored[name].numpy())


@pytest.mark.parametrize('size', [(64, 64), (96, 160)])
def test_logits_are_those_of_timm_in_both_directions(size, tmp_path):
  swin_transformer = pytest.importorskip('timm.models.swin_transformer')
  import safetensors.torch

  torch.manual_seed(0)
  window = 4 if size == (64, 64) else 2
  model = swin_transformer.SwinTransformer(
    img_size=size,
    num_classes=10,
    embed_dim=24,
    depths=(2, 2, 2),
    num_heads=(2, 3, 6),
    window_size=window,
  ).eval()
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      center = 1.0 if leaf.ndim == 1 and 'norm' in name else 0.0
      spread = leaf.shape[-1] ** -0.5 if leaf.ndim == 2 else 0.1
      spread = 1.0 if 'bias_table' in name else spread
      leaf.copy_(center + spread * torch.randn_like(leaf))
  image = images(size)
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    expected = model(pixels).numpy()
  path = tmp_path / 'model.safetensors'
  safetensors.torch.save_file(model.state_dict(), path)
  found, params = ours(tmp_path, image, window=window, depths=(2, 2, 2))
  assert abs(expected[0] - expected[1]).max() > 0.05
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  swin_weights.save(path, params, layout='timm')
  again = safetensors.torch.load_file(path)
  model.load_state_dict(again)  # Refuses what is missing or left over.
  with torch.no_grad():
    np.testing.assert_array_equal(model(pixels).numpy(), expected)
  # Microsoft's names are what timm's own reader of them makes of them.
  swin_weights.save(path, params, layout='microsoft')
  model.load_state_dict(
    swin_transformer.checkpoint_filter_fn(
      safetensors.torch.load_file(path), model
    )
  )
  with torch.no_grad():
    np.testing.assert_array_equal(model(pixels).numpy(), expected)
