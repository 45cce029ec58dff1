"""Further arguments of TRL's: each one is looked at, and none is passed on that nothing would read."""

import dataclasses
import inspect
import re

import pytest

from gemma_ft.config.checks import find_problems
from gemma_ft.config.compose import compose
from gemma_ft.config.optimizers import optim_args_of
from gemma_ft.config.sft_arguments import CHOICES, NAMED, NEEDS, NESTED, PASSED, REFUSED
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError

OWN = {field.name for field in dataclasses.fields(TrainerConfig)}


@pytest.fixture
def problems():
    def find(extra, **keys):
        config = compose("recipe=quickstart")
        config.trainer.extra, config.trainer.gradient_checkpointing = extra, True
        for name, value in keys.items():
            setattr(config.trainer, name, value)
        return find_problems(config)

    return find


def test_every_argument_of_trl_is_classified_once():
    """Fails when a release brings a new one: look at what it reaches, then put it into one of the lists."""
    from trl import SFTConfig

    theirs = {field.name for field in dataclasses.fields(SFTConfig)}
    lists = [OWN & theirs, set(NAMED), set(REFUSED), set(PASSED)]
    assert set().union(*lists) == theirs
    assert sum(map(len, lists)) == len(theirs)
    assert set(NESTED) | set(CHOICES) | set(NEEDS) <= set(PASSED)


READ_WRONG = {"weight_decay", "kahan_sum", "decouple_lr", "block_size"}
"""Overruled by the parameter groups, taken for true whatever is said, or left a text."""


def test_arguments_of_an_optimizer_are_those_that_transformers_reads():
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS

    for optim, handler in _OPTIMIZER_HANDLERS.items():
        source = inspect.getsource(handler)
        read = set(re.findall(r'optim_args(?:\.get|\.pop)\(\s*"(\w+)"|"(\w+)" in ctx\.optim_args', source))
        read = {name for pair in read for name in pair if name}
        for several in re.findall(r"for key in \(([^)]*)\):", source):
            read |= set(re.findall(r'"(\w+)"', several))
        if handler.__name__ == "_get_bitsandbytes_optimizer" and "ademamix" not in optim:
            read = set()
        if "layerwise" not in optim:
            assert set(optim_args_of(optim.value)) == read - READ_WRONG, optim


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (
            {"hub_token": "hf_0123456789abcdefghij"},
            r"^trainer\.extra\.hub_token would put a secret into config",
        ),
        (
            {"wandb_api_key": "0123456789abcdef"},
            r"^trainer\.extra\.wandb_api_key is no argument .* known here\.",
        ),
        ({"model_init_kwargs": {"token": "hf_x"}}, r"^trainer\.extra\.model_init_kwargs has no effect here;"),
        (
            {"trust_remote_code": True},
            r"trust_remote_code=True would run code from a checkpoint\. Take it out\.",
        ),
        ({"push_to_hub": True}, "push_to_hub=True would publish checkpoints"),
        ({"trackio_space_id": "a/b"}, "trackio_space_id=a/b would publish checkpoints or figures"),
        ({"auto_find_batch_size": True}, "would begin again with smaller batches"),
        (
            {"accelerator_config": {"split_batches": True}},
            r"^trainer\.extra\.accelerator_config would change which",
        ),
        ({"deepspeed": "zero3.json"}, r"deepspeed=zero3\.json is set by a key of its own\. Use parallel\."),
        (
            {"fsdp_config": {"offload_params": True}},
            r"^trainer\.extra\.fsdp_config is set by .* Use parallel\.",
        ),
        ({"fp16_full_eval": True}, r"Use model\.dtype\."),
        ({"padding_free": True}, r"needs packed rows; use trainer\.packing=true\. Take it out\."),
        ({"adam_beta_2": 0.9}, r"known here\. Did you mean trainer\.extra\.adam_beta2\?"),
        ({"zzz": 1}, r"zzz=1 is no argument .* known here\. See TRL's SFTConfig for the names\."),
        ({"ddp_timeout": "abc"}, r"ddp_timeout=abc cannot be read\. Give a whole number\."),
        ({"ddp_timeout": True}, r"ddp_timeout=True cannot be read\. Give a whole number\."),
        ({"full_determinism": "yes"}, r"cannot be read\. Give true or false\."),
        ({"adam_beta2": "high"}, r"cannot be read\. Give a number\."),
        (
            {"lr_scheduler_kwargs": "num_cycles=2"},
            r"Write \+trainer\.extra\.lr_scheduler_kwargs\.KEY=VALUE\.",
        ),
        (
            {"train_sampling_strategy": "group_by_length"},
            r"group_by_length cannot be resumed exactly\. Use random or sequential\.",
        ),
        (
            {"activation_checkpointing_kwargs": {"use_reentran": True}},
            r"use_reentran=True is nothing that TRL reads\. Did you mean use_reentrant\?",
        ),
        (
            {"activation_checkpointing_kwargs": {"zzz": 1}},
            r"It reads every_n_layers, offload, use_reentrant\.",
        ),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": "maybe"}},
            r"\.use_reentrant=maybe cannot be read\. Give true or false\.",
        ),
        (
            {"activation_checkpointing_kwargs": {"every_n_layers": 0}},
            r"\.every_n_layers=0 must be above 0\. Give a positive number, or leave it out\.",
        ),
        ({"pad_to_multiple_of": 0}, r"pad_to_multiple_of=0 must be above 0\."),
        ({"pad_to_multiple_of": "auto"}, r"pad_to_multiple_of=auto cannot be read\. Give a whole number\."),
        ({"dataloader_prefetch_factor": -1}, r"dataloader_prefetch_factor=-1 must be above 0\."),
        ({"gradient_checkpointing_kwargs": {}}, r"Use trainer\.extra\.activation_checkpointing_kwargs\."),
        (
            {"liger_kernel_config": {"rope": True}},
            r"Add trainer\.extra\.use_liger_kernel=true, or take it out\.",
        ),
        ({"eval_delay": 3}, r"eval_delay is read by nothing here\. Add trainer\.eval_steps"),
        (
            {"optim_args": "momentum=0.9"},
            r"momentum=0\.9 is nothing that trainer\.optim=adamw_torch reads\. Take",
        ),
        ({"optim_args": "momentum"}, r"optim_args is no list of key=value\. Write it like"),
        (
            {"optim_target_modules": "all-linear"},
            r"is not read by trainer\.optim=adamw_torch\. Take it out\.",
        ),
    ],
)
def test_an_argument_that_would_do_harm_or_nothing_is_refused(problems, extra, line):
    found = problems(extra)
    assert len(found) == 1
    assert re.search(line, found[0]), found
    for value in extra.values():
        assert "hf_" not in found[0]
        assert not isinstance(value, str) or len(value) < 16 or value not in found[0]


