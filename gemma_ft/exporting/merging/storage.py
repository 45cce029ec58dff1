"""How training held the base, and the base's tensors as training held them."""

import re
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.exporting.merging.tensor_files import StoredTensor
from gemma_ft.families import LINEAR_LAYERS

if TYPE_CHECKING:
    import torch

_BLOCK_LINEAR = re.compile(rf"model\.layers\.\d+\.(?:\w+\.)*(?:{'|'.join(LINEAR_LAYERS)})\.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedStorage:
    """How a run held the base whose adapter it trained."""

    method: QuantizationMethod
    """int8 or nf4."""
    double_quant: bool
    """Whether nf4's scales were quantised too."""
    dtype: str
    """What training computed in: bfloat16, float16 or float32."""


def is_quantised(name: str, storage: TrainedStorage | None) -> bool:
    """Say whether training held a tensor of the base quantised: the linear layers of the decoder blocks."""
    return storage is not None and _BLOCK_LINEAR.fullmatch(name) is not None


def load_as_trained(tensor: StoredTensor, storage: TrainedStorage | None, out: "torch.Tensor") -> None:
    """Fill a tensor with the values that training held, reading in blocks of rows.

    Args:
        tensor: A tensor of the base, in a floating-point format.
        storage: How training held the base; None for as it is.
        out: Where the values go, of the tensor's shape.
    """
    import torch

    from gemma_ft.exporting.merging.held_rows import open_rows
    from gemma_ft.exporting.merging.row_blocks import matrix_shape

    with FileIO(tensor.path) as file:
        held = open_rows(tensor, file, storage, torch.get_num_threads())
        for first, last in held.blocks():
            out.view(matrix_shape(tensor))[first:last] = held.read(first, last)
