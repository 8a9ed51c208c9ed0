"""Device code: attention.

Exact attention is here; `linear` has what is linear in the length, and
`multi_head` the layer around either.
"""

from repjax.layers.attention.softmax import Cache as Cache
from repjax.layers.attention.softmax import Softmax as Softmax
from repjax.layers.attention.softmax import (
  softmax_attention as softmax_attention,
)
