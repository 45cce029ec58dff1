"""Name a run after its recipe, or after what it is made of."""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

from gemma_ft.config.catalog import RECIPE
from gemma_ft.config.grammar import Grammar
from gemma_ft.config.schema import AdapterMethod, QuantizationMethod
from gemma_ft.config.words import Checked

_LONGEST = 120


def build_name(
    given: str,
    choices: Mapping[str, str | None],
    quantization: QuantizationMethod,
    adapter: AdapterMethod,
    swept: Mapping[str, str],
) -> str:
    """Build the name of a run: the given one, its recipe's or one of what it is made of.

    Args:
        given: The name in the config; empty: none is given.
        choices: The option chosen of each group, `recipe` included.
        quantization: Storage of the base weights.
        adapter: What is trained.
        swept: This job's values of what a sweep varies; what the name does not tell is appended.
    """
    recipe = choices.get(RECIPE)
    if given:
        return given + _suffix(swept, ())
    if recipe:
        return recipe + _suffix(swept, (RECIPE,))
    name = f"{choices['model']}-{choices['dataset']}-{method_name(quantization, adapter)}"
    return name + _suffix(swept, ("model", "dataset"))


def method_name(quantization: QuantizationMethod, adapter: AdapterMethod) -> str:
    """Say in one word how a run trains."""
    if adapter is AdapterMethod.none:
        return "full" if quantization is QuantizationMethod.none else quantization.value
    prefix = {QuantizationMethod.none: "", QuantizationMethod.nf4: "q", QuantizationMethod.int8: "int8_"}
    return prefix[quantization] + adapter.value


def _suffix(swept: Mapping[str, str], told: Collection[str]) -> str:
    untold = {key: value for key, value in swept.items() if key not in told}
    leaves = [key.rsplit(".", 1)[-1] for key in untold]
    suffix = "".join(
        "-" + _plain(f"{leaf if leaves.count(leaf) == 1 else key}_{value}")
        for leaf, (key, value) in zip(leaves, untold.items(), strict=True)
    )
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
    fixed = {word.partition("=")[0].lstrip("+") for word in checked.words} - checked.swept
    values = {}
    for word in job_words:
        key, _, raw = word.partition("=")
        if key.lstrip("+") not in fixed and key != "name":
            value = (grammar.read(raw).values or (raw,))[0]
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            values[key.lstrip("+")] = text.lower() if isinstance(value, bool) else text
    return values


def _plain(text: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "_", text).strip("_")
    if re.search(r"[^\w.+\-/, ]", text):  # train[:5%] and train[5%:] must not become one name
        plain += "_" + hashlib.sha256(text.encode()).hexdigest()[:4]
    return plain