@pytest.mark.parametrize(
    ("keys", "extra", "line"),
    [
        ({"optim": "sgd"}, {"optim_args": "momentun=0.9"}, r"momentun=0\.9 is .* Did you mean momentum\?"),
        ({"optim": "sgd"}, {"adam_beta2": 0.9}, r"adam_beta2=0\.9 is nothing that trainer\.optim=sgd reads"),
        ({"optim": "galore_adamw"}, {}, r"needs its layers\. Add \+trainer\.extra\.optim_target_modules"),
        ({"optim": "lomo"}, {}, r"optim=lomo changes weights while gradients are computed"),
        ({"lr_scheduler_type": "greedy"}, {}, r"follows the held-out loss, .* Set trainer\.eval_steps\."),
        (
            {"gradient_checkpointing": False},
            {"activation_checkpointing_kwargs": {"every_n_layers": 2}},
            r"Add trainer\.gradient_checkpointing=true, or take it out\.",
        ),
    ],
)
def test_an_argument_must_fit_what_stands_beside_it(problems, keys, extra, line):
    found = problems(extra, **keys)
    assert len(found) == 1
    assert re.search(line, found[0]), found


def test_arguments_that_are_read_pass(problems):
    assert problems({"adam_beta2": 0.95, "adam_epsilon": 1, "ddp_timeout": 60}) == []
    assert problems({"optim_args": "momentum=0.9, nesterov=true"}, optim="sgd") == []


def test_a_secret_in_an_argument_is_told_once_and_not_shown():
    with pytest.raises(ConfigError) as caught:
        compose("recipe=quickstart", "+trainer.extra.hub_token=hf_0123456789abcdefghij")
    assert len(caught.value.problems) == 1
    assert "0123456789" not in str(caught.value)
