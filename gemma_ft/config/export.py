"""The typed keys of the `export` section."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

FORMATS = ("gguf_f16", "gguf_bf16", "gguf_q8_0", "nf4", "int8")
"""What a merged checkpoint can be written as beside safetensors."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class ExportMethod(StrEnum):
    """What is written when training is done."""

    none = "none"
    adapter = "adapter"
    merged = "merged"


class ExportBase(StrEnum):
    """The weights that an adapter is merged into."""

    trained = "trained"
    original = "original"


class CertificateMethod(StrEnum):
    """How an export is proven."""

    none = "none"
    full = "full"


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The checkpoint written after training, and by the export command."""

    method: ExportMethod = ExportMethod.merged
    """none; adapter (what was trained, ready to publish); or merged: base and adapter as one checkpoint."""
    base: ExportBase = ExportBase.trained
    """trained: merge into the weights as training held them, dequantised; original: as the base has them."""
    certificate: CertificateMethod = CertificateMethod.full
    """full: compare the export with the trained model before it gets its name; none: no such proof."""
    max_shard_size: str = "5GB"
    """Largest safetensors file, as a number with MB or GB (powers of ten)."""
    formats: tuple[str, ...] = ()
    """Further forms of the merged model: gguf_f16, gguf_bf16, gguf_q8_0, nf4, int8."""
    push_to_hub: str | None = None
    """Repository that the export is uploaded to, as user/name."""
    private: bool = True
    """Whether a repository that is made for it is private."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = []
        try:
            self.shard_bytes()
        except ValueError:
            found.append(
                f"export.max_shard_size={self.max_shard_size} is no size. Write it like 5GB or 500MB."
            )
        found += self._format_problems()
        if self.formats and self.method is not ExportMethod.merged:
            found.append(
                f"export.formats=[{','.join(self.formats)}] is made from a merged checkpoint, but "
                f"export={self.method}. Add export=merged."
            )
        if self.push_to_hub is not None and not _REPOSITORY.fullmatch(self.push_to_hub):
            found.append(
                f"export.push_to_hub={self.push_to_hub} is no repository. Write it like "
                "export.push_to_hub=user/name."
            )
        if self.push_to_hub is not None and self.method is ExportMethod.none:
            found.append(
                f"export.push_to_hub={self.push_to_hub} has nothing to upload, since export=none. "
                "Add export=merged or export=adapter."
            )
        return found

    def _format_problems(self) -> list[str]:
        found = []
        for name in dict.fromkeys(self.formats):
            if name not in FORMATS:
                near = get_close_matches(name.lower(), FORMATS, 1)
                hint = f" Did you mean {near[0]}?" if near else ""
                found.append(f"export.formats=[{name}] is none of {', '.join(FORMATS)}.{hint}")
            elif self.formats.count(name) > 1:
                found.append(f"export.formats=[{','.join(self.formats)}] names {name} twice. Keep one.")
        return found

    def shard_bytes(self) -> int:
        """Return the largest shard in bytes.

        Raises:
            ValueError: The text is no positive number with MB or GB.
        """
        text = self.max_shard_size.strip().upper()
        scale = {"MB": 10**6, "GB": 10**9}.get(text[-2:])
        size = float(text[:-2]) * scale if scale else 0.0
        if not 1 <= size < float("inf"):
            raise ValueError(self.max_shard_size)
        return int(size)
