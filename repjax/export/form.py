"""Host side: what a model of `transformers` is made of; what is refused."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple
from typing import NoReturn

from repjax import types
from repjax.layers import attention

# What the files call activations.
ACTIVATIONS: Mapping[str, str] = {
  'gelu_exact': 'gelu',
  'gelu_tanh': 'gelu_new',
  'relu': 'relu',
}


class Form(NamedTuple):
  """A network in the words of `transformers`.

  Attributes:
    config: What config.json says.
    save: (file, parameters) -> None: writes them under the files' names.
    auto: The class that loads the folder.
    task: What the hub calls its task, the `pipeline` of `transformers`.
    names: Our name of a leaf or layer -> its name in `transformers`; None where
      modules have other names there than files, and `peft` finds none.
    task_type: What `peft` calls the task; '' where it knows none.
  """

  config: dict[str, Any]
  save: Callable[[str | os.PathLike, types.PyTree], None]
  auto: str
  task: str
  names: Callable[[str], str] | None = None
  task_type: str = ''


def refuse(what: str, why: str) -> NoReturn:
  """Raises the InputError of a network that `transformers` does not have."""
  raise types.InputError(
    f'{what} has no published form: {why}. --format=jax writes any network as '
    'a program that runs without repjax.'
  )


def check(what: str, model: Any, **wanted: Any) -> None:
  """Refuses a model whose fields are not those of the published one.

  Args:
    what: The model, for the message.
    model: With these fields.
    **wanted: Field -> its value.
  """
  fields = vars(model)
  for name, value in wanted.items():
    if fields[name] != value:
      refuse(what, f'it has {name}={value!r}, and this one {fields[name]!r}')


def check_attention(what: str, *kernels: Any, causal: bool = False) -> None:
  """Refuses attention that is not exact, or looks at other places."""
  for kernel in kernels:
    if not isinstance(kernel, attention.Softmax):
      refuse(what, f'its attention is exact, and here {type(kernel).__name__}')
    if kernel.causal != causal:
      refuse(what, f'its attention has {causal=}, and here {kernel.causal}')


def labels(number: int, names: Sequence[str] | None = None) -> dict[str, Any]:
  """The fields that name classes.

  Args:
    number: How many there are.
    names: One a class, or None.
  """
  if names is None or len(names) != number:
    names = [f'LABEL_{i}' for i in range(number)]
  return {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }


def size(sides: Sequence[int]) -> int | list[int]:
  """(height, width) as files have it: one number where both are equal."""
  return sides[0] if sides[0] == sides[1] else list(sides)
