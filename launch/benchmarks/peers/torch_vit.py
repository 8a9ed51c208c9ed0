"""Training steps of a ViT by timm or `transformers`, eager and compiled.

    python -m launch.benchmarks.peers.torch_vit SETTINGS_AS_JSON

Parameters and AdamW are float32, the network runs under bfloat16's autocast,
as ours keeps the one and computes in the other.
"""

from collections.abc import Mapping
import functools
import json
import sys
from typing import Any

from launch.benchmarks.peers import torch_clock


def measure(
  *,
  library: str,
  forms: list[str],
  sizes: Mapping[str, int],
  rounds: int,
  device: str,
) -> dict[str, Any]:
  """Images a second of every form, and the library's version.

  Args:
    library: 'timm' or 'transformers'.
    forms: Of 'eager' and 'torch.compile'.
    sizes: As `vit_throughput.Sizes`.
    rounds: Of `sizes['steps']` steps each; the best counts.
    device: 'cuda' or 'cpu'.
  """
  import torch

  torch_clock.check(device)
  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')
  rows, side = sizes['batch_size'], sizes['image']
  image = torch.randn(rows, 3, side, side, device=device)
  label = torch.randint(0, sizes['classes'], (rows,), device=device)
  result: dict[str, Any] = {}
  for form in forms:
    model, version = _timm(sizes) if library == 'timm' else _transformers(sizes)
    model = model.to(device).train()
    result['version'] = version
    result['parameters'] = sum(x.numel() for x in model.parameters())
    adamw = torch.optim.AdamW(
      model.parameters(), lr=1e-3, fused=device == 'cuda'
    )
    forward = torch.compile(model) if form == 'torch.compile' else model

    def step(forward=forward, adamw=adamw):
      adamw.zero_grad(set_to_none=True)
      with torch.autocast(device, torch.bfloat16):
        output = forward(image)
      logits = output if library == 'timm' else output.logits
      torch.nn.functional.cross_entropy(logits.float(), label).backward()
      adamw.step()

    seconds = torch_clock.seconds(step, steps=sizes['steps'], rounds=rounds)
    result[f'{form}, images/s'] = rows / seconds
    result[f'{form}, peak GiB'] = torch_clock.peak_gib(step, device)
  return result


def _timm(sizes):
  import timm
  import torch

  model = timm.models.VisionTransformer(
    img_size=sizes['image'],
    patch_size=sizes['patch'],
    embed_dim=sizes['width'],
    depth=sizes['layers'],
    num_heads=sizes['heads'],
    mlp_ratio=sizes['mlp'] / sizes['width'],
    num_classes=sizes['classes'],
    act_layer=functools.partial(torch.nn.GELU, approximate='tanh'),
  )
  return model, f'timm {timm.__version__}'


def _transformers(sizes):
  import transformers

  vit_config: Any = transformers.ViTConfig  # Its type lacks `num_labels`.
  model = transformers.ViTForImageClassification(
    vit_config(
      image_size=sizes['image'],
      patch_size=sizes['patch'],
      hidden_size=sizes['width'],
      num_hidden_layers=sizes['layers'],
      num_attention_heads=sizes['heads'],
      intermediate_size=sizes['mlp'],
      hidden_act='gelu_pytorch_tanh',
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
      num_labels=sizes['classes'],
    )
  )
  return model, f'transformers {transformers.__version__}'


if __name__ == '__main__':
  print(json.dumps(measure(**json.loads(sys.argv[1]))))
