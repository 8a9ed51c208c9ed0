"""CLIP against Hugging Face's PyTorch on the same weights; open_clip's loss.

The extra `parity` is without open_clip, since it asks for torchvision and timm:
`make parity` installs it by itself (`pip install --no-deps open_clip_torch`).
Its file is read by path.
"""

import functools
import importlib.util
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from repjax.methods import clip
from repjax.methods import contrastive
from repjax.weights import clip_weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_TEXT = dict(
  vocab_size=60,
  hidden_size=24,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=2,
  max_position_embeddings=12,
  bos_token_id=58,
)
_VISION = dict(
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=3,
  num_attention_heads=4,
)


def torch_model(text, vision):
  """A CLIP whose every leaf is drawn anew, so that none hides an error."""
  torch.manual_seed(0)
  config = transformers.CLIPConfig(
    text_config={**_TEXT, **text},
    vision_config={**_VISION, **vision},
    projection_dim=16,
  )
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for name, leaf in model.named_parameters():
      center = 1.0 if leaf.ndim == 1 and 'norm' in name else 0.0
      center = 2.0 if name == 'logit_scale' else center
      spread = leaf[0].numel() ** -0.5 if leaf.ndim > 1 else 0.1
      leaf.copy_(center + spread * torch.randn_like(leaf))
  return model


def texts(rng, *, end, length=12, rows=4):
  """Texts of several lengths, with more ends in the place of padding."""
  tokens = rng.integers(0, 50, (rows, length))
  tokens[:, 0] = 58
  for row, last in enumerate((3, 7, length - 1, 1)):
    tokens[row, last:] = end
  return tokens


@pytest.mark.parametrize(
  ('end', 'text', 'vision', 'size'),
  [
    (59, dict(eos_token_id=59), dict(image_size=16, patch_size=4), 16),
    # The configs of the first releases: the largest id ends a text.
    (59, dict(eos_token_id=2), dict(image_size=24, patch_size=8), 24),
    (
      57,
      dict(eos_token_id=57, hidden_act='gelu'),
      dict(image_size=16, patch_size=8, hidden_act='gelu'),
      16,
    ),
  ],
)
def test_logits_are_those_of_pytorch_in_both_directions(
  end, text, vision, size, tmp_path
):
  theirs = torch_model(text, vision)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(4, size, size, 3)).astype(np.float32)
  tokens = texts(rng, end=end)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(tokens),
      pixel_values=torch.tensor(image.transpose(0, 3, 1, 2).copy()),
    )
  theirs.save_pretrained(tmp_path)

  ours = clip_weights.model(tmp_path)
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False), jax.random.key(0), image, tokens
  )
  params = clip_weights.load(tmp_path, shapes['params'])
  pairs = jax.jit(functools.partial(ours.apply, train=False))(
    {'params': params}, image, tokens
  )
  image_unit = contrastive.unit(pairs.image)
  text_unit = contrastive.unit(pairs.text)
  np.testing.assert_allclose(
    image_unit, expected.image_embeds.numpy(), rtol=0, atol=1e-5
  )
  np.testing.assert_allclose(
    text_unit, expected.text_embeds.numpy(), rtol=0, atol=1e-5
  )
  logits = pairs.scale * image_unit @ text_unit.T
  assert np.ptp(logits) > 1
  np.testing.assert_allclose(
    logits, expected.logits_per_image.numpy(), rtol=0, atol=1e-4
  )

  clip_weights.save(tmp_path / 'model.safetensors', params)
  again = transformers.CLIPModel.from_pretrained(tmp_path)
  for name, leaf in again.named_parameters():
    np.testing.assert_array_equal(
      leaf.detach().numpy(), theirs.get_parameter(name).detach().numpy()
    )


def test_names_of_openai_are_the_same_weights(tmp_path):
  theirs = torch_model(dict(eos_token_id=59), dict(image_size=16, patch_size=4))
  theirs.save_pretrained(tmp_path)
  stored = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  renamed = as_openai(stored)
  safetensors.numpy.save_file(renamed, tmp_path / 'openai.safetensors')
  ours = clip_weights.model(tmp_path)
  shapes = jax.eval_shape(
    functools.partial(ours.init, train=False),
    jax.random.key(0),
    np.zeros((1, 16, 16, 3), np.float32),
    np.zeros((1, 12), np.int32),
  )['params']
  expected = clip_weights.load(tmp_path / 'model.safetensors', shapes)
  found = clip_weights.load(tmp_path / 'openai.safetensors', shapes)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  clip_weights.save(tmp_path / 'again.safetensors', found, layout='openai')
  again = safetensors.numpy.load_file(tmp_path / 'again.safetensors')
  renamed.pop('input_resolution')
  assert set(again) == set(renamed)
  for name, array in renamed.items():
    np.testing.assert_array_equal(again[name], array, err_msg=name)


