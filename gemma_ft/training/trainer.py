"""TRL's trainer with the run folder's checkpoints, exact resume and trainable weights in fp32."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerState

from gemma_ft.errors import Interrupted
from gemma_ft.runs import RunFolder
from gemma_ft.training.agreement import agreed_stop
from gemma_ft.training.checkpoints import check_form, publish_checkpoint, rotate, torn_because
from gemma_ft.training.connections import any_process
from gemma_ft.training.guard import StepGuard, weights_of
from gemma_ft.training.interval import Interval
from gemma_ft.training.modes import switch_seldom
from gemma_ft.training.schedule import stretch_schedule
from gemma_ft.training.sharded_trainer import ShardedTrainer
from gemma_ft.training.sharding import whole

logger = logging.getLogger("gemma_ft")


class RunTrainer(ShardedTrainer):
    """Train as TRL does; checkpoints appear whole, under the run folder's names."""

    def __init__(
        self, *, run: RunFolder, guard: StepGuard, checkpoints_kept: int | None, **arguments: Any
    ) -> None:
        """Build TRL's trainer and give the trainable weights their fp32 values back.

        TRL rounds the adapters of a quantised model to bf16. In fp32 they resume exactly (a loaded checkpoint
        is fp32), and fp16's gradient scaler accepts them.

        Args:
            run: Where checkpoints go.
            guard: Looks at every step before it is taken.
            checkpoints_kept: How many stay; None keeps all.
            arguments: Those of a ShardedTrainer.
        """
        self.run = run
        self.guard = guard
        self.checkpoints_kept = checkpoints_kept
        self._saved: int | None = None
        self._flos_of_token = 0
        self._resumes: Path | None = None
        self._extends = False
        quantised = getattr(arguments["model"], "is_quantized", False)
        trainable = _trainable(arguments["model"]).items() if quantised else ()
        exact = {name: value.detach().clone() for name, value in trainable}
        super().__init__(**arguments)
        for name, value in exact.items():
            self.model.get_parameter(name).data = value.float()
        switch_seldom(self.model)

    def go_on(self, checkpoint: Path, *, extends: bool = False) -> None:
        """Train on from a checkpoint; where it is the run's last, only take its weights.

        Args:
            checkpoint: A whole one.
            extends: Whether a run that had ended trains more steps. Where the checkpoint was made for fewer
                steps, it does in any case: an extension may itself be cut before its first checkpoint.

        Raises:
            Interrupted: A process was asked to stop; in all of them, with the last step saved.
        """
        self.args.eval_on_start = False
        check_form(checkpoint, sharded=self.layout.sharded)
        state = read_state(checkpoint)
        self._extends = extends or self._total_steps() > state.max_steps
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"] and not self._extends:
            self._take_last(checkpoint, state)
            return
        self._resumes = checkpoint
        self.train(resume_from_checkpoint=str(checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the model card to the export."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load batches as transformers does, in processes that Ctrl-C does not reach."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if loader.num_workers:
            reader = getattr(loader, "base_dataloader", loader)  # what accelerate wraps starts the processes
            reader.worker_init_fn = partial(_begin_apart, reader.worker_init_fn)
        return loader

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Learn from a micro-batch, and have the guard look at it."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.guard.saw(inputs, loss)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a micro-batch; the weights are counted once, not each time."""
        tokens = inputs["input_ids"].numel()
        self._flos_of_token = self._flos_of_token or super().floating_point_ops(inputs) // tokens
        return int(tokens * self._flos_of_token)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Know the gradients' norm, which transformers does right before every optimizer step."""
        norm = whole(super()._get_grad_norm(model, grad_norm))
        self.guard.check(norm, weights_of(model), self.state.global_step + 1, self.accelerator.scaler)
        return norm

    def _total_steps(self) -> int:
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def _take_last(self, checkpoint: Path, state: TrainerState) -> None:
        """Stand where training ended, with the evaluation that a stop may have cut."""
        if self.layout.sharded:
            self.shard()
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        Interval.read(checkpoint).restore(self)
        self._find_best()
        if self.evaluation_is_due():
            self._determine_best_metric(self.evaluate(), trial=None)
            self._name_best()
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        trained: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # a checkpoint would bring the rhythm it was made with
        if self._resumes is not None and self.args.include_num_input_tokens_seen == "no":
            self.state.num_input_tokens_seen = Interval.read(self._resumes).tokens  # what a speed counts from
        self._find_best()
        for callback in self.callback_handler.callbacks:
            if self._extends and isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0
        return trained

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._extends:
            before, after = stretch_schedule(self.lr_scheduler)
            if before != after:
                logger.info(
                    "extended to %d steps: the %s schedule spans all of them, so the learning rate at step "
                    "%d goes from %.3g to %.3g",
                    self.state.max_steps,
                    self.args.lr_scheduler_type.value,
                    self.state.global_step,
                    before,
                    after,
                )

    def _run_epoch(self, *, model: Any, trial: Any, ignore_keys_for_eval: Any, **rest: Any) -> None:
        """Run an epoch; after a resume, first take up what the checkpoint was in the middle of."""
        if self._resumes is not None:
            Interval.read(self._resumes).restore(self)
            self._resumes = None
            if self.evaluation_is_due():
                metrics = self._evaluate(trial, ignore_keys_for_eval)
                self._determine_best_metric(metrics, trial)
                self._name_best()
            if self.control.should_training_stop:
                return
        super()._run_epoch(model=model, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval, **rest)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do what is due after a step; where a process was asked to stop, save and stop.

        An evaluation that is due or under way is left to the resume.
        """
        if (stop := agreed_stop()) is None:
            takes_time = self.control.should_evaluate or self.control.should_save
            with suppress(Interrupted):  # raised between two batches of the evaluation
                super()._maybe_log_save_evaluate(*args, **kwargs)
            if not takes_time or (stop := agreed_stop()) is None:
                return
        self.control.should_evaluate = False
        self.control.should_save = self._saved != self.state.global_step
        super()._maybe_log_save_evaluate(*args, **kwargs)
        raise stop

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        if self.args.should_save:
            self.run.check_lock()
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        interval = Interval.gather(self)
        self._name_best()  # transformers knows it by the name it is written under
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            written = Path(self.args.output_dir) / f"checkpoint-{step}"
            self.state.save_to_json(str(written / "trainer_state.json"))
            interval.write(written)
            publish_checkpoint(written, self.run, step)
            best = self.state.best_global_step if self.args.load_best_model_at_end else None
            rotate(self.run, kept=self.checkpoints_kept, saved=step, best=best)
        self.accelerator.wait_for_everyone()
        self._saved = step

    def _name_best(self) -> None:
        if best := self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.run.step_folder(best))

    def _find_best(self) -> None:
        """Name the best checkpoint where it is now; one that is lost cannot be what the run ends with."""
        self._name_best()
        best = self.state.best_global_step
        if not best or not self.args.load_best_model_at_end:
            return
        reason = torn_because(self.run.step_folder(best)) if self.args.should_save else None
        if any_process(reason is not None):
            if self.args.should_save:
                logger.warning(
                    "the best checkpoint, of step %d, is lost (%s): the best of what follows counts",
                    best,
                    reason,
                )
            state = self.state
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def _begin_apart(begin: Callable[[int], None] | None, worker: int) -> None:
    """Begin a loading process in a group of its own: the one it loads for still has a step to end."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if begin is not None:
        begin(worker)


def read_state(checkpoint: Path) -> TrainerState:
    """Read where a run was when it saved a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
