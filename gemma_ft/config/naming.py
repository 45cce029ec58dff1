"""Name a run after its recipe, or after what it is made of."""

import hashlib
import re
from collections.abc import Iterable, Mapping

from gemma_ft.config.catalog import RECIPE
from gemma_ft.config.schema import AdapterMethod, QuantizationMethod
from gemma_ft.config.words import Checked, Grammar

_LONGEST = 120


def build_name(
    choices: Mapping[str, str | None], quantization: QuantizationMethod, adapter: AdapterMethod
) -> str:
    """Build the name of a run that was given none.

    Args:
        choices: The option chosen of each group, `recipe` included.
        quantization: Storage of the base weights.
        adapter: What is trained.
    """
    recipe = choices.get(RECIPE)
    if recipe:
        return recipe
    return f"{choices['model']}-{choices['dataset']}-{method_name(quantization, adapter)}"


def method_name(quantization: QuantizationMethod, adapter: AdapterMethod) -> str:
    """Say in one word how a run trains."""
    if adapter is AdapterMethod.none:
        return "full" if quantization is QuantizationMethod.none else quantization.value
    prefix = {QuantizationMethod.none: "", QuantizationMethod.nf4: "q", QuantizationMethod.int8: "int8_"}
    return prefix[quantization] + adapter.value


def build_suffix(swept: Mapping[str, str], *, named_by_user: bool) -> str:
    """Build what tells one job of a sweep from the others.

    Args:
        swept: The swept keys and groups with this job's values.
        named_by_user: The name does not come from the recipe or the groups, so these must be told apart too.
    """
    in_name = () if named_by_user else (RECIPE,)
    told = {key: value for key, value in swept.items() if key not in in_name}
    leaves = [key.rsplit(".", 1)[-1] for key in told]
    parts = []
    for key, value in told.items():
        leaf = key.rsplit(".", 1)[-1]
        label = leaf if leaves.count(leaf) == 1 else key
        parts.append("-" + _plain(f"{label}_{value}"))
    suffix = "".join(parts)
    if len(suffix) <= _LONGEST:
        return suffix
    return suffix[: _LONGEST - 9] + "-" + hashlib.sha256(suffix.encode()).hexdigest()[:8]


def swept_values(job_words: Iterable[str], checked: Checked, grammar: Grammar) -> dict[str, str]:
    """Return the keys of one job that the command line does not fix, with the job's values.

    A sweeper may bring keys of its own: so what is fixed is left out, whatever else there is.

    Args:
        job_words: The job's overrides, as the sweeper wrote them.
        checked: The command line.
        grammar: Hydra's grammar, to take quotes off.
    """
    fixed = {word.partition("=")[0] for word in checked.words} - checked.swept
    values = {}
    for word in job_words:
        key, _, raw = word.partition("=")
        if key not in fixed and key != "name":
            value = (grammar.read(raw).values or (raw,))[0]
            values[key.lstrip("+")] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return values


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
