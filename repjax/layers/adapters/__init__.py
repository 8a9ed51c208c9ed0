"""Device code: adapters in any linen model, by one import.

    from repjax.layers import adapters

    model = adapters.adapt(model, {r'.*/(query|value)': adapters.lora(8)})

`adapting` puts them into a model, `designs` has what can be added, `merging`
what becomes of them after training.
"""

from repjax.layers.adapters.adapting import Adapted as Adapted
from repjax.layers.adapters.adapting import adapt as adapt
from repjax.layers.adapters.adapting import added as added
from repjax.layers.adapters.adapting import with_base as with_base
from repjax.layers.adapters.designs import DESIGNS as DESIGNS
from repjax.layers.adapters.designs import Adapter as Adapter
from repjax.layers.adapters.designs import Design as Design
from repjax.layers.adapters.designs import (
  Reparametrization as Reparametrization,
)
from repjax.layers.adapters.designs import adapter as adapter
from repjax.layers.adapters.designs import lora as lora
from repjax.layers.adapters.designs import mam as mam
from repjax.layers.adapters.designs import (
  multi_head_parallel as multi_head_parallel,
)
from repjax.layers.adapters.designs import parallel_adapter as parallel_adapter
from repjax.layers.adapters.designs import (
  parallel_attention as parallel_attention,
)
from repjax.layers.adapters.designs import prefix as prefix
from repjax.layers.adapters.merging import Budget as Budget
from repjax.layers.adapters.merging import budget as budget
from repjax.layers.adapters.merging import collapse as collapse
from repjax.layers.adapters.merging import merge as merge
from repjax.layers.adapters.merging import trained_percent as trained_percent
from repjax.layers.adapters.prefix_attention import (
  PrefixAttention as PrefixAttention,
)
from repjax.layers.adapters.prefix_attention import gate as gate
