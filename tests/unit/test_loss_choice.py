"""Which loss head is taken: by measurement where there is a choice, and only one whose numbers are right."""

import pytest
import torch

from gemma_ft.config.schema import RunConfig
from gemma_ft.config.trainer import LossHeadMethod, TrainerConfig
from gemma_ft.errors import ConfigError
from gemma_ft.training.loss import choice as choosing
from gemma_ft.training.loss.choice import Load, choose_head, compare_heads
from gemma_ft.training.loss.chunked import Scores
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.measuring import Bench

WORDS = 40_000
BIG = Load(words=WORDS, tokens=2048, dtype=torch.float32, device=torch.device("cpu"))
CHUNKED, TRL, TORCH = (LossHead(LossHeadMethod(name)) for name in ("chunked", "trl", "torch"))


def bench(*, words=WORDS, dtype=torch.float32, soft_cap=None, trains=False):
    weight_VH = torch.randn(words, 64, generator=torch.Generator().manual_seed(0)) * 0.05
    return Bench(weight_VH.to(dtype), trains=trains, dtype=dtype, soft_cap=soft_cap)


def never():
    raise AssertionError("nothing is to be measured")


def clocked(seconds):
    """Make a stand-in for the clock: seconds a token by chunk size, or by method."""

    def time(self, head, tokens):
        return seconds[head.chunk_size] if head.chunk_size in seconds else seconds[head.method.value]

    return time


def test_a_small_vocabulary_is_scored_at_once_without_measuring():
    load = Load(words=2048, tokens=512, dtype=torch.float32, device=torch.device("cpu"))
    choice = choose_head(TrainerConfig(), load, never)
    assert choice.head == LossHead(LossHeadMethod.chunked, 512)
    assert "small" in choice.reason


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({32: 5.0, 64: 3.0, 128: 2.1, 256: 2.0, 512: 2.0}, 128),
        ({32: 1.0, 64: 1.0, 128: 1.0, 256: 1.0, 512: 1.0}, 32),
        ({32: 5.0, 64: 4.0, 128: 3.0, 256: 2.0, 512: 1.0}, 512),
        ({32: 2.0, 64: 9.0, 128: 9.0, 256: 1.9, 512: 9.0}, 32),
    ],
)
def test_the_fewest_tokens_at_once_that_are_nearly_the_fastest_are_taken(monkeypatch, seconds, best):
    monkeypatch.setattr(Bench, "time", clocked(seconds))
    choice = choose_head(TrainerConfig(), BIG, bench)
    assert choice.head == LossHead(LossHeadMethod.chunked, best)
    assert [entry["chunk_size"] for entry in choice.measured] == [32, 64, 128, 256, 512]


def test_no_more_logits_are_tried_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(Bench, "time", lambda self, head, tokens: 1 / tokens)
    load = Load(words=256_000, tokens=8192, dtype=torch.float32, device=torch.device("cpu"))
    choice = choose_head(TrainerConfig(), load, bench)
    assert choice.head.chunk_size * 256_000 * 4 <= 128 * 2**20 < 2 * choice.head.chunk_size * 256_000 * 4


def test_what_is_asked_for_is_taken_unmeasured():
    assert choose_head(TrainerConfig(loss_chunk_size=96), BIG, never).head.chunk_size == 96
    asked = TrainerConfig(loss_head=LossHeadMethod.trl)
    assert choose_head(asked, BIG, never).head == TRL


def test_measuring_leaves_random_state_and_gradients_as_they_were():
    place = bench(trains=True)
    before = torch.get_rng_state()
    assert place.time(LossHead(LossHeadMethod.chunked, 64), 64) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert place.weight_VH.grad is None


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_true_heads_are_found_true(dtype, soft_cap):
    place = bench(dtype=dtype, soft_cap=soft_cap)
    assert place.find_fault(LossHead(LossHeadMethod.chunked, 16)) == ""
    assert place.find_fault(TRL) == ""


def test_a_wrong_value_and_a_wrong_gradient_are_found(monkeypatch):
    place = bench()
    right = LossHead.score

    def off(factor, offset):
        def score(self, *arguments):
            found = right(self, *arguments)
            return Scores(found.log_prob_sum * factor + offset, found.entropy, found.is_top1)

        return score

    monkeypatch.setattr(LossHead, "score", off(1.0, 1.0))
    assert place.find_fault(CHUNKED).startswith("its loss is 0.00")
    monkeypatch.setattr(LossHead, "score", lambda self, h, *rest: _leak(right(self, h, *rest), h))
    assert place.find_fault(CHUNKED).startswith("its gradient is")


