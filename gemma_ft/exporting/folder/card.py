"""The words beside the weights: model card and NOTICE."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ft.families import Family

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an exported checkpoint comes from."""

    name: str
    """Name of the run."""
    base_name: str | None
    """Hub id of the base; a local path is not shown."""
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

    @property
    def base_id(self) -> str | None:
        """Return the base's hub id, where it has one."""
        return _hub_id(self.base_name)

    @property
    def dataset_ids(self) -> list[str]:
        """Return the hub ids of the data, a mixture's one by one."""
        sources = (self.data.get("sources") or {"": self.data}).values()
        found = [_hub_id(source.get("path")) for source in sources if source.get("source") == "hub"]
        return list(dict.fromkeys(name for name in found if name))

    @property
    def base_words(self) -> str:
        """Return what the base is called in a sentence."""
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


def build_card(family: Family, origin: Origin) -> str:
    """Build README.md of a merged checkpoint, front matter first."""
    lines = [*_front_matter(family, origin), "", f"# {origin.name}", ""]
    lines += [f"{family.name} fine-tuned from {origin.base_words}.", "", "## Training", ""]
    merged = "" if origin.adapter == "none" else "; then merged into the full-precision base"
    lines.append(f"- Trained: {origin.method_words}{merged}")
    if origin.data:
        lines.append(f"- Data: {_data_words(origin)}")
    if origin.held_out_loss is not None:
        before, after = origin.held_out_loss
        lines.append(f"- Held-out loss: {before:.4f} before, {after:.4f} after training")
    lines += ["", "## Use", "", *_snippet(), "", "## License", ""]
    lines += [f"{family.notice}.", f"The terms: <{family.license_url}>. What was modified: see NOTICE.", ""]
    return "\n".join(lines)


def _front_matter(family: Family, origin: Origin) -> list[str]:
    import yaml

    front: dict[str, object] = {"license": family.license, "library_name": "transformers"}
    front["pipeline_tag"] = "text-generation"
    if origin.base_id is not None:
        front |= {"base_model": origin.base_id, "base_model_relation": "finetune"}
    if origin.dataset_ids:
        front["datasets"] = origin.dataset_ids
    return ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---"]


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


def build_notice(
    family: Family, origin: Origin, *, template_added: bool, turns_registered: bool = False
) -> str:
    """Build NOTICE: the licence's own sentence, its terms, and what was modified, from what, when."""
    lines = [
        family.notice,
        "",
        f"The terms: {family.license_url}",
        "Their use restrictions apply to this model and to whatever is derived from it, and have to be",
        "passed on with it.",
        "",
        "Modifications",
        f"The weights were modified by fine-tuning {origin.base_words}:",
        f"run {origin.name}, {origin.method_words}, exported on {origin.day}.",
        "config.json and generation_config.json were rewritten; the tokenizer's files are unchanged copies.",
    ]
    if turns_registered:
        lines[-1] = (
            "config.json and generation_config.json were rewritten, and the turn tokens, which stood in the"
        )
        lines.append("tokenizer's vocabulary, were listed as special tokens in its files.")
    if template_added:
        lines.append("A chat template (chat_template.jinja) was added; the tokenizer had none.")
    return "\n".join([*lines, ""])
