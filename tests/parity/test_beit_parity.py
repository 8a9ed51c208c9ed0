"""BEiT against Hugging Face's PyTorch BEiT on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.models import beit
from repjax.models import dvae
from repjax.weights import beit_weights
from repjax.weights import dvae_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
safetensors_torch = pytest.importorskip('safetensors.torch')

TINY = dict(
  hidden_size=48,
  intermediate_size=96,
  num_attention_heads=4,
  num_hidden_layers=2,
  image_size=32,
  patch_size=4,
  layer_scale_init_value=0.1,
)
SHARED = dict(
  use_mask_token=True, use_shared_relative_position_bias=True, vocab_size=37
)


def torch_model(name, **fields):
  """A BEiT whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(0)
  config = transformers.BeitConfig(**{**TINY, **fields})
  model = getattr(transformers, name)(config).eval()
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      # LayerNorm scales are near 1, everything else is near 0.
      center = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
      spread = leaf.shape[-1] ** -0.5 if leaf.ndim == 2 else 0.3
      leaf.copy_(center + spread * torch.randn_like(leaf))
  return model


def images(size, rows=2):
  shape = (rows, size, size, 3)
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def hidden_patches(num_patches, rows=2):
  return np.random.default_rng(1).random((rows, num_patches)) < 0.4


def torch_logits(model, image, hidden=None):
  extra = {} if hidden is None else {'bool_masked_pos': torch.tensor(hidden)}
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    return model(pixels, **extra).logits.numpy()


def our_logits(folder, image, hidden=None, **settings):
  model = beit_weights.model(folder)
  args = (image,) if hidden is None else (image, hidden)
  apply = functools.partial(model.apply, train=False)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), *args
  )
  params = beit_weights.load(folder, shapes['params'], **settings)
  return np.asarray(jax.jit(apply)({'params': params}, *args)), params


def assert_equal_logits(found, expected):
  # Logits that hardly differ between images would prove little.
  assert np.abs(expected[0] - expected[1]).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def assert_loads_back(model, params, folder, *args):
  beit_weights.save(folder / 'model.safetensors', params)
  loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  np.testing.assert_array_equal(
    torch_logits(loaded.eval(), *args), torch_logits(model, *args)
  )


@pytest.mark.parametrize(
  'fields',
  [
    SHARED,
    {
      **SHARED,
      'use_absolute_position_embeddings': True,
      'layer_scale_init_value': 0.0,
      'layer_norm_eps': 1e-6,
      'hidden_act': 'gelu_new',
    },
  ],
  ids=['as published', 'every other setting'],
)
def test_tokens_are_those_of_pytorch_in_both_directions(fields, tmp_path):
  model = torch_model('BeitForMaskedImageModeling', **fields)
  image, hidden = images(32), hidden_patches(64)
  model.save_pretrained(tmp_path)
  found, params = our_logits(tmp_path, image, hidden)
  assert_equal_logits(found, torch_logits(model, image, hidden))
  assert_loads_back(model, params, tmp_path, image, hidden)


@pytest.mark.parametrize(
  'fields',
  [
    dict(use_relative_position_bias=True),
    dict(use_relative_position_bias=True, use_mean_pooling=False),
    dict(use_shared_relative_position_bias=True),
  ],
  ids=['as published', 'class token', 'shared table'],
)
def test_classes_are_those_of_pytorch_in_both_directions(fields, tmp_path):
  model = torch_model('BeitForImageClassification', num_labels=7, **fields)
  image = images(32)
  model.save_pretrained(tmp_path)
  found, params = our_logits(tmp_path, image)
  assert_equal_logits(found, torch_logits(model, image))
  assert_loads_back(model, params, tmp_path, image)


@pytest.mark.parametrize('size', [48, 20])
def test_other_image_sizes_are_those_of_pytorch(size, tmp_path):
  # transformers resizes the tables bilinearly, on the fly.
  model = torch_model(
    'BeitForImageClassification', use_relative_position_bias=True
  )
  model.save_pretrained(tmp_path)
  image = images(size)
  found, _ = our_logits(tmp_path, image, resize='bilinear')
  expected = torch_logits(model, image)
  assert_equal_logits(found, expected)
  other, _ = our_logits(tmp_path, image)
  assert np.abs(other - expected).max() > 1e-3  # The authors' way differs.


def test_fine_tuning_starts_where_pytorch_stands(tmp_path):
  # What head='replace' does to the encoder, seen through the same encoder of
  # transformers with one table a layer.
  model = torch_model('BeitForMaskedImageModeling', **SHARED)
  image = images(32)
  model.save_pretrained(tmp_path)
  with torch.no_grad():
    pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    expected = model.beit(pixels).last_hidden_state.numpy()
  pretrained = beit_weights.model(tmp_path)
  encoder = pretrained.encoder.clone(relative='per_layer')
  classifier = beit.Classifier(encoder, 5)
  params = classifier.init(jax.random.key(0), image, train=False)['params']
  loaded = beit_weights.load(tmp_path, params, head='replace')
  found = jax.jit(functools.partial(encoder.apply, train=False))(
    {'params': loaded['encoder']}, image
  )
  assert jnp.abs(found[0] - found[1]).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def dalle_logits(state, image, *, blocks=2):
  """DALL-E's encoder as published, from its state, in PyTorch's functions."""

  def conv(x, name, side):
    weight, bias = state[f'{name}.w'], state[f'{name}.b']
    return torch.nn.functional.conv2d(x, weight, bias, padding=side // 2)

  x = conv(image, 'blocks.input', 7)
  for group in range(1, 5):
    for block in range(1, blocks + 1):
      name = f'blocks.group_{group}.block_{block}'
      branch = x
      for i, side in enumerate((3, 3, 3, 1), start=1):
        branch = conv(torch.relu(branch), f'{name}.res_path.conv_{i}', side)
      if f'{name}.id_path.w' in state:
        x = conv(x, f'{name}.id_path', 1)
      x = x + branch / (4 * blocks) ** 2
    if group < 4:
      x = torch.nn.functional.max_pool2d(x, 2)
  return conv(torch.relu(x), 'blocks.output.conv', 1)


def test_the_published_tokenizer_is_that_of_pytorch(tmp_path):
  encoder = dvae.DalleEncoder(11, hidden_dim=8)
  image = images(24)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), image)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes
  )
  path = tmp_path / 'encoder.safetensors'
  dvae_weights.save(path, params)
  state = safetensors_torch.load_file(path)
  pixels = torch.tensor(image.transpose(0, 3, 1, 2).copy())
  expected = dalle_logits(state, pixels).permute(0, 2, 3, 1).numpy()
  loaded = dvae_weights.load(path, shapes)
  found = jax.jit(encoder.apply)({'params': loaded}, image)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-4)
  del state['blocks.input.b']
  safetensors_torch.save_file(state, path)
  with pytest.raises(ValueError, match=r"missing \['blocks.input.b'\]"):
    dvae_weights.load(path, shapes)
