"""Files that are not what their extension says, told by their first bytes."""

from gemma_ft.errors import DataError

HEAD_BYTES = 512
"""How many of a file's first bytes tell what it is."""

_PARQUET = b"PAR1"
_FIRST_BYTES = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Save the file as UTF-8."),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "Save the file as UTF-8."),
    (b"\xff\xfe", "UTF-16 text", "Save the file as UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save the file as UTF-8."),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it: gunzip."),
    (b"BZh", "compressed with bzip2", "Unpack it: bunzip2."),
    (b"\xfd7zXZ\x00", "compressed with xz", "Unpack it: unxz."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it: unzstd."),
    (b"PK\x03\x04", "a ZIP archive or an Excel sheet", "Unpack it, or save the sheet as CSV."),
    (_PARQUET, "a Parquet file", "Name it .parquet."),
    (b"ARROW1", "an Arrow file", "Write it as Parquet."),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "Run git lfs pull."),
    (b"<!doctype html", "a web page, not the data", "Download the file itself."),
    (b"<html", "a web page, not the data", "Download the file itself."),
)


def refuse_foreign(suffix: str, head: bytes, name: str) -> None:
    """Refuse a file whose first bytes are those of something else than its extension says.

    Args:
        suffix: The extension.
        head: The first bytes.
        name: What the file is called in the message.

    Raises:
        DataError: It is compressed, of another encoding, or not the data at all.
    """
    start = head.lstrip()[:32].lower() if head[:1] in (b"<", b" ", b"\r", b"\n") else head
    for first, kind, hint in _FIRST_BYTES:
        if start.startswith(first) and not (first == _PARQUET and suffix.lower() == ".parquet"):
            raise DataError(f"{name}: {kind}. {hint}")
    # Without a mark: in UTF-16 the bytes of Latin letters take turns with zeros, which UTF-8 has none of.
    if len(head) >= 4 and (head[0:4:2] == b"\0\0") != (head[1:4:2] == b"\0\0"):
        raise DataError(f"{name}: UTF-16 text. Save the file as UTF-8.")
