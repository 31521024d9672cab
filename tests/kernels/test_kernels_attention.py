"""Paged attention against plain torch in float64.

The cache is poisoned: every slot that is not a key of a session, and every page of no session, holds NaN; entries of
the page table behind a session's last page are out of range.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from helpers.kernel_cases import (
    CACHE_DTYPES,
    COMPUTE_CAPABILITY,
    HAS_GPU,
    Random,
    agrees,
    int32,
    poisoned,
)

from jat_engine.kernels import attention, quantized_attention
from jat_engine.kernels.launch import PAGE_SIZE
from jat_engine.kernels.splits import Splits

pytestmark = [pytest.mark.gpu] if HAS_GPU else []


@dataclass
class Case:
    """Sessions, each given as (context, new tokens, start offset), and their cache."""

    sessions: list[tuple[int, int, int]]
    heads: int
    head_dim: int
    cache: torch.dtype
    extra_rows: int = 2

    def __post_init__(self) -> None:
        self.random = Random(sum(context for context, _, _ in self.sessions))
        self.rows = sum(count for _, count, _ in self.sessions) + self.extra_rows
        self.used = self.rows - self.extra_rows
        lengths = [offset + context + count if count else 0 for context, count, offset in self.sessions]
        num_pages = [-(-length // PAGE_SIZE) for length in lengths]
        pages = self.random.permutation(sum(num_pages) + 2)
        self.page_table = int32(*[2**30] * (len(lengths) * (max(num_pages) + 1))).view(len(lengths), -1)
        self.kv_layer = poisoned(len(pages), 2, self.heads, PAGE_SIZE, self.head_dim, dtype=self.cache)
        for session, ((_, _, offset), length) in enumerate(zip(self.sessions, lengths, strict=True)):
            first = sum(num_pages[:session])
            self.page_table[session, : num_pages[session]] = pages[first : first + num_pages[session]]
            for slot in range(offset, length):
                page = self.page_table[session, slot // PAGE_SIZE]
                key_value = self.random.normal(2, self.heads, self.head_dim, scale=self.head_dim**-0.25)
                self.kv_layer[page, :, :, slot % PAGE_SIZE] = key_value.to(self.cache)
        counts = torch.tensor([0, *(count for _, count, _ in self.sessions)])
        self.query_start = int32(*counts.cumsum(0).tolist())
        self.context_lens = int32(*[context if count else 10**6 for context, count, _ in self.sessions])
        self.start_offsets = int32(*[offset for *_, offset in self.sessions])
        self.q = self.random.normal(self.rows, self.heads * self.head_dim, scale=2 * self.head_dim**-0.25)
        self.max_queries = max(count for _, count, _ in self.sessions)

    @property
    def plan(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.page_table, self.query_start, self.context_lens, self.start_offsets

    def splits(self, count: int) -> Splits | None:
        if count == 1:
            return None
        shape = (count, self.rows, self.heads)
        arrivals = int32(*[0] * (len(self.sessions) * self.heads))
        return Splits(poisoned(*shape, self.head_dim), poisoned(*shape), poisoned(*shape), arrivals)

    def run(self, window: int) -> Tensor:
        out = poisoned(*self.q.shape, dtype=self.cache)
        attention.paged_attention(
            self.q, self.kv_layer, *self.plan, window, out, max_queries=self.max_queries
        )  # fmt: skip
        return out

    def expect(self, got: Tensor, window: int) -> None:
        assert got[self.used :].isnan().all()
        agrees(got[: self.used], self.reference, self.q, self.kv_layer, *self.plan, window, dtype=self.cache)

    def reference(self, *arguments: Tensor | int) -> Tensor:
        return attention.paged_attention_reference(*arguments)[: self.used]


# Empty caches, page edges, whole blocks of keys, padding sessions first, in the middle and last.
SESSIONS = [
    (0, 0, 0),
    (0, 1, 0),
    (0, 3, 15),
    (13, 3, 0),
    (0, 0, 3),
    (15, 1, 0),
    (15, 2, 1),
    (62, 3, 0),
    (125, 3, 7),
    (0, 0, 0),
]


@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize("window", [1, 4, 17, 66, 1024])
def test_sessions_and_windows(cache: torch.dtype, window: int) -> None:
    """Windows of one key, within a page, over a page edge, and over the edge of a block of 64 keys."""
    case = Case(SESSIONS, heads=2, head_dim=16, cache=cache)
    case.expect(case.run(window), window)


@pytest.mark.parametrize(("count", "heads"), [(5, 1), (21, 12)])
def test_many_sessions(count: int, heads: int) -> None:
    """Sessions of many lengths, starts and numbers of new tokens, and padding behind them, as in a bucket.

    The more programs, the fewer warps each has.
    """
    sessions = [(index * 37 % 120, 1 + index % 3, index * 7 % 16) for index in range(count)]
    case = Case(sessions + [(0, 0, 0)] * (count // 3), heads=heads, head_dim=16, cache=torch.float32)
    case.expect(case.run(70), 70)


@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", [24, 64, 80, 128])
def test_head_dimensions(cache: torch.dtype, head_dim: int) -> None:
    case = Case([(70, 3, 5), (0, 1, 0)], heads=3, head_dim=head_dim, cache=cache)
    case.expect(case.run(1024), 1024)


@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize("window", [3, 512])
def test_most_queries(cache: torch.dtype, window: int) -> None:
    """As many new tokens as a session may have, in a step with a session of one token."""
    case = Case([(0, 4, 3), (9, 1, 0), (77, 4, 0)], heads=1, head_dim=16, cache=cache)
    case.expect(case.run(window), window)


# Of prompts: one token, odd numbers, page edges and the numbers next to them, whole blocks of queries; the beginning of
# a text, later parts of it, and tokens of texts that are written meanwhile.
PROMPTS = [
    (0, 1, 0),
    (0, 0, 0),
    (0, 64, 0),
    (0, 15, 0),
    (16, 16, 0),
    (47, 17, 0),
    (64, 64, 0),
    (130, 37, 3),
    (125, 1, 0),
    (0, 0, 0),
]


@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize("window", [1, 17, 64, 1024])
def test_prompts_and_windows(cache: torch.dtype, window: int) -> None:
    """Windows of one key, over a page edge, of as many tokens as a block, and of all."""
    case = Case(PROMPTS, heads=2, head_dim=16, cache=cache)
    case.expect(case.run(window), window)


@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize("head_dim", [24, 64, 80, 128])
def test_head_dimensions_of_prompts(cache: torch.dtype, head_dim: int) -> None:
    case = Case([(70, 33, 0), (0, 5, 0)], heads=3, head_dim=head_dim, cache=cache)
    case.expect(case.run(80), 80)


def test_keys_behind_the_window_of_a_prompt_are_not_read() -> None:
    case = Case([(150, 40, 0)], heads=1, head_dim=16, cache=torch.float32, extra_rows=0)
    window = 30
    expected = case.reference(case.q, case.kv_layer, *case.plan, window)
    for slot in range(150 - window + 1):
        case.kv_layer[case.page_table[0, slot // PAGE_SIZE], :, :, slot % PAGE_SIZE] = torch.nan
    torch.testing.assert_close(case.run(window), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_in_parts() -> None:
    """Its parts, as sessions with the same pages, give what the whole prompt gives."""
    case = Case([(20, 60, 0)], heads=2, head_dim=16, cache=torch.float32, extra_rows=0)
    whole = case.run(48)
    case.query_start, case.context_lens = int32(0, 31, 60), int32(20, 51)
    case.page_table, case.start_offsets = case.page_table.repeat(2, 1), int32(0, 0)
    torch.testing.assert_close(case.run(48), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", [30, 31, 32, 33])
def test_window_just_reached(context: int) -> None:
    """With a window of 32 the key that leaves it has no weight, however large its score."""
    case = Case([(context, 2, 0)], heads=1, head_dim=16, cache=torch.float32)
    first = case.page_table[0, 0]
    case.kv_layer[first, 0, 0, 0] = 100 * case.q[0]
    case.expect(case.run(32), 32)


def test_keys_behind_the_window_are_not_read() -> None:
    """Every slot before the first visible one holds NaN, which masking after a load would not remove."""
    case = Case([(150, 3, 5)], heads=1, head_dim=16, cache=torch.float32, extra_rows=0)
    window = 30
    expected = case.reference(case.q, case.kv_layer, *case.plan, window)
    first_slot = 5 + 150 - window + 1
    for slot in range(first_slot):
        case.kv_layer[case.page_table[0, slot // PAGE_SIZE], :, :, slot % PAGE_SIZE] = torch.nan
    torch.testing.assert_close(case.run(window), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(COMPUTE_CAPABILITY < (8, 9), reason="float8 needs sm_89")
@pytest.mark.parametrize(
    ("window", "splits", "head_dim"),
    [(1, 1, 16), (17, 2, 16), (1024, 1, 16), (1024, 3, 16), (66, 1, 64), (1024, 2, 80), (1024, 1, 128)],
)
def test_quantized_keys_and_values(window: int, splits: int, head_dim: int) -> None:
    """New tokens are quantised as the reference does, bit for bit, and attention is to the quantised ones."""
    case = Case(SESSIONS, heads=2, head_dim=head_dim, cache=torch.float32)
    sizes = 10.0 ** (torch.arange(case.kv_layer[..., 0].numel(), device=case.q.device) % 5 - 3)
    case.kv_layer *= sizes.view(case.kv_layer.shape[:-1])[..., None]  # scales differ from token to token
    case.kv_layer[:, 0].clamp_(-1, 1)
    holds_no_token = case.kv_layer[..., 0].isnan()
    before = case.kv_layer.nan_to_num(9.0)
    pages, scales = quantized_attention.quantize_pages(before)
    expected = quantized_attention.dequantize_pages(pages, scales)
    scales[holds_no_token.transpose(1, 2)] = 255  # as a token left it that is no longer there

    # The new tokens' slots hold garbage at first.
    new_kv = poisoned(-(-case.rows // PAGE_SIZE), 2, 2, PAGE_SIZE, head_dim)
    right = pages.clone(), scales.clone()
    row = 0
    for session, (context, count, offset) in enumerate(case.sessions):
        for slot in range(offset + context, offset + context + count):
            page, place = case.page_table[session, slot // PAGE_SIZE], slot % PAGE_SIZE
            new_kv[row // PAGE_SIZE, :, :, row % PAGE_SIZE] = before[page, :, :, place]
            raw = pages.view(torch.uint8)[page]
            raw[0, :, place] = 0x7F
            raw[1].view(2, head_dim, PAGE_SIZE)[:, :, place] = 0x7F
            scales[page, :, :, place] = 255
            row += 1

    out, memory = poisoned(*case.q.shape), case.splits(splits)
    attention.paged_attention(
        case.q, pages, *case.plan, window, out, max_queries=3, scales=scales, new_kv=new_kv, splits=memory
    )
    assert memory is None or not memory.arrivals.any()  # ready for the next layer
    assert torch.equal(pages.view(torch.uint8), right[0].view(torch.uint8))
    assert torch.equal(scales, right[1])
    exact = case.reference(case.q.double(), expected.double(), *case.plan, window)
    rounded = case.reference(case.q.half().double(), expected.double(), *case.plan, window)
    bound = 2 * (rounded - exact).abs().max() + 1e-3 * exact.abs().max()  # of q, and of probabilities in float16
    assert float((out[: case.used] - exact).abs().max()) <= float(bound)


@pytest.mark.parametrize("head_dim", [16, 64])
def test_pages_of_quantized_numbers(head_dim: int) -> None:
    """Pages hold a value's numbers 16 tokens apart, and give back what was quantised."""
    kv = Random(0).normal(3, 2, 5, PAGE_SIZE, head_dim)
    pages, scales = quantized_attention.quantize_pages(kv)
    numbers, exponents = quantized_attention.quantize_reference(kv)
    assert torch.equal(pages[2, 1, 4].flatten()[7::PAGE_SIZE].float(), numbers[2, 1, 4, 7].float())
    assert torch.equal(pages[:, 0].float(), numbers[:, 0].float())
    assert scales[2, 4, 1, 7] == exponents[2, 1, 4, 7]
    found = quantized_attention.dequantize_pages(pages, scales)
    assert torch.equal(found, numbers.float() * torch.exp2(exponents.float() - 127)[..., None])