def _leak(scores, hidden_NH):
    return Scores(
        scores.log_prob_sum + 0 * hidden_NH.sum() + hidden_NH.sum() - hidden_NH.sum().detach(), *[None] * 2
    )


def test_torchs_own_head_is_refused_where_its_bf16_value_is_wrong():
    """As in torch 2.13, where it is summed in bf16; a torch that mends it is taken."""
    place = bench(words=100_000, dtype=torch.bfloat16)
    fault = place.find_fault(TORCH)
    choice = compare_heads(place, [LossHead(LossHeadMethod.chunked, 32), TORCH], 32)
    if fault:
        assert choice.head.method is LossHeadMethod.chunked
        assert "torch is not: its loss is" in choice.reason
    else:
        assert all("fault" not in entry for entry in choice.measured)


def test_the_fastest_of_the_true_heads_is_taken(monkeypatch):
    monkeypatch.setattr(Bench, "time", clocked({"chunked": 3.0, "trl": 2.0, "torch": 1.0}))
    monkeypatch.setattr(
        Bench, "find_fault", lambda self, head: "its loss is 0.5 off" if head == TORCH else ""
    )
    choice = compare_heads(bench(), [CHUNKED, TRL, TORCH], 64)
    assert choice.head == TRL
    assert (
        choice.reason
        == "the fastest of 2 whose loss and gradient are true here; torch is not: its loss is 0.5 off"
    )
    assert {entry["head"]: entry.get("fault") for entry in choice.measured}["torch"] == "its loss is 0.5 off"


def test_a_head_that_does_not_run_is_passed_over(monkeypatch):
    def fails(self, head):
        if head == TRL:
            raise RuntimeError("no kernel image\nis available")
        return ""

    monkeypatch.setattr(Bench, "find_fault", fails)
    monkeypatch.setattr(Bench, "time", clocked({"chunked": 3.0}))
    choice = compare_heads(bench(), [CHUNKED, TRL], 64)
    assert choice.head == CHUNKED
    assert "trl is not: it does not run: RuntimeError: no kernel image" in choice.reason
    monkeypatch.setattr(Bench, "find_fault", lambda self, head: "its loss is 1 off")
    with pytest.raises(
        ConfigError, match=r"^trainer\.loss_head=auto finds no head whose loss is right here: chunked"
    ):
        compare_heads(bench(), [CHUNKED], 64)


def test_on_a_gpu_all_three_are_compared_and_on_a_cpu_ours_is_taken(monkeypatch):
    compared = []

    def note(place, heads, tokens, measured):
        compared.append([head.method.value for head in heads])
        return choosing.Choice(TRL, "stands in")

    monkeypatch.setattr(choosing, "compare_heads", note)
    monkeypatch.setattr(choosing, "_longest", lambda load: 64)
    monkeypatch.setattr(Bench, "time", clocked({32: 1.0, 64: 1.0}))
    gpu = Load(words=WORDS, tokens=2048, dtype=torch.bfloat16, device=torch.device("cuda"))
    capped = Load(words=WORDS, tokens=2048, dtype=torch.bfloat16, device=torch.device("cuda"), soft_cap=30.0)
    assert choose_head(TrainerConfig(), gpu, bench).head == TRL
    choose_head(TrainerConfig(), capped, bench)
    assert choose_head(TrainerConfig(), BIG, bench).head.method is LossHeadMethod.chunked
    assert compared == [["chunked", "trl", "torch"], ["chunked", "trl"]]


def test_torchs_head_is_refused_under_a_soft_cap_and_where_it_is_wrong(monkeypatch):
    asked = TrainerConfig(loss_head=LossHeadMethod.torch)
    capped = Load(words=WORDS, tokens=64, dtype=torch.float32, device=torch.device("cpu"), soft_cap=30.0)
    with pytest.raises(ConfigError, match=r"^trainer\.loss_head=torch does not know the soft cap of 30 that"):
        choose_head(asked, capped, never)
    monkeypatch.setattr(Bench, "find_fault", lambda self, head: "its loss is 0.5 off")
    with pytest.raises(
        ConfigError, match=r"^trainer\.loss_head=torch is wrong here: its loss is 0.5 off\. Use"
    ):
        choose_head(asked, BIG, bench)


def test_a_chunk_size_beside_another_head_is_refused():
    config = RunConfig(name="a", trainer=TrainerConfig(loss_head=LossHeadMethod.trl, loss_chunk_size=64))
    assert config.trainer.problems() == [
        "trainer.loss_chunk_size=64 has no effect with trainer.loss_head=trl. Leave one of the two out."
    ]
    assert (
        TrainerConfig(loss_chunk_size=0).problems()[0].startswith("trainer.loss_chunk_size=0 must be above 0")
    )
