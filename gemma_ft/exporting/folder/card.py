"""The model card, and all that is known of where a model comes from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_ft.exporting.folder.notice import license_lines
from gemma_ft.families import Family
from gemma_ft.modeling.tiny import TINY

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ABSOLUTE_PATH = re.compile(r"(?<![\w/:\\.])(?:~?/|[A-Za-z]:\\)[\w.][^\s,'\"|\]]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an exported model comes from."""

    name: str
    """Name of the run."""
    base_name: str | None
    """Hub id of the base or bundled:tiny; a local path is not shown."""
    base_revision: str | None
    """Commit of the base's repository."""
    data: Mapping[str, Any]
    """Facts about the data, as data.json has them."""
    quantization: str
    """How the frozen weights were stored while training: none, int8 or nf4."""
    adapter: str
    """What was trained: lora, or none for every weight."""
    held_out_loss: tuple[float, float] | None
    """Loss on the held-out rows before and after training."""
    day: str
    """Day of the export, as 2026-01-31."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The main choices of the configuration."""
    merged_onto: str = "the original base"
    """The weights that an adapter was merged into, in a sentence's words."""
    certificate: Sequence[str] = ()
    """What the certificate says, in short lines; none where the export was not certified."""

    @property
    def base_id(self) -> str | None:
        """Return the base's hub id, where it has one."""
        return _hub_id(self.base_name)

    @property
    def bundled(self) -> bool:
        """Say whether the base is the miniature that the toolkit makes itself."""
        return self.base_name == TINY

    @property
    def dataset_ids(self) -> list[str]:
        """Return the hub ids of the data, a mixture's one by one."""
        sources = (self.data.get("sources") or {"": self.data}).values()
        found = [_hub_id(source.get("path")) for source in sources if source.get("source") == "hub"]
        return list(dict.fromkeys(name for name in found if name))

    @property
    def base_words(self) -> str:
        """Return what the base is called in a sentence."""
        if self.bundled:
            return TINY
        if self.base_id is None:
            return "a local checkpoint"
        return f"{self.base_id} (revision {self.base_revision})" if self.base_revision else self.base_id

    @property
    def method_words(self) -> str:
        """Return what was trained, in a sentence's words."""
        if self.adapter == "none":
            return "every weight (full fine-tuning)"
        frozen = "" if self.quantization == "none" else f" on a base quantised to {self.quantization}"
        return f"low-rank adapters ({self.adapter}){frozen}"


def _hub_id(name: object) -> str | None:
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name) or Path(name).exists():
        return None
    return name


def hide_paths(text: str) -> str:
    """Replace absolute paths, which are nobody else's business."""
    return _ABSOLUTE_PATH.sub("<local path>", text)


def build_card(family: Family, origin: Origin) -> str:
    """Build README.md of a merged checkpoint, front matter first."""
    merged = "" if origin.adapter == "none" else f"; then merged into {origin.merged_onto}"
    front = front_matter(family, origin, library="transformers", relation="finetune")
    opening = f"{family.name} fine-tuned from {origin.base_words}."
    proof = [f"- {line}" for line in origin.certificate] or [
        "Not certified: it was not compared with the model that was trained."
    ]
    lines = [
        *[*front, "", f"# {origin.name}", "", opening, ""],
        *training_lines(origin, merged),
        *["", "## Certificate", "", *proof],
        *["", "## Use", "", *_snippet()],
        *["", "## License", "", *license_lines(family, origin), ""],
    ]
    return hide_paths("\n".join(lines))


def front_matter(family: Family, origin: Origin, *, library: str, relation: str) -> list[str]:
    """Build the head of a card in the words that the hub reads.

    Args:
        family: The base's family.
        origin: Where the model comes from.
        library: Which library loads it.
        relation: What it is to its base: finetune or adapter.
    """
    import yaml

    front: dict[str, object] = {} if origin.bundled else {"license": family.license}
    front |= {"library_name": library, "pipeline_tag": "text-generation"}
    if origin.base_id is not None:
        front |= {"base_model": origin.base_id, "base_model_relation": relation}
    if origin.dataset_ids:
        front["datasets"] = origin.dataset_ids
    front["tags"] = ["gemma_ft", "sft", *([] if origin.adapter == "none" else [origin.adapter])]
    return ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---"]


def training_lines(origin: Origin, merged: str = "") -> list[str]:
    """Tell how a model was trained: method, data, losses, the recipe."""
    lines = ["## Training", "", f"- Trained: {origin.method_words}{merged}"]
    if origin.data:
        lines.append(f"- Data: {_data_words(origin)}")
    if origin.held_out_loss is not None:
        before, after = origin.held_out_loss
        lines.append(f"- Held-out loss: {before:.4f} before, {after:.4f} after training")
    if origin.settings:
        rows = [f"| `{key}` | {_cell(value)} |" for key, value in origin.settings.items()]
        lines += ["", "### Recipe", "", "| key | value |", "| --- | --- |", *rows]
    return lines


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _source_words(source: Mapping[str, Any]) -> str:
    names = {"hub": source.get("path"), "package": f"rows of the package {source.get('path')}"}
    return str(names.get(str(source.get("source")), "local files"))


def _data_words(origin: Origin) -> str:
    facts = origin.data
    sources = (facts.get("sources") or {"": facts}).values()
    words = [" and ".join(dict.fromkeys(map(_source_words, sources)))]
    for key, unit in (
        ("split", "split {}"),
        ("revision", "revision {}"),
        ("rows_train", "{} rows trained on"),
        ("rows_held_out", "{} held out"),
        ("tokens", "{} tokens"),
    ):
        if facts.get(key) is not None:
            words.append(unit.format(facts[key]))
    return ", ".join(words)


def _snippet() -> list[str]:
    return [
        "```python",
        "from transformers import pipeline",
        "",
        'chat = pipeline("text-generation", model="<this folder>")',
        'print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=64)[0]["generated_text"][-1])',
        "```",
    ]
