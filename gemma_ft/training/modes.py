"""Training and evaluation mode, set where it is another."""

import torch


def switch_seldom(model: torch.nn.Module) -> None:
    """Have `model.train()` do nothing where every module trains already.

    transformers 5.23 calls it in every micro-batch, and setting thousands of attributes again takes
    milliseconds that a GPU waits for. Needless once it asks first.
    """
    modules, train = list(model.modules()), model.train

    def set_mode(mode: bool = True) -> torch.nn.Module:
        return model if mode and all(module.training for module in modules) else train(mode)

    model.train = set_mode  # type: ignore[method-assign]
