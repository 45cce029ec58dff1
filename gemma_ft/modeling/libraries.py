"""What is set right in the libraries we call: the one place where their own behaviour is changed.

Each has the reason and what would make it needless.
"""

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

from gemma_ft.modeling.imports import seldom_collected

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@seldom_collected()
def quiet_libraries() -> None:
    """Switch off telemetry, progress bars and notes that no user can act on; call it before a model loads."""
    import datasets
    import huggingface_hub.constants
    import transformers

    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # the variable is read at import only
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    quiet_bitsandbytes()
    # peft 0.21 reads a name that transformers 5.23 has renamed; needless once peft reads the new one
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
    )
    logging.getLogger("transformers.training_args").addFilter(_says_what_a_user_can_act_on)
    logging.getLogger("transformers.trainer_utils").addFilter(_says_what_a_user_can_act_on)


def _says_what_a_user_can_act_on(record: logging.LogRecord) -> bool:
    # a Gemma 3 chat tokenizer ends with <end_of_turn>, its config with <eos>; our export lists both.
    # Saving or logging at other steps than before is allowed, and what is configured now is what holds.
    # FSDP's own recomputing, which transformers then advises, loses adapters.
    quiet = (
        "has new PAD/BOS/EOS tokens",
        "do not match the ones in the `trainer_state.json`",
        "prefer `fsdp_config",
    )
    return not any(words in str(record.msg) for words in quiet)


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes 0.50 from fetching compiled code from the hub when it is imported, and from chatter.

    On processors with AVX512-BF16 it asks the hub for a kernel where the `kernels` package is installed, and
    warns where it is not. Needless once it asks only when told to. Call it before the import.
    """
    if "kernels" not in sys.modules:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # int8 casts its inputs to fp16 by design, and bitsandbytes says so at every layer of every step
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def keep_4bit_weights_as_they_are(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights when a model is evaluated on a CPU.

    On processors with AVX512-BF16 the first forward pass in evaluation mode rounds the scales of the weights
    to bf16 for good and routes every later pass, training included, through an operator without a gradient:
    evaluating once would cripple the training that follows. Needless once the layer unpacks itself to train.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
