"""What a run leaves out of its imports, and what it gives back."""

import gc
import importlib.util
import sys

import pytest

from gemma_ft.config.compose import compose
from gemma_ft.modeling.imports import bring_back, seldom_collected, unused_left_out, unused_packages

PACKAGE = "colorsys"
"""Of the standard library, and used by nothing here."""


@pytest.fixture
def unused(monkeypatch):
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.setattr("gemma_ft.modeling.imports.unused_packages", lambda config: [PACKAGE])
    return PACKAGE


@pytest.mark.parametrize(
    ("words", "used"),
    [
        (["quantization=none"], set()),
        (["quantization=none", "adapter=none"], set()),
        (["quantization=none", "trainer.optim=adamw_torch_fused"], set()),
        (["quantization=nf4"], {"bitsandbytes"}),
        (["quantization=int8"], {"bitsandbytes"}),
        (["quantization=none", "trainer.optim=adamw_8bit"], {"bitsandbytes"}),
        (["quantization=none", "trainer.optim=paged_adamw_32bit"], {"bitsandbytes"}),
        (["quantization=none", "trainer.optim=lion_32bit"], {"bitsandbytes"}),
        (["quantization=none", "export.formats=[nf4]"], {"bitsandbytes"}),
        (["quantization=none", "export.formats=[int8]"], {"bitsandbytes"}),
        (["quantization=none", "export.formats=[gguf_f16]"], set()),
        (["quantization=none", "tracking=wandb"], {"wandb"}),
        (["quantization=none", "tracking=tensorboard"], set()),
    ],
)
def test_a_run_leaves_out_the_packages_that_nothing_in_it_uses(words, used):
    config = compose("recipe=quickstart", *words)

    assert {"wandb", "comet_ml", "bitsandbytes"} - set(unused_packages(config)) == used


def test_what_is_left_out_cannot_be_found_and_comes_back(unused):
    with unused_left_out(None):
        assert importlib.util.find_spec(unused) is None
        with pytest.raises(ImportError):
            importlib.import_module(unused)

    assert unused not in sys.modules
    assert importlib.import_module(unused)


def test_what_is_left_out_comes_back_where_a_run_fails(unused):
    with pytest.raises(OSError, match="disk"), unused_left_out(None):
        raise OSError("disk")

    assert importlib.import_module(unused)


def test_what_is_imported_already_stays(unused):
    loaded = importlib.import_module(unused)

    with unused_left_out(None):
        assert sys.modules[unused] is loaded
        bring_back(unused)

    assert sys.modules[unused] is loaded


def test_what_a_checkpoint_needs_is_found_again(unused):
    with unused_left_out(None):
        bring_back(unused)
        loaded = importlib.import_module(unused)

    assert sys.modules[unused] is loaded


@pytest.mark.parametrize("before", [(700, 10, 10), (90_000, 5, 5), (0, 10, 10)])
def test_garbage_is_looked_for_less_often_while_libraries_load_and_as_before_after(before):
    usual = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        with seldom_collected():
            inside = gc.get_threshold()
        with pytest.raises(OSError, match="broken"), seldom_collected():
            raise OSError("broken")
        after = gc.get_threshold()
    finally:
        gc.set_threshold(*usual)

    assert inside[0] == {700: 50_000, 90_000: 90_000, 0: 0}[before[0]]
    assert after == before
