"""InfoNCE against its formula, over two processes against one, and retrieval against counting by hand."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from raytraffic.environment.contrastive import gathered_info_nce, info_nce, retrieval
from raytraffic.environment.fusion import CrossAttentionFusion, weighted_sum
from tests.environment.test_encoder import mini

PAIRS, WORLD = 6, 2


def features(pairs: int, dimension: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (F.normalize(torch.randn(pairs, dimension, generator=generator).double(), dim=1) for _ in range(2))
    return images, texts


def test_info_nce_is_equation_8_term_by_term() -> None:
    (images, texts), tau = features(4), 0.3
    total = 0.0
    for i in range(4):
        to_texts = [math.exp(float(images[i] @ texts[j]) / tau) for j in range(4)]
        to_images = [math.exp(float(texts[i] @ images[j]) / tau) for j in range(4)]
        total -= (math.log(to_texts[i] / sum(to_texts)) + math.log(to_images[i] / sum(to_images))) / 4
    assert float(info_nce(images, texts, torch.tensor(1 / tau, dtype=torch.float64))) == pytest.approx(total, rel=1e-12)


def test_info_nce_of_features_that_tell_nothing_apart_is_that_of_guessing() -> None:
    same = torch.ones(7, 3).double() / math.sqrt(3)
    assert float(info_nce(same, same, torch.tensor(50.0))) == pytest.approx(2 * math.log(7))


def test_info_nce_of_orthogonal_pairs_has_a_closed_form() -> None:
    apart = torch.eye(5).double()
    assert float(info_nce(apart, apart, torch.tensor(3.0))) == pytest.approx(2 * math.log(1 + 4 * math.exp(-3.0)))


def test_the_gradient_of_info_nce_is_right_for_the_temperature_too() -> None:
    images, texts = (part.requires_grad_() for part in features(3))
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (images, texts, scale))


def inputs() -> tuple[Tensor, list[str]]:
    pixels = torch.randn(PAIRS, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    return pixels, [f"{number} schools and {number % 4} banks" for number in range(PAIRS)]


def _train_rank(rank: int, folder: str) -> None:
    """One process of WORLD: a step's loss and gradients on its share of the pairs."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    encoder = mini().double().train()
    wrapped = nn.parallel.DistributedDataParallel(encoder)
    pixels, texts = inputs()
    mine = slice(rank * PAIRS // WORLD, (rank + 1) * PAIRS // WORLD)
    loss = gathered_info_nce(*wrapped(pixels[mine], encoder.tokenise(texts[mine])))
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    if rank == 0:
        found = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
        safetensors.torch.save_file({**found, "loss": mean / WORLD}, Path(folder) / "found.safetensors")
    dist.destroy_process_group()


def test_loss_and_gradients_over_two_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    spawn(_train_rank, args=(str(tmp_path),), nprocs=WORLD)
    found = safetensors.torch.load_file(tmp_path / "found.safetensors")
    encoder = mini().double().train()
    pixels, texts = inputs()
    loss = info_nce(*encoder(pixels, encoder.tokenise(texts)))
    loss.backward()
    assert torch.allclose(found.pop("loss"), loss.detach(), rtol=1e-12)
    expected = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and bool(gradient.abs().max() > 0 or name.endswith("in_proj_bias")), name
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-13), name


def test_perfect_features_find_every_pair() -> None:
    apart = torch.eye(9)
    found = retrieval(apart, apart, [str(i) for i in range(9)])
    assert found.image_to_text == found.text_to_image == {1: 1.0, 5: 1.0}
    assert found.candidates == 9 and found.chance == {1: pytest.approx(1 / 9), 5: pytest.approx(5 / 9)}


def test_features_that_tell_nothing_apart_find_nothing() -> None:
    same = torch.ones(9, 4)
    found = retrieval(same, same, [str(i) for i in range(9)])
    assert found.image_to_text == found.text_to_image == {1: 0.0, 5: 0.0}


def test_pairs_of_one_caption_are_right_answers_to_each_other() -> None:
    images = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]]  # the first two are exchanged
    assert retrieval(images, texts, ["a", "b", "c", "d"], at=(1,)).image_to_text == {1: 0.5}
    found = retrieval(images, texts, ["a", "a", "c", "d"], at=(1,))
    assert found.image_to_text == found.text_to_image == {1: 1.0}
    assert found.chance[1] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)


@given(scores=st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=4, max_size=4), k=st.integers(1, 4))
def test_recall_is_what_counting_says(scores: list[list[int]], k: int) -> None:
    images, texts = torch.tensor(scores).double(), torch.eye(4).double()
    captions = ["a", "b", "c", "b"]
    hits = 0
    for i, row in enumerate(scores):
        best = max(score for score, caption in zip(row, captions, strict=True) if caption == captions[i])
        hits += sum(score >= best and caption != captions[i] for score, caption in zip(row, captions, strict=True)) < k
    assert retrieval(images, texts, captions, at=(k,)).image_to_text[k] == hits / 4


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_chance_is_the_share_of_blind_choices_that_hold_a_right_one(k: int) -> None:
    captions = ["a", "a", "b", "c", "a"]
    share = []
    for caption in captions:
        choices = list(itertools.combinations(captions, k))
        share.append(sum(caption in choice for choice in choices) / len(choices))
    assert retrieval(torch.eye(5), torch.eye(5), captions, at=(k,)).chance[k] == pytest.approx(sum(share) / 5)


def test_retrieval_among_fewer_than_two_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected as many, at least 2"):
        retrieval(torch.eye(1), torch.eye(1), ["a"])


def test_the_weighted_sum_is_equation_9_and_its_weights_can_be_learnt() -> None:
    image, text, alpha = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor(0.3, requires_grad=True)
    fused = weighted_sum(image, text, alpha, 0.7)
    assert torch.allclose(fused, torch.tensor([[0.3, 1.4]]))
    fused.sum().backward()  # type: ignore[no-untyped-call]
    assert alpha.grad is not None and float(alpha.grad) == 1.0


def fusion_inputs() -> tuple[CrossAttentionFusion, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    known = torch.tensor([[True, True, False, False, False], [True] * 5])
    return CrossAttentionFusion(6, 4, 8, heads=2), torch.randn(2, 3, 6), torch.randn(2, 5, 4), known


def test_cross_attention_reads_both_modalities_and_no_padding() -> None:
    fusion, image, text, known = fusion_inputs()
    fused = fusion(image, text, known)
    assert fused.shape == (2, 8)
    padding = torch.where(known[..., None], text, torch.full_like(text, 9.0))
    assert torch.allclose(fusion(image, padding, known), fused, atol=1e-6)
    assert torch.allclose(fusion(image[:1], text[:1, :2]), fused[:1], atol=1e-6)
    word = torch.where(known[..., None], text + torch.tensor([1.0, 0.0, 0.0, 0.0]), text)
    assert not torch.allclose(fusion(image, word, known), fused, atol=1e-3)
    assert not torch.allclose(fusion(image + torch.eye(6)[0], text, known), fused, atol=1e-3)


def test_cross_attention_depends_on_no_order_of_tokens() -> None:
    fusion, image, text, known = fusion_inputs()
    turned = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(fusion(image.flip(1), text[:, turned], known[:, turned]), fusion(image, text, known), atol=1e-6)


def test_cross_attention_trains_every_parameter() -> None:
    fusion, image, text, known = fusion_inputs()
    fusion(image, text, known).pow(3).sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in fusion.parameters())


def test_cross_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"dim: 10, expected a multiple of heads \(4\)"):
        CrossAttentionFusion(6, 4, 10)
