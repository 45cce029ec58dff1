"""The settings of schedules that transformers hands on to a class unread."""

import pytest
from trl import SFTConfig

from gemma_ft.errors import ConfigError
from gemma_ft.training.optimization import check_optimization


def arguments_of(folder, schedule, **settings):
    return SFTConfig(
        output_dir=str(folder),
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=settings,
        eval_strategy="steps",
        use_cpu=True,
        bf16=False,
    )


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_the_settings_of_a_schedule_that_follows_the_held_out_loss_are_its_class_s_own(tmp_path, schedule):
    check_optimization(arguments_of(tmp_path, schedule, patience=0, factor=0.5))
    with pytest.raises(ConfigError, match=r"patienc=0 is nothing that .* reads\. Did you mean patience\?$"):
        check_optimization(arguments_of(tmp_path, schedule, patienc=0))
