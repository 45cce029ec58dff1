"""What the configuration knows of the libraries, held against the libraries."""

from gemma_ft.config.library_names import optimizer_names, scheduler_names


def test_names_read_from_transformers_source_are_its_own():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert optimizer_names() == tuple(item.value for item in OptimizerNames)
    assert scheduler_names() == tuple(item.value for item in SchedulerType)
