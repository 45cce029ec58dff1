"""Every argument of TRL's SFTConfig, by what becomes of it in `trainer.extra`; a test keeps it whole."""

NAMED = {
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "assistant_only_loss": "dataset.loss_on",
    "bf16": "model.dtype",
    "bf16_full_eval": "model.dtype",
    "completion_only_loss": "dataset.loss_on",
    "data_seed": "seed",
    "deepspeed": "parallel",
    "eval_strategy": "trainer.eval_steps",
    "fp16": "model.dtype",
    "fp16_full_eval": "model.dtype",
    "fsdp": "parallel",
    "fsdp_config": "parallel",
    "gradient_accumulation_steps": "trainer.global_batch_size",
    "gradient_checkpointing_kwargs": "trainer.extra.activation_checkpointing_kwargs",
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
"""Argument -> the key that sets it; a key of the trainer section needs no entry."""

_NO_EFFECT = "has no effect here"
_PUBLISHES = "would publish checkpoints or figures; export.push_to_hub publishes what is exported"
_QUIET = "would bury the run's own lines under those of its libraries"
_PREPARED = "would let TRL prepare rows that are prepared already"
_OTHER_LOSS = "would make the held-out loss another number"

REFUSED = {
    "accelerator_config": "would change which rows a process gets",
    "auto_find_batch_size": "would begin again with smaller batches where memory ends, unseen",
    "average_tokens_across_devices": "is always on, so that the loss is the same on any number of devices",
    "batch_eval_metrics": _NO_EFFECT,
    "chat_template_path": "would replace Gemma's turn format",
    "dataloader_in_order": "is always on: rows in any order could not be resumed",
    "dataloader_pin_memory": "is chosen by the device",
    "dataset_kwargs": _PREPARED,
    "dataset_num_proc": _PREPARED,
    "dataset_text_field": _PREPARED,
    "ddp_find_unused_parameters": "is off, since every trainable weight is used",
    "ddp_backend": "is chosen by the device",
    "debug": "would end the run in a traceback; a loss that is no number is named with its rows anyway",
    "disable_tqdm": "would draw a second progress line",
    "do_eval": _NO_EFFECT,
    "do_predict": _NO_EFFECT,
    "do_train": _NO_EFFECT,
    "enable_jit_checkpoint": "would leave a half-trained run that looks finished",
    "eos_token": "would replace one of Gemma's own tokens",
    "eval_accumulation_steps": _NO_EFFECT,
    "eval_do_concat_batches": _NO_EFFECT,
    "eval_on_start": "is chosen by the run: it evaluates before and after training",
    "eval_packing": _OTHER_LOSS,
    "eval_use_gather_object": _NO_EFFECT,
    "hub_always_push": _PUBLISHES,
    "hub_model_id": _PUBLISHES,
    "hub_private_repo": _PUBLISHES,
    "hub_revision": _PUBLISHES,
    "hub_strategy": _PUBLISHES,
    "hub_token": "would put a secret into config.yaml; run `hf auth login` instead",
    "ignore_data_skip": "would train on some rows twice after a resume",
    "include_for_metrics": _NO_EFFECT,
    "label_names": _OTHER_LOSS,
    "label_smoothing_factor": _OTHER_LOSS,
    "length_column_name": _NO_EFFECT,
    "local_rank": "is the launcher's to say",
    "log_level": _QUIET,
    "log_level_replica": _QUIET,
    "log_on_each_node": _QUIET,
    "logging_first_step": "is always on",
    "logging_nan_inf_filter": "would hide a loss that is no number",
    "loss_type": _OTHER_LOSS,
    "model_init_kwargs": "has no effect here; the model section says how weights are loaded",
    "packing_strategy": "is bfd, the only one that keeps rows apart",
    "pad_token": "would replace one of Gemma's own tokens",
    "padding_free": "needs packed rows; use trainer.packing=true",
    "prediction_loss_only": _NO_EFFECT,
    "push_to_hub": "would publish checkpoints while training",
    "remove_unused_columns": _NO_EFFECT,
    "restore_callback_states_from_checkpoint": "is always on",
    "resume_from_checkpoint": "is not needed; the same line again continues an unfinished run",
    "router_aux_loss_coef": "is for mixtures of experts, which no Gemma here is",
    "save_on_each_node": "would write one run folder from several places",
    "save_only_model": "would make a resumed run another one",
    "shuffle_dataset": "is not needed; rows are drawn in an order of their own each epoch",
    "skip_memory_metrics": _NO_EFFECT,
    "trackio_bucket_id": _PUBLISHES,
    "trackio_space_id": _PUBLISHES,
    "trackio_static_space_id": _PUBLISHES,
    "truncation_mode": _PREPARED,
    "trust_remote_code": "would run code from a checkpoint",
    "use_cache": "would cost memory that training has no use for",
    "use_cpu": "is chosen by the device; set CUDA_VISIBLE_DEVICES= to hide the GPUs",
}
"""Argument -> why it cannot be set."""

PASSED: dict[str, tuple[type, ...]] = {
    "activation_checkpointing_kwargs": (dict,),
    "activation_offloading": (bool,),
    "adam_beta1": (float,),
    "adam_beta2": (float,),
    "adam_epsilon": (float,),
    "dataloader_drop_last": (bool,),
    "dataloader_multiprocessing_context": (str,),
    "dataloader_num_workers": (int,),
    "dataloader_persistent_workers": (bool,),
    "dataloader_prefetch_factor": (int,),
    "ddp_broadcast_buffers": (bool,),
    "ddp_bucket_cap_mb": (int,),
    "ddp_static_graph": (bool,),
    "ddp_timeout": (int,),
    "eval_delay": (float,),
    "full_determinism": (bool,),
    "include_num_input_tokens_seen": (bool,),
    "liger_kernel_config": (dict,),
    "lr_scheduler_kwargs": (dict,),
    "optim_args": (str,),
    "optim_target_modules": (str, list),
    "pad_to_multiple_of": (int,),
    "tf32": (bool,),
    "torch_compile": (bool,),
    "torch_compile_backend": (str,),
    "torch_compile_mode": (str,),
    "torch_empty_cache_steps": (int,),
    "train_sampling_strategy": (str,),
    "use_liger_kernel": (bool,),
}
"""Arguments that are passed on as they are, and the types of their values."""

NESTED: dict[str, dict[str, tuple[type, ...]]] = {
    "activation_checkpointing_kwargs": {
        "every_n_layers": (int,),
        "offload": (bool,),
        "use_reentrant": (bool,),
    },
    "liger_kernel_config": dict.fromkeys(("cross_entropy", "geglu", "rms_norm", "rope"), (bool,)),
}
"""Arguments that are keys and values themselves, and the keys with their types; a schedule's own its library
tells."""

ABOVE_ZERO = frozenset(
    (
        "dataloader_prefetch_factor",
        "ddp_bucket_cap_mb",
        "ddp_timeout",
        "every_n_layers",
        "pad_to_multiple_of",
        "torch_empty_cache_steps",
    )
)
"""Numbers that 0 or less makes nonsense of; the libraries find out in the middle of a run, if at all."""

CHOICES: dict[str, tuple[str, ...]] = {"train_sampling_strategy": ("random", "sequential")}
"""Values of an argument; by length, rows are drawn in an order that a resumed run does not find again."""

NEEDS: dict[str, tuple[str, str]] = {
    "activation_checkpointing_kwargs": ("gradient_checkpointing", "trainer.gradient_checkpointing=true"),
    "eval_delay": ("eval_steps", "trainer.eval_steps"),
    "liger_kernel_config": ("use_liger_kernel", "trainer.extra.use_liger_kernel=true"),
}
"""Arguments that nothing reads without another one: its name, and what to write."""
