"""What TRL, an optimizer, a schedule or this machine does not take is said before a model is loaded."""

import pytest

from gemma_ft.config.schema import (
    AdapterMethod,
    Attention,
    Dtype,
    ParallelMethod,
    QuantizationMethod,
    RunConfig,
)
from gemma_ft.errors import ConfigError
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.training.arguments import build_arguments
from gemma_ft.training.layout import Layout


@pytest.fixture
def build(tmp_path):
    def run(**keys):
        config = keys.pop("config", None) or RunConfig(name="x")
        for name, value in keys.items():
            setattr(config.trainer, name, value)
        device = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)
        precision = Precision(device=device, dtype=Dtype.fp32, attention=Attention.sdpa, reasons=())
        layout = Layout(world_size=1, rank=0, accumulation=16, method=ParallelMethod.single)
        return build_arguments(
            config,
            layout=layout,
            precision=precision,
            family=FAMILIES[0],
            output_dir=tmp_path,
            evaluates=True,
        )

    return run


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"extra": {"adam_beta2": 1.5}},
            r"^trainer\.optim=adamw_torch cannot be built \(Invalid beta parameter at index 1: 1\.5\)\. Mend",
        ),
        (
            {"optim": "schedule_free_adamw"},
            r"^trainer\.optim=schedule_free_adamw cannot be built \(You need to install `schedulefree`",
        ),
        (
            {"optim": "galore_adamw", "extra": {"optim_target_modules": "all-linear"}},
            r"^trainer\.optim=galore_adamw cannot be built \(You need to install `galore_torch`",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            r"^trainer\.lr_scheduler_type=cosine_with_min_lr cannot be built \(One of min_lr or .*\)\. "
            r"Give what it needs as \+trainer\.extra\.lr_scheduler_kwargs\.KEY=VALUE\.$",
        ),
        (
            {"extra": {"lr_scheduler_kwargs": {"num_cycle": 2}}},
            r"^trainer\.extra\.lr_scheduler_kwargs\.num_cycle=2 is nothing that "
            r"trainer\.lr_scheduler_type=cosine reads\. Did you mean num_cycles\?$",
        ),
        (
            {"lr_scheduler_type": "constant", "extra": {"lr_scheduler_kwargs": {"min_lr": 1}}},
            r"min_lr=1 is nothing that trainer\.lr_scheduler_type=constant reads\. Take it out\.$",
        ),
        (
            {"extra": {"lr_scheduler_kwargs": {"num_cycles": "many"}}},
            r"^trainer\.lr_scheduler_type=cosine cannot be built \(",
        ),
        (
            {"extra": {"dataloader_persistent_workers": True}},
            r"^trainer\.extra\.dataloader_\* cannot work together: persistent_workers option needs num",
        ),
        (
            {"extra": {"activation_offloading": True}},
            r"^trainer\.extra\.activation_offloading=true needs a GPU\.",
        ),
        ({"extra": {"use_liger_kernel": True}}, r"^trainer\.extra\.use_liger_kernel=true needs a GPU\."),
        (
            {"extra": {"activation_checkpointing_kwargs": {"offload": True}}},
            r"activation_checkpointing_kwargs\.offload=true needs a GPU\. Take it out\.$",
        ),
        (
            {"extra": {"tf32": True}},
            r"^trainer\.\* cannot become TRL's arguments: --tf32 requires .*[^.]\. Look it up",
        ),
        (
            {"extra": {"torch_compile_backend": "inductr"}},
            r"^trainer\.extra\.torch_compile_backend=inductr is none .* Use one of .*inductor",
        ),
        (
            {"extra": {"torch_compile_mode": "fast"}},
            r"^trainer\.extra\.torch_compile_mode=fast is none .* Use one of default, ",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, keys, line):
    with pytest.raises(ConfigError, match=line):
        build(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"optim": "paged_ademamix_8bit"},
        {"optim": "rmsprop_bnb"},
        {"optim": "sgd", "extra": {"optim_args": "momentum=0.9,nesterov=true"}},
        {"lr_scheduler_type": "cosine_with_min_lr", "extra": {"lr_scheduler_kwargs": {"min_lr": 1e-6}}},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "extra": {"lr_scheduler_kwargs": {"num_decay_steps": 5}},
        },
        {"lr_scheduler_type": "greedy", "eval_steps": 5},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_steps": 5},
        {"lr_scheduler_type": "constant"},
    ],
    ids=str,
)
def test_what_can_be_built_passes(build, keys):
    assert build(**keys).report_to in ([], ["none"])


def test_dora_on_int8_weights_needs_a_gpu(build):
    config = RunConfig(name="x")
    config.adapter.method, config.adapter.dora = AdapterMethod.lora, True
    config.quantization.method = QuantizationMethod.int8
    with pytest.raises(
        ConfigError, match=r"adapter\.dora=true cannot train on quantization=int8 on a CPU\. Use"
    ):
        build(config=config)
    config.quantization.method = QuantizationMethod.nf4
    build(config=config)


def test_a_trial_leaves_no_trace_in_the_random_numbers(build):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build()
    assert torch.equal(torch.rand(3), expected)
