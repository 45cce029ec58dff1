"""What `trainer.extra` must not carry: what a named key sets, and what reaches round a promise."""

from collections.abc import Mapping
from typing import Any

_NAMED = {
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "assistant_only_loss": "dataset.loss_on",
    "bf16": "model.dtype",
    "completion_only_loss": "dataset.loss_on",
    "data_seed": "seed",
    "deepspeed": "parallel",
    "eval_strategy": "trainer.eval_steps",
    "fp16": "model.dtype",
    "fsdp": "parallel",
    "fsdp_config": "parallel",
    "gradient_accumulation_steps": "trainer.global_batch_size",
    "greater_is_better": "trainer.load_best_model_at_end",
    "logging_strategy": "trainer.logging_steps",
    "metric_for_best_model": "trainer.load_best_model_at_end",
    "output_dir": "output_dir",
    "parallelism_config": "parallel",
    "per_device_eval_batch_size": "trainer.micro_batch_size",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "project": "tracking.project",
    "report_to": "tracking",
    "run_name": "name",
    "save_strategy": "trainer.save_steps",
    "seed": "seed",
}
"""TRL's argument -> the key that sets it; a key of the trainer section needs no entry."""

_REFUSED = {
    "chat_template_path": "would replace Gemma's turn format",
    "dataset_kwargs": "would let TRL prepare rows that are prepared already",
    "dataset_text_field": "would let TRL prepare rows that are prepared already",
    "ddp_find_unused_parameters": "is off, since every trainable weight is used",
    "dataloader_pin_memory": "is chosen by the device",
    "disable_tqdm": "would draw a second progress line",
    "do_eval": "has no effect here",
    "do_train": "has no effect here",
    "enable_jit_checkpoint": "would leave a half-trained run that looks finished",
    "eos_token": "would replace one of Gemma's own tokens",
    "eval_on_start": "is chosen by the run: it evaluates before and after training",
    "eval_packing": "would make the held-out loss another number",
    "hub_token": "would put a secret into config.yaml; run `hf auth login` instead",
    "ignore_data_skip": "would train on some rows twice after a resume",
    "label_smoothing_factor": "would make the held-out loss another number",
    "logging_first_step": "is always on",
    "logging_nan_inf_filter": "would hide a loss that is no number",
    "loss_type": "would make the held-out loss another number",
    "model_init_kwargs": "has no effect here; the model section says how weights are loaded",
    "packing_strategy": "is bfd, the only one that keeps rows apart",
    "pad_token": "would replace one of Gemma's own tokens",
    "push_to_hub": "would publish checkpoints while training",
    "restore_callback_states_from_checkpoint": "is always on",
    "resume_from_checkpoint": "is not needed; the same line again continues an unfinished run",
    "save_only_model": "would make a resumed run another one",
    "trust_remote_code": "would run code from a checkpoint",
    "use_cpu": "is chosen by the device; set CUDA_VISIBLE_DEVICES= to hide the GPUs",
}
"""TRL's argument -> why it cannot be set."""


def find_extra_problems(extra: Mapping[str, Any], trainer_keys: frozenset[str]) -> list[str]:
    """List the entries of `trainer.extra` that cannot be passed on.

    Args:
        extra: The entries.
        trainer_keys: Names of the trainer section's own keys.
    """
    problems = []
    for name, value in extra.items():
        said = f"trainer.extra.{name}={value}"
        named = f"trainer.{name}" if name in trainer_keys else _NAMED.get(name)
        if named is not None:
            problems.append(f"{said} is set by a key of its own. Use {named}.")
        elif name in _REFUSED or name.startswith(("hub_", "push_to_hub")):
            reason = _REFUSED.get(name, "would publish checkpoints while training")
            problems.append(f"{said} {reason}. Take it out.")
    return problems
