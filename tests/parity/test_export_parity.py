"""Exported networks in transformers, timm and peft: the same logits."""

import numpy as np
import pytest
import small_networks

from repjax.export import published

pytestmark = pytest.mark.parity
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def assert_equal(found, expected):
  # What hardly differs between rows would prove little.
  assert np.abs(expected[0] - expected[1]).max() > 0.05
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def loaded(written, folder):
  model, report = getattr(transformers, written.form.auto).from_pretrained(
    folder, output_loading_info=True
  )
  assert not report['missing_keys'] and not report['unexpected_keys']
  return model.eval()


def pixels(image):
  return torch.tensor(image.transpose(0, 3, 1, 2).copy())


def ids(array):
  return torch.tensor(array.astype(np.int64))


def call(model, name):
  args, kwargs = small_networks.inputs(name)
  with torch.no_grad():
    if name in small_networks.IMAGES:
      return model(pixels(args[0])).logits.numpy()
    if name in small_networks.BOTH:
      given = dict(
        input_ids=ids(kwargs['source']), decoder_input_ids=ids(args[0])
      )
      return model(**given).logits.numpy()
    return model(ids(args[0])).logits.numpy()


@pytest.mark.parametrize(
  'name',
  [
    *small_networks.IMAGES,
    *small_networks.ENCODERS,
    *small_networks.DECODERS,
    *small_networks.BOTH,
  ],
)
def test_transformers_loads_a_network(name, tmp_path):
  network = small_networks.named(name)
  written = published.write(tmp_path, network)
  args, kwargs = small_networks.inputs(name)
  assert_equal(
    call(loaded(written, tmp_path), name),
    small_networks.outputs(network, *args, **kwargs),
  )


def test_transformers_loads_a_masked_image_model(tmp_path):
  image = small_networks.images()
  hidden = np.random.default_rng(1).integers(0, 2, (len(image), 9))
  network = small_networks.network(small_networks.MASKED, image, hidden)
  published.write(tmp_path, network)
  model = transformers.BeitForMaskedImageModeling.from_pretrained(tmp_path)
  with torch.no_grad():
    found = model.eval()(
      pixels(image), bool_masked_pos=torch.tensor(hidden > 0)
    )
  expected = small_networks.outputs(network, image, hidden)
  assert_equal(found.logits.numpy(), expected)


def test_transformers_loads_clip(tmp_path):
  image, text = small_networks.images(), small_networks.tokens()
  text[:, -1] = small_networks.VOCAB - 1
  network = small_networks.network(small_networks.CLIP, image, text)
  written = published.write(tmp_path, network)
  with torch.no_grad():
    found = loaded(written, tmp_path)(
      input_ids=ids(text), pixel_values=pixels(image)
    )
  pairs = small_networks.outputs(network, image, text)
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in pairs[:2]]
  expected = pairs.scale * unit[0] @ unit[1].T
  assert_equal(found.logits_per_image.numpy(), expected)


@pytest.mark.parametrize('name', ['bert', 'roberta', 'gpt2', 'bart'])
def test_peft_loads_lora_on_its_base(name, tmp_path, monkeypatch):
  peft = pytest.importorskip('peft')
  network = small_networks.with_lora(name)
  folder = tmp_path / 'lora'
  folder.mkdir()
  written = published.write(folder, network)
  monkeypatch.chdir(folder)
  kind = getattr(transformers, written.form.auto)
  base = kind.from_pretrained(written.base)
  model = peft.PeftModel.from_pretrained(base, folder).eval()
  args, kwargs = small_networks.inputs(name)
  assert_equal(
    call(model, name), small_networks.outputs(network, *args, **kwargs)
  )


def test_lora_becomes_a_part_of_the_weights(tmp_path):
  network = small_networks.with_lora('bert')
  written = published.write(tmp_path, network.merged)
  args, _ = small_networks.inputs('bert')
  assert_equal(
    call(loaded(written, tmp_path), 'bert'),
    small_networks.outputs(network, *args),
  )


def test_the_image_processor_makes_what_the_network_saw(tmp_path):
  network = small_networks.named('vit')
  mean, std = (0.1, 0.4, 0.6), (0.2, 0.3, 0.5)
  scaling = published.Scaling(mean, std)
  published.write(tmp_path, network, scaling=scaling)
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
  found = processor(list(image), return_tensors='pt')['pixel_values'].numpy()
  expected = (image / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize('name', ['vit', 'vit of patches'])
def test_timm_loads_the_authors_names(name, tmp_path):
  pytest.importorskip('timm')
  from repjax.export import snippets

  network = small_networks.named(name)
  published.write_npz(tmp_path, network)
  code = snippets.of_npz(network).code
  scope = {}
  exec(code.replace("'model.npz'", repr(str(tmp_path / 'model.npz'))), scope)
  image = small_networks.images()
  with torch.no_grad():
    found = scope['model'].eval()(pixels(image)).numpy()
  assert_equal(found, small_networks.outputs(network, image))


def test_timm_loads_its_own_names(tmp_path):
  pytest.importorskip('timm')
  from repjax.export import snippets

  network = small_networks.named('swin')
  published.write_timm(tmp_path, network)
  place = repr(str(tmp_path / 'model.safetensors'))
  scope = {}
  code = snippets.of_timm(network).code
  exec(code.replace("'model.safetensors'", place), scope)
  image = small_networks.images()
  with torch.no_grad():
    found = scope['model'].eval()(pixels(image)).numpy()
  assert_equal(found, small_networks.outputs(network, image))