def as_openai(stored):
  """Arrays of CLIPModel under OpenAI's names, and as they are there."""
  found = {'input_resolution': np.int64([16])}
  for name, array in stored.items():
    if name.endswith('position_ids'):
      continue
    tower = 'visual.' * name.startswith('vision_model.')
    part = name.split('.', 1)[1] if '_model.' in name else name
    part = part.replace('encoder.layers.', 'transformer.resblocks.')
    for old, new in (
      ('final_layer_norm', 'ln_final'),
      ('self_attn.', 'attn.'),
      ('layer_norm', 'ln_'),
      ('mlp.fc1', 'mlp.c_fc'),
      ('mlp.fc2', 'mlp.c_proj'),
      ('embeddings.patch_embedding', 'conv1'),
      ('embeddings.class_embedding', 'class_embedding'),
      ('embeddings.position_embedding.weight', 'positional_embedding'),
      ('embeddings.token_embedding', 'token_embedding'),
      ('pre_layrnorm', 'ln_pre'),
      ('post_layernorm', 'ln_post'),
      ('final_ln_', 'ln_final'),
      ('final_layer_norm', 'ln_final'),
    ):
      part = part.replace(old, new)
    if part == 'visual_projection.weight':
      part, array = 'visual.proj', array.T
    elif part == 'text_projection.weight':
      part, array = 'text_projection', array.T
    if '.q_proj.' in part:
      array = np.concatenate(
        [stored[name.replace('.q_', f'.{x}_')] for x in 'qkv']
      )
      part = part.replace('q_proj.', 'in_proj_')
    elif '.k_proj.' in part or '.v_proj.' in part:
      continue
    found[tower + part] = np.array(array, order='C')
  return found


def test_the_loss_and_its_gradients_are_those_of_pytorch():
  rng = np.random.default_rng(1)
  image, text = rng.normal(size=(2, 7, 5)).astype(np.float32)
  scale = np.float32(4.0)

  def ours(image, text, scale):
    return clip.softmax_loss(
      contrastive.unit(image),
      contrastive.unit(text),
      np.ones(7),
      scale=scale,
    ).mean()

  loss, gradients = jax.value_and_grad(ours, (0, 1, 2))(image, text, scale)
  leaves = [torch.tensor(x, requires_grad=True) for x in (image, text, scale)]
  normal = torch.nn.functional.normalize
  logits = leaves[2] * normal(leaves[0]) @ normal(leaves[1]).T
  expected = transformers.models.clip.modeling_clip.image_text_contrastive_loss(
    logits
  )
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  for found, leaf in zip(gradients, leaves, strict=True):
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(('rows', 'scale'), [(7, 1.0), (7, 14.3), (33, 100.0)])
def test_the_loss_and_its_gradients_are_those_of_open_clip(rows, scale):
  loss_of = open_clip_loss().ClipLoss()
  rng = np.random.default_rng(rows)
  drawn = rng.normal(size=(3, rows, 16)).astype(np.float32)
  # A text is near to its image, or a large scale leaves but the worst pairs.
  image, text = (
    x / np.linalg.norm(x, axis=-1, keepdims=True)
    for x in (drawn[0] + drawn[1], drawn[0] + drawn[2])
  )
  leaves = [torch.tensor(x, requires_grad=True) for x in (image, text)]
  expected = loss_of(*leaves, torch.tensor(np.float32(scale)))
  expected.backward()

  # Rows of padding, which open_clip has none of, change nothing.
  real = np.repeat(np.float32([1, 0]), [rows, 3])
  image, text = (np.concatenate([x, x[:3]]) for x in (image, text))

  def ours(image, text):
    each = clip.softmax_loss(image, text, real, scale=np.float32(scale))
    return (each * real).sum() / rows

  loss, gradients = jax.value_and_grad(ours, (0, 1))(image, text)
  assert loss > 0.01
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  for found, leaf in zip(gradients, leaves, strict=True):
    theirs = leaf.grad.numpy()
    np.testing.assert_allclose(
      found[:rows], theirs, rtol=0, atol=1e-5 * abs(theirs).max()
    )
    np.testing.assert_array_equal(found[rows:], 0)


def open_clip_loss():
  """Their losses, without what the package's __init__ asks for."""
  spec = importlib.util.find_spec('open_clip')
  if spec is None:
    pytest.skip('no open_clip: pip install --no-deps open_clip_torch')
  path = pathlib.Path(spec.submodule_search_locations[0]) / 'loss.py'
  spec = importlib.util.spec_from_file_location('open_clip_loss', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