@pytest.mark.skipif(COMPUTE_CAPABILITY < (8, 9), reason="float8 needs sm_89")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_numbers_that_are_not_finite_survive_quantisation(value: float) -> None:
    """Neither a key nor a value that overflowed becomes a finite result."""
    for part in (0, 1):
        case = Case([(0, 2, 0)], heads=1, head_dim=16, cache=torch.float32, extra_rows=0)
        pages, scales = case.kv_layer.nan_to_num(0.0).to(torch.float8_e4m3fn), int32(0).to(torch.uint8)
        scales = scales.new_full((len(pages), 1, 2, PAGE_SIZE), 127)
        new_kv = case.random.normal(1, 2, 1, PAGE_SIZE, 16)
        new_kv[0, part, 0, 0, 3] = value
        out = torch.zeros_like(case.q)
        attention.paged_attention(case.q, pages, *case.plan, 8, out, max_queries=2, scales=scales, new_kv=new_kv)
        assert out.isnan().any(1).all()


def test_scores_of_any_size() -> None:
    """Scores of 1e4 do not overflow, nor does a whole block of keys far below the earlier ones."""
    case = Case([(200, 2, 0)], heads=2, head_dim=16, cache=torch.float32)
    case.q *= 3000
    case.expect(case.run(1024), 1024)


