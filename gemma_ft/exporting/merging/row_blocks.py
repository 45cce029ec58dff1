"""How a matrix is divided into blocks of rows, which are read, computed and written one after the other."""

from itertools import pairwise

from gemma_ft.exporting.merging.tensor_files import StoredTensor

BLOCK_ELEMENTS = 1 << 17  # the block, its float32 form and the adapter's rows stay in the processor's cache
_FEWEST_ROWS = 16


def matrix_shape(tensor: StoredTensor) -> tuple[int, int]:
    """Return rows and columns of a tensor; whatever is no matrix has one column."""
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    return tensor.nbytes // tensor.item_bytes // max(1, columns), columns


def row_blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Divide a matrix into blocks of about `BLOCK_ELEMENTS`, as even as can be.

    No block of a divided matrix has fewer than eight rows: a product of one or two rows goes another way
    through the linear algebra library and rounds differently from the same rows of the whole product.
    """
    if not rows or not columns:
        return []
    count = -(-rows // max(_FEWEST_ROWS, BLOCK_ELEMENTS // columns))
    return list(pairwise(i * rows // count for i in range(count + 1)))
