"""Representation-learning systems of ICLR in 2021 and 2022 that compose.

Import the part that you need, for example `from repjax import optim` or
`from repjax.models import vit`; `repjax.types` holds the contracts.
"""

__version__ = '0.1.0'
