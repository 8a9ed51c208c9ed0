"""Refuses fields of a config that count for nothing beside others."""

from ml_collections import config_dict

from repjax import types


def refuse_text(config: config_dict.ConfigDict, what: str) -> None:
  """Raises an InputError if the config names weights or a tokenizer.

  Args:
    config: With `weights` and `data.tokenizer`.
    what: That has no use for them, and why.
  """
  for field, value in (
    ('weights', config.weights),
    ('data.tokenizer', config.data.tokenizer),
  ):
    if value:
      raise types.InputError(
        f"config.{field}={value} cannot be used: {what}. Leave it ''."
      )
