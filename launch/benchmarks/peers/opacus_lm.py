"""Steps of a language model by Opacus' ghost clipping, and without privacy.

    python -m launch.benchmarks.peers.opacus_lm SETTINGS_AS_JSON

Blocks as those of ours (norms before, biases, GELU by tanh, attention by
PyTorch's fused form). Opacus refuses tied embeddings, so that its logits have
a matrix of their own.
"""

from collections.abc import Mapping
import json
import sys
from typing import Any

from launch.benchmarks.peers import torch_clock


def measure(
  *,
  sizes: Mapping[str, int],
  clip_norm: float,
  noise_multiplier: float,
  learning_rate: float,
  rounds: int,
  device: str,
) -> dict[str, Any]:
  """Seconds and the most memory of a step, 'none' and 'ghost'.

  Products of float32 are TF32 where the card has them, as by default in JAX.

  Args:
    sizes: As `private_language.Sizes`.
    clip_norm: Of a row's gradient.
    noise_multiplier: Of the sum of clipped rows.
    learning_rate: Of Adam.
    rounds: Of `sizes['steps']` steps each; the best counts.
    device: 'cuda' or 'cpu'.
  """
  import opacus
  import torch

  torch_clock.check(device)
  torch.set_float32_matmul_precision('high')
  rows, length = sizes['batch_size'], sizes['length']
  rng = torch.Generator().manual_seed(0)
  tokens = torch.randint(
    0, sizes['vocabulary'], (rows, length + 1), generator=rng
  ).to(device)
  inputs = tokens[:, :-1].contiguous()  # Opacus takes views of it.
  label = tokens[:, 1:]
  result: dict[str, Any] = {'version': f'opacus {opacus.__version__}'}
  for form in ('none', 'ghost'):
    torch.manual_seed(0)
    model: Any = decoder(sizes).to(device).train()
    result['parameters'] = sum(x.numel() for x in model.parameters())
    adam: Any = torch.optim.Adam(model.parameters(), lr=learning_rate)
    loss_fn: Any = torch.nn.CrossEntropyLoss()
    shape = {}
    if form == 'ghost':
      shape['shape'] = (rows, length, sizes['vocabulary'])
      rows_once = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs.cpu(), label.cpu()),
        batch_size=rows,
      )
      model, adam, loss_fn, _ = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=adam,
        data_loader=rows_once,
        criterion=loss_fn,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip_norm,
        poisson_sampling=False,
        grad_sample_mode='ghost',
      )

    def step(model=model, adam=adam, loss_fn=loss_fn, shape=shape):
      adam.zero_grad()
      logits = model(inputs)
      loss_fn(logits.flatten(0, 1), label.flatten(), **shape).backward()
      adam.step()

    result[f'{form}, seconds'] = torch_clock.seconds(
      step, steps=sizes['steps'], rounds=rounds
    )
    result[f'{form}, peak GiB'] = torch_clock.peak_gib(step, device)
    del model, adam, loss_fn, step
  return result


def decoder(sizes: Mapping[str, int]) -> Any:
  """A decoder in PyTorch: tokens [B, L] -> logits [B, L, vocabulary]."""
  import torch
  from torch import nn

  width, heads = sizes['width'], sizes['width'] // 64

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm_attention, self.norm_mlp = (
        nn.LayerNorm(width),
        nn.LayerNorm(width),
      )
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.up, self.down = (
        nn.Linear(width, 4 * width),
        nn.Linear(4 * width, width),
      )
      self.gelu = nn.GELU('tanh')

    def forward(self, x):
      q, k, v = (
        y.unflatten(-1, (heads, -1)).transpose(1, 2)
        for y in self.qkv(self.norm_attention(x)).chunk(3, -1)
      )
      mixed = nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True
      )
      x = x + self.out(mixed.transpose(1, 2).flatten(2))
      return x + self.down(self.gelu(self.up(self.norm_mlp(x))))

  class Decoder(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding(sizes['vocabulary'], width)
      self.positions = nn.Embedding(sizes['length'], width)
      self.blocks = nn.ModuleList(Block() for _ in range(sizes['layers']))
      self.norm = nn.LayerNorm(width)
      self.head = nn.Linear(width, sizes['vocabulary'], bias=False)

    def forward(self, tokens):
      places = torch.arange(tokens.shape[1], device=tokens.device)
      places = places.expand_as(tokens).contiguous()  # As above.
      x = self.tokens(tokens) + self.positions(places)
      for block in self.blocks:
        x = block(x)
      return self.head(self.norm(x))

  return Decoder()


if __name__ == '__main__':
  print(json.dumps(measure(**json.loads(sys.argv[1]))))
