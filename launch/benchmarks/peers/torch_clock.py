"""What peers share: a device that is there, its clock and its memory."""

from collections.abc import Callable
import time


def check(device: str) -> None:
  """Ends the process where PyTorch has no such device."""
  import torch

  if device == 'cuda' and not torch.cuda.is_available():
    raise SystemExit('PyTorch finds no CUDA device')


def seconds(step: Callable[[], None], *, steps: int, rounds: int) -> float:
  """Of one step, the best of the rounds, after one that is not counted."""
  wait = _wait()

  def measured():
    wait()
    start = time.perf_counter()
    for _ in range(steps):
      step()
    wait()
    return (time.perf_counter() - start) / steps

  measured()
  return min(measured() for _ in range(rounds))


def peak_gib(step: Callable[[], None], device: str) -> float | None:
  """The most memory that tensors had in one step; None on a CPU."""
  import torch

  if device != 'cuda':
    return None
  torch.cuda.synchronize()
  torch.cuda.reset_peak_memory_stats()
  step()
  torch.cuda.synchronize()
  return torch.cuda.max_memory_allocated() / 2**30


def _wait() -> Callable[[], None]:
  import torch

  if torch.cuda.is_available():
    return torch.cuda.synchronize
  return lambda: None
