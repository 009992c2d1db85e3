"""The contract of a memory object stream: one suite over anyio's own, over `TokenStream` and over `open_stream`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio import CancelScope, ClosedResourceError, EndOfStream, WouldBlock, create_task_group, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream
from anyio.streams.tls import TLSAttribute
from conftest import ENDLESS, serving, until

from mullama import Model, SamplerParams, StreamConfig, TokenStream

pytestmark = pytest.mark.anyio

BUFFER = 4
KINDS = ["anyio", "anyio rendezvous", "TokenStream", "open_stream", "open_stream buffered"]
every_kind = pytest.mark.parametrize("kind", KINDS)
buffered_kinds = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("anyio rendezvous", "open_stream")]
)


@dataclass
class Subject:
    """A stream under test. It has no items before `start()`; then it yields `items`, and then it ends."""

    stream: Any
    items: list[int]
    start: Callable[[], None]

    async def receive(self) -> int:
        return plain(await self.stream.receive())

    def receive_nowait(self) -> int:
        return plain(self.stream.receive_nowait())

    def lies_ready(self) -> bool:
        """Whether `receive_nowait()` has an item."""
        statistics = self.stream.statistics()
        return statistics.current_buffer_used > 0 or getattr(statistics, "tasks_waiting_send", 0) > 0

    def is_full(self) -> bool:
        """Whether as many items as possible are ready."""
        statistics = self.stream.statistics()
        return self.lies_ready() and statistics.current_buffer_used == statistics.max_buffer_size

    async def rest(self) -> list[int]:
        return [plain(item) async for item in self.stream]


def plain(item: Any) -> int:
    """anyio's own stream has integers, the others tokens."""
    return getattr(item, "token_id", item)


@asynccontextmanager
async def opened(kind: str, model: Model, n_items: int = 6) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        if kind.startswith("anyio"):
            yield await anyios_own(stack, 0 if "rendezvous" in kind else BUFFER, n_items)
            return
        # There is one slot, occupied by an endless stream that nobody reads: until it is cancelled, the subject waits.
        context = await stack.enter_async_context(serving(model, n_ctx=512, n_seq_max=1))
        config = StreamConfig(
            max_tokens=n_items, params=SamplerParams.greedy(ignore_eos=True), buffer_size=BUFFER, timeout_ms=0
        )
        items = list((await context.generate("Once upon a time", config)).tokens)
        first = context.generate_stream("A dog", StreamConfig(max_tokens=None, params=ENDLESS, timeout_ms=0))
        await stack.enter_async_context(first)
        if kind == "TokenStream":
            stream: Any = context.generate_stream("Once upon a time", config)
            await stack.enter_async_context(stream)
        else:
            size = BUFFER if "buffered" in kind else 0
            stream = await stack.enter_async_context(
                context.open_stream("Once upon a time", config, max_buffer_size=size)
            )
        yield Subject(stream, items, first.cancel)


async def anyios_own(stack: AsyncExitStack, size: int, n_items: int) -> Subject:
    send, receive = anyio.create_memory_object_stream[int](size)
    started = anyio.Event()
    items = list(range(100, 100 + n_items))

    async def feed() -> None:
        async with send:
            await started.wait()
            with suppress(anyio.BrokenResourceError):  # nobody reads any more
                for item in items:
                    await send.send(item)

    tasks = await stack.enter_async_context(create_task_group())
    stack.callback(tasks.cancel_scope.cancel)
    await stack.enter_async_context(receive)
    tasks.start_soon(feed)
    return Subject(receive, items, started.set)


def closing_wakes_the_reader(kind: str) -> None:
    """anyio's stream does so since a certain version; before, its waiting reader kept waiting."""
    if kind != "TokenStream" and "_waiters" not in MemoryObjectReceiveStream.__dataclass_fields__:
        pytest.skip("this anyio does not wake the reader of a stream that is closed")


# ---------------------------------------------------------------------------------------------------------- items, end


@every_kind
async def test_items_come_in_order_and_then_the_end_again_and_again(kind: str, model: Model) -> None:
    async with opened(kind, model, 20) as subject:
        subject.start()
        assert [await subject.receive() for _ in subject.items] == subject.items
        for _ in range(2):
            with pytest.raises(EndOfStream):
                await subject.receive()
            with pytest.raises(EndOfStream):
                subject.receive_nowait()


