"""TRL's trainer with the run folder's checkpoints and trainable weights in fp32."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState
from trl import SFTTrainer

from gemma_ft.modeling.weights import check_weights, publish_folder
from gemma_ft.runs import RunFolder

if TYPE_CHECKING:
    from transformers.trainer_utils import EvalLoopOutput


class RunTrainer(SFTTrainer):  # type: ignore[misc]
    """Train as TRL does; checkpoints appear whole, under the run folder's names."""

    def __init__(self, *, run: RunFolder, checkpoints_kept: int | None, **arguments: Any) -> None:
        """Build TRL's trainer and give the trainable weights their fp32 values back.

        TRL rounds the adapters of a quantised model to bf16. In fp32 they resume exactly (a loaded checkpoint
        is fp32), and fp16's gradient scaler accepts them.

        Args:
            run: Where checkpoints go.
            checkpoints_kept: How many stay; None keeps all.
            arguments: SFTTrainer's own.
        """
        self.run = run
        self.checkpoints_kept = checkpoints_kept
        self._scored: list[torch.Tensor] = []
        quantised = getattr(arguments["model"], "is_quantized", False)
        trainable = _trainable(arguments["model"]).items() if quantised else ()
        exact = {name: value.detach().clone() for name, value in trainable}
        super().__init__(**arguments)
        for name, value in exact.items():
            self.model.get_parameter(name).data = value.float()

    def go_on(self, checkpoint: Path) -> None:
        """Train on from a checkpoint; where it is the run's last, only take its weights."""
        state = read_state(checkpoint)
        self._total_train_tokens = last_logged(state, "num_tokens")  # TRL would count from 0 again
        if not state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self.args.load_best_model_at_end and state.best_global_step:
            state.best_model_checkpoint = str(self.run.step_folder(state.best_global_step))
            self._load_best_model()

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> "EvalLoopOutput":
        """Evaluate as TRL does, with the loss averaged over tokens, however rows are batched or packed."""
        self._scored = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, tokens = self.accelerator.reduce(
            torch.stack(self._scored).sum(dim=0), reduction="sum"
        ).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(tokens, 1)
        return output

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Score a batch, and keep its summed loss and its number of learned tokens."""
        self._mask_repeats(inputs["labels"])
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        result = super().prediction_step(model, inputs, *args, **kwargs)
        loss = result[0].double()
        self._scored.append(torch.stack([loss * tokens.to(loss.device), tokens.to(loss)]))
        return result

    def _mask_repeats(self, labels_BL: torch.Tensor) -> None:
        """Leave out of the loss the rows that accelerate repeats to give every process a whole last batch."""
        batches = self.accelerator.gradient_state
        if self.accelerator.num_processes > 1 and batches.end_of_dataloader and batches.remainder > 0:
            own = batches.remainder - self.accelerator.process_index * len(labels_BL)
            labels_BL[max(own, 0) :] = -100

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the model card to the export."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        super()._save_checkpoint(model, trial)
        if best := self.state.best_global_step:  # transformers knows it by the name it is written under
            self.state.best_model_checkpoint = str(self.run.step_folder(best))
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            written = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            self.state.save_to_json(str(written / "trainer_state.json"))
            check_weights(written)
            publish_folder(written, self.run.step_folder(self.state.global_step))
            self._rotate()
        self.accelerator.wait_for_everyone()

    def _rotate(self) -> None:
        if self.checkpoints_kept is None:
            return
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        for step in self.run.steps()[: -self.checkpoints_kept]:
            if step != best:
                shutil.rmtree(self.run.step_folder(step))


def read_state(checkpoint: Path) -> TrainerState:
    """Read where a run was when it saved a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def last_logged(state: TrainerState, key: str) -> int:
    """Return the last logged value of a count, 0 if there is none."""
    return int(next((log[key] for log in reversed(state.log_history) if key in log), 0))


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
