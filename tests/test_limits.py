import asyncio
from dataclasses import FrozenInstanceError, asdict

import pytest
from kit.asks import Echo, ask_direct, run

from virtex import Limits, Services, Tensor, TensorHandler, http_server, limits, serve
from virtex.handler import Worker
from virtex.limits import allowance, widest
from virtex.resident import Memory
from virtex.service.register import REGISTER


@pytest.mark.parametrize("name", asdict(Limits()))
@pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), float("inf"), 1 << 62], ids=repr)
def test_a_limit_that_is_not_above_zero_is_refused_by_name(name, value):
    if name == "max_bytes" and value is None:
        assert Limits(max_bytes=None) == Limits()  # what fits
        return
    with pytest.raises(ValueError, match=rf"Limits\({name}=.*expected a number above 0"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", [name for name, value in asdict(Limits()).items() if not isinstance(value, float)])
def test_what_is_counted_is_whole_however_it_is_written(name):
    limit = getattr(Limits(**{name: 1e6}), name)
    assert type(limit) is int and limit == 1_000_000
    with pytest.raises(ValueError, match=rf"Limits\({name}=1.5\): expected a whole number"):
        Limits(**{name: 1.5})


def test_limits_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Limits().body = 1


# --- what fits ----------------------------------------------------------------------------------------------------

GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("said", "size", "workers", "parts", "most"),
    [
        (None, GIB, 1, 1, GIB // 4),
        (None, 8 * GIB, 4, 1, GIB // 2),
        (None, 8 * GIB, 2, 2, GIB // 2),
        (None, 16 * GIB, 1, 1, 4 * GIB),
        (None, 64 * GIB, 1, 1, 4 * GIB),
        (6 * GIB, GIB, 4, 2, 6 * GIB),  # who says a number gets it
        (None, 1, 9, 9, 1),
    ],
)
def test_requests_get_a_quarter_of_the_memory_and_4_gib_at_most_unless_somebody_says_it(
    said, size, workers, parts, most
):
    assert allowance(said, workers, parts, Memory(size, "a cgroup")).max_bytes == most


def test_an_allowance_says_where_it_comes_from():
    assert (
        "1/4 of the 1073741824 bytes that /a/memory.max says there are, by 2 x 1 (workers x services)"
        in allowance(None, 2, 1, Memory(GIB, "/a/memory.max")).why
    )
    assert "4 GiB" in allowance(None, 1, 1, Memory(64 * GIB, "the machine")).why
    assert allowance(5).why == "as limits.max_bytes says"


def test_of_several_limits_the_widest_max_bytes_that_is_said_counts():
    assert widest([Limits(), Limits()]) == Limits()
    assert widest([Limits(max_bytes=3), Limits(), Limits(max_bytes=5)]).max_bytes == 5


@pytest.fixture
def small(monkeypatch):
    """A cgroup of 64 MiB."""
    monkeypatch.setattr(limits, "memory", lambda: Memory(64 * MIB, "/small/memory.max"))


def test_a_service_says_what_fits_and_leaves_its_limits_as_they_are(small, caplog):
    app = http_server("small", Echo())

    async def main():
        await app.startup(Worker(0, 2))
        answers = await ask_direct(app, method="GET"), await ask_direct(app, b"x" * (4 * MIB + 1))
        await app.shutdown()
        return answers

    root, large = asyncio.run(main())
    assert app.limits == Limits() and app.budget.budget == 8 * MIB
    assert root.json["limits"] == asdict(Limits(max_bytes=8 * MIB, body=4 * MIB))
    assert large.status == 413 and str(4 * MIB) in large.error
    assert "takes bodies of 4194304 bytes at most, and not 67108864 (limits.body)" in caplog.text
    assert "/small/memory.max says there are, by 2 x 1 (workers x services); say a larger max_bytes" in caplog.text


def test_who_says_max_bytes_gets_it_and_the_body_that_was_said(small, caplog):
    app = http_server("said", Echo(), limits=Limits(max_bytes=GIB, body=MIB))
    run(app)
    assert app.budget.budget == GIB and "takes bodies" not in caplog.text


class Large(TensorHandler):
    inputs = Tensor("uint8", (MIB,))

    def run_inference(self, model_input):
        return model_input[:, :1]


def test_rows_that_do_not_fit_are_refused_at_the_start_with_where_the_number_comes_from(small):
    with pytest.raises(
        MemoryError, match=r"would fit\. max_bytes is 16777216: .* 67108864 bytes that /small/memory.max"
    ):
        run(http_server("large", Large(), max_batch_size=64))
    with pytest.raises(MemoryError, match="max_bytes is 33554432: as limits.max_bytes says"):
        run(http_server("large", Large(), max_batch_size=64, limits=Limits(max_bytes=32 * MIB, body=MIB)))
    run(http_server("large", Large(), max_batch_size=2))


def test_a_max_bytes_of_less_than_one_body_is_told_of_the_body():
    with pytest.raises(
        MemoryError, match=r"a body of 67108864 bytes \(limits.body\) has to fit .*a smaller one. max_bytes is"
    ):
        run(http_server("large", Large(), max_batch_size=2, limits=Limits(max_bytes=50 * MIB)))
    run(http_server("large", Large(), max_batch_size=2, limits=Limits(max_bytes=50 * MIB, body=16 * MIB)))


def test_several_services_share_what_fits(small):
    services = Services(http_server("a", Echo()), http_server("b", Echo()))

    async def main():
        await services.startup()
        assert services.budget.budget == 16 * MIB
        await services.shutdown()

    asyncio.run(main())


def test_services_that_an_application_mounts_divide_what_fits(small, monkeypatch):
    async def foreign(scope, receive, send):
        raise RuntimeError("nobody asks")

    monkeypatch.setattr(REGISTER, "_services", type(REGISTER._services)())  # those of other tests are not inside
    a, b = http_server("a", Echo()), http_server("b", Echo())

    async def main():
        async with await serve(foreign, port=0):
            assert a.budget.budget == b.budget.budget == 8 * MIB

    asyncio.run(main())
