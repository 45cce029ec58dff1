"""The model card of an adapter."""

from gemma_ft.exporting.folder.card import Origin, front_matter, hide_paths, training_lines
from gemma_ft.exporting.folder.notice import license_lines
from gemma_ft.families import Family


def build_adapter_card(family: Family, origin: Origin) -> str:
    """Build README.md of an adapter, front matter first."""
    lines = [
        *front_matter(family, origin, library="peft", relation="adapter"),
        *["", f"# {origin.name}", "", f"An adapter for {family.name}, trained on {origin.base_words}.", ""],
        *training_lines(origin),
        *["", "## Use", "", *_snippet(origin), *_advice(origin)],
        *["", "## License", "", *license_lines(family, origin), ""],
    ]
    return hide_paths("\n".join(lines))


def _snippet(origin: Origin) -> list[str]:
    base = f'"{origin.base_id or "<the base>"}"'
    if origin.base_id and origin.base_revision:
        base += f', revision="{origin.base_revision}"'
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = AutoModelForCausalLM.from_pretrained({base}, dtype="auto")',
        'model = PeftModel.from_pretrained(base, "<this folder>")',
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
        'chat = [{"role": "user", "content": "Hello!"}]',
        "tokens = tokenizer.apply_chat_template(",
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        'stops = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])',
        "print(tokenizer.decode(model.generate(**tokens, eos_token_id=stops, max_new_tokens=64)[0]))",
        "```",
    ]


def _advice(origin: Origin) -> list[str]:
    if origin.quantization == "none":
        return []
    return [
        "",
        f"It was trained on the base quantised to {origin.quantization} by bitsandbytes. Load the base like",
        "that (`quantization_config=`) for the model that was trained; in full precision it is a near",
        "relative.",
    ]
