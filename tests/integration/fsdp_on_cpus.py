"""The program with FSDP2 on CPUs: accelerate's own code shards over gloo, where it would fall back to DDP.

For tests alone: `parallel=fsdp` asks for GPUs everywhere else. A launcher runs it as it does `-m gemma_ft`.
"""

import sys

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy

from gemma_ft.cli import main
from gemma_ft.training import layout

_begin = state.AcceleratorState.__init__


def _begin_sharded(self, *args, fsdp_plugin=None, **kwargs):
    """Take the FSDP settings that are passed over for processes on CPUs."""
    _begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if isinstance(fsdp_plugin.cpu_offload, CPUOffloadPolicy):
            fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # there is no GPU to pin it for
        self.fsdp_plugin = fsdp_plugin


state.AcceleratorState.__init__ = _begin_sharded
layout.SHARDING_DEVICES = ("cpu",)

if __name__ == "__main__":
    sys.exit(main())