def test_result_ignores_other_sessions() -> None:
    """A session alone and with others on the same pages gives bitwise equal results."""
    case = Case([(100, 3, 4), (30, 2, 9)], heads=2, head_dim=16, cache=torch.float32, extra_rows=0)
    together = case.run(48)
    case.query_start = int32(0, 3, 3)
    alone = case.run(48)
    assert torch.equal(together[:3], alone[:3])


def test_wrapper_names_what_is_wrong() -> None:
    case = Case([(5, 1, 0)], heads=1, head_dim=16, cache=torch.float32)
    out = torch.zeros_like(case.q)
    arguments = (case.q, case.kv_layer, *case.plan)
    with pytest.raises(ValueError, match="splits: expected None for torch"):
        attention.paged_attention(*arguments, 8, out, max_queries=1, splits=case.splits(2))
    with pytest.raises(ValueError, match="window: expected at least 1, got 0"):
        attention.paged_attention(*arguments, 0, out, max_queries=1)
    with pytest.raises(ValueError, match=r"max_queries: expected at most 64 for torch\.float32 pages, got 65"):
        attention.paged_attention(*arguments, 8, out, max_queries=65)
    memory = case.splits(2)
    assert memory is not None
    with pytest.raises(ValueError, match=r"arrivals: expected shape \(1,\), got \(2,\)"):
        memory._replace(arrivals=int32(0, 0)).check(case.rows, 1, 1, 16, case.q.device)
    with pytest.raises(ValueError, match="page_table: expected int32, got int64"):
        attention.paged_attention(*arguments[:2], case.page_table.long(), *arguments[3:], 8, out, max_queries=1)
    with pytest.raises(ValueError, match="kv_layer: expected head_dim 16 to 128, got 8"):
        attention.paged_attention(
            case.q[:, :8].contiguous(), case.kv_layer[..., :8].contiguous(), *case.plan, 8, out, max_queries=1
        )