@every_kind
async def test_async_for_gives_every_item_and_stops(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        assert await subject.rest() == subject.items
        assert await subject.rest() == []


@every_kind
async def test_async_for_can_be_left_and_resumed(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        async for item in subject.stream:
            assert plain(item) == subject.items[0]
            break
        assert await subject.rest() == subject.items[1:]


@buffered_kinds
async def test_what_was_buffered_is_delivered_after_the_other_end_is_done(kind: str, model: Model) -> None:
    async with opened(kind, model, BUFFER) as subject:
        subject.start()
        await until(
            lambda: (
                subject.stream.is_finished()
                if kind == "TokenStream"
                else not subject.stream.statistics().open_send_streams
            )
        )
        assert [subject.receive_nowait() for _ in subject.items] == subject.items
        with pytest.raises(EndOfStream):
            subject.receive_nowait()


@every_kind
async def test_receive_nowait(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        with pytest.raises(WouldBlock):
            subject.receive_nowait()
        subject.start()
        for item in subject.items:
            await until(subject.lies_ready)
            assert subject.receive_nowait() == item


@every_kind
async def test_a_reader_that_waits_gets_what_comes(kind: str, model: Model) -> None:
    got: list[int] = []

    async def read() -> None:
        got.append(await subject.receive())

    async with opened(kind, model) as subject, create_task_group() as tasks:
        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        assert got == []
        subject.start()
        await until(lambda: got)
        got += await subject.rest()
        assert got == subject.items


# ---------------------------------------------------------------------------------------------------------- checkpoints


@every_kind
async def test_receive_lets_others_run_also_when_items_lie_ready(kind: str, model: Model) -> None:
    turns = 0

    async def sibling() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with opened(kind, model) as subject, create_task_group() as tasks:
        subject.start()
        await until(subject.is_full)
        tasks.start_soon(sibling)
        await checkpoint()
        before = turns
        for _ in range(BUFFER):
            await subject.receive()
        assert turns - before >= BUFFER - 1  # trio may run the sibling before or after us in each round
        tasks.cancel_scope.cancel()


@every_kind
async def test_a_cancelled_receive_takes_nothing_that_lies_ready(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        for item in subject.items:
            await until(subject.lies_ready)
            await is_cancelled_in(subject.receive)
            assert subject.receive_nowait() == item


@every_kind
async def test_receive_is_a_checkpoint_at_the_end_and_when_closed(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        await subject.rest()
        await is_cancelled_in(subject.receive)
        await subject.stream.aclose()
        await is_cancelled_in(subject.receive)
        with pytest.raises(ClosedResourceError):
            await subject.receive()


async def is_cancelled_in(function: Callable[[], Any]) -> None:
    with CancelScope() as scope:
        scope.cancel()
        await function()
    assert scope.cancelled_caught


@every_kind
async def test_a_receive_that_is_cancelled_while_it_waits_takes_nothing(kind: str, model: Model) -> None:
    async def read(scope: CancelScope) -> None:
        with scope:
            await subject.receive()

    async with opened(kind, model) as subject, create_task_group() as tasks:
        for _ in range(3):
            scope = CancelScope()
            tasks.start_soon(read, scope)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert scope.cancelled_caught
        subject.start()
        assert await subject.rest() == subject.items


@every_kind
async def test_no_item_is_lost_to_cancellation_at_any_moment(kind: str, model: Model) -> None:
    """The scope is cancelled after 0, 1, 2, … turns of the loop, while items come."""
    got: list[int] = []

    async def cancel(scope: CancelScope, turns: int) -> None:
        for _ in range(turns):
            await checkpoint()
        scope.cancel()

    async with opened(kind, model, 60) as subject, create_task_group() as tasks:
        subject.start()
        for attempt in range(1_000_000):
            with CancelScope() as scope:
                tasks.start_soon(cancel, scope, attempt % 8)
                try:
                    while True:
                        got.append(await subject.receive())
                except EndOfStream:
                    break
        tasks.cancel_scope.cancel()
        assert got == subject.items


# ---------------------------------------------------------------------------------------------------------- closing


@every_kind
@pytest.mark.parametrize("started", [False, True])
async def test_closing_is_idempotent_and_final(kind: str, started: bool, model: Model) -> None:
    async with opened(kind, model) as subject:
        if started:
            subject.start()
            await subject.receive()
            await until(subject.lies_ready)
        subject.stream.close()
        for _ in range(2):
            with pytest.raises(ClosedResourceError):
                await subject.receive()
            with pytest.raises(ClosedResourceError):
                subject.receive_nowait()
            with pytest.raises(ClosedResourceError):
                await subject.rest()
            await subject.stream.aclose()
            subject.stream.close()
        if kind == "TokenStream":
            assert subject.stream.statistics().current_buffer_used == 0


@every_kind
async def test_closing_works_after_the_end(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        await subject.rest()
        await subject.stream.aclose()
        with pytest.raises(ClosedResourceError):
            await subject.receive()


@every_kind
async def test_leaving_the_block_closes(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        subject.start()
        async with subject.stream as stream:
            assert stream is subject.stream
            assert await subject.receive() == subject.items[0]
        with pytest.raises(ClosedResourceError):
            await subject.receive()


@every_kind
@pytest.mark.parametrize("how", ["close", "aclose"])
async def test_closing_wakes_a_reader_that_waits(kind: str, how: str, model: Model) -> None:
    closing_wakes_the_reader(kind)
    woken = anyio.Event()

    async def read() -> None:
        with pytest.raises(ClosedResourceError):
            await subject.receive()
        woken.set()

    async with opened(kind, model) as subject, create_task_group() as tasks:
        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        if how == "close":
            subject.stream.close()
        else:
            await subject.stream.aclose()
        with anyio.fail_after(60):
            await woken.wait()


# ---------------------------------------------------------------------------------------------------------- figures, type


@every_kind
async def test_statistics(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject:
        statistics = subject.stream.statistics()
        size = 0 if "rendezvous" in kind or kind == "open_stream" else BUFFER
        assert (statistics.current_buffer_used, statistics.max_buffer_size) == (0, size)
        subject.start()
        await until(subject.is_full)
        await subject.rest()
        statistics = subject.stream.statistics()
        assert (statistics.current_buffer_used, statistics.max_buffer_size) == (0, size)
        with pytest.raises(AttributeError):
            statistics.current_buffer_used = 1


@every_kind
async def test_it_is_an_object_receive_stream(kind: str, model: Model) -> None:
    async with opened(kind, model) as subject, aclosing(subject.stream) as stream:
        assert isinstance(stream, anyio.abc.ObjectReceiveStream)
        assert isinstance(stream, TokenStream if kind == "TokenStream" else MemoryObjectReceiveStream)
        assert stream.extra(TLSAttribute.alpn_protocol, None) is None
