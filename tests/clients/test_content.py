"""What connections send, and what a wrong reply is called."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.content import Content, diagnose
from clients.distributions import parse_pauses, parse_sizes
from clients.workload import Schedule
from echoserver.units import parse_quantity, parse_whole

# -- content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 21, 26, 27, 64, 5000])
def test_content_is_the_connections_own(size: int) -> None:
    one, two = Content(1, 1, size), Content(1, 2, size)
    messages = [one.message(number)[0] for number in range(50)]
    assert all(len(message) == size for message in messages)
    assert messages == [Content(1, 1, size).message(number)[0] for number in range(50)]
    assert b"".join(messages) != b"".join(two.message(number)[0] for number in range(50))
    assert b"".join(messages) != b"".join(Content(2, 1, size).message(n)[0] for n in range(50))


def test_content_for_upper() -> None:
    for size in (8, 64, 3000):
        content = Content(1, 7, size, bytes.upper)
        for number in range(20):
            message, expected = content.message(number)
            assert expected == message.upper()
            assert len(message) == size
        assert any(Content(1, 7, size, bytes.upper).message(0)[0] != b for b in (expected,))


@pytest.mark.parametrize("size", [20, 64, 500, 4000])
@pytest.mark.parametrize("answer", [bytes, bytes.upper])
def test_frames_are_the_messages(size: int, answer: Callable[[bytes], bytes]) -> None:
    content = Content(1, 3, size, answer)
    for expected, (number, message, reply) in enumerate(itertools.islice(content.frames(), 100)):
        assert number == expected
        assert (message, reply) == content.message(number)
        assert reply == answer(message)


def test_sizes_vary_as_they_are_told() -> None:
    sizes = parse_sizes("uniform:1:4096")
    lengths = [len(m) for _, m, _ in itertools.islice(Content(1, 0, sizes).frames(), 1000)]
    assert 1 <= min(lengths) < 100
    assert 4000 < max(lengths) <= 4096
    assert 1900 < sum(lengths) / 1000 < 2200
    assert lengths != [
        len(m) for _, m, _ in itertools.islice(Content(2, 0, sizes).frames(), 1000)
    ], "they follow from the seed"


def test_messages_differ_from_all_that_can_be_under_way_with_them() -> None:
    for under_way in (1, 4, 5, 100):
        content = Content(1, 0, 64, bytes, under_way)
        for first in (0, 30):
            ones = {content.message(first + n)[0] for n in range(2 * under_way + 1)}
            assert len(ones) == 2 * under_way + 1


def found(reply: bytes, number: int = 5, size: int = 64) -> tuple[str, str]:
    """What a reply to connection 3's message is called, and why."""
    contents = [Content(1, one, size) for one in range(10)]
    expected = contents[3].message(number)[1]
    what = diagnose(contents[3], number, reply, expected, contents.__getitem__, 10)
    return what.kind, what.explanation


def mine(number: int, connection: int = 3, size: int = 64) -> bytes:
    return Content(1, connection, size).message(number)[1]


@pytest.mark.parametrize("size", [12, 64, 4000])
def test_diagnosis_names_the_owner(size: int) -> None:
    kind, explanation = found(mine(5, connection=7, size=size), size=size)
    assert kind == "foreign"
    assert "connection 7's" in explanation


@pytest.mark.parametrize("size", [12, 64, 4000])
def test_diagnosis_of_damage(size: int) -> None:
    right = mine(5, size=size)
    kind, explanation = found(right[:-1] + bytes([right[-1] ^ 1]), size=size)
    assert kind == "corrupted"
    assert f"connection 3, message 5, byte {size - 1}" in explanation
    assert repr(right[-1:]) in explanation, "what was owed"


@pytest.mark.parametrize("size", [12, 64, 4000])
def test_diagnosis_of_order(size: int) -> None:
    def one(reply: bytes) -> str:
        return found(reply, size=size)[0]

    def reply(number: int) -> bytes:
        return mine(number, size=size)

    assert one(reply(4)) == "duplicated"
    assert one(reply(6) + reply(5)) == "reordered"
    assert one(reply(6) + reply(7)) == "lost"
    assert one(b"hello\r\n" + reply(5)) == "unexpected"
    if size > 20:  # shorter ones have no header to know them by
        assert one(reply(5)[:-3] + reply(6)) == "truncated"


def test_diagnosis_where_nothing_is_owed() -> None:
    content = Content(1, 3, 64)
    assert diagnose(content, 6, b"!", b"", lambda _: content, 1).kind == "unexpected"
    assert diagnose(content, 6, mine(5), b"", lambda _: content, 1).kind == "duplicated"


# -- how sizes, pauses and rates are typed -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "smallest", "largest"),
    [("64", 64, 64), ("4KiB", 4096, 4096), ("2k", 2000, 2000), ("uniform:1:4096", 1, 4096)],
)
def test_sizes(text: str, smallest: int, largest: int) -> None:
    sizes = parse_sizes(text)
    assert (sizes.smallest, sizes.largest) == (smallest, largest)


def test_sizes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sizes"
    file.write_text("10\n20\n20\n\n1KiB\n")
    drawn = parse_sizes(f"file:{file}").draw("1")
    assert set(drawn) == {10, 20, 1024}
    assert drawn.count(20) > 1.5 * drawn.count(10)


@pytest.mark.parametrize(
    "text",
    ["", "0", "x", "-1", "17MiB", "1.5", "uniform:5", "uniform:9:1", "file:/no/such", "file:"],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"bytes|whole number|file|from 0 up"):
        parse_sizes(text)


def test_pauses() -> None:
    assert next(parse_pauses("5ms").draw("1")) == 0.005
    drawn = list(itertools.islice(parse_pauses("exp:5ms").draw("1"), 5000))
    assert sum(drawn) / 5000 == pytest.approx(0.005, rel=0.1)
    assert max(drawn) > 0.02
    drawn = list(itertools.islice(parse_pauses("uniform:1ms:9ms").draw("1"), 500))
    assert 0.001 <= min(drawn) < 0.002
    assert 0.008 < max(drawn) <= 0.009


@pytest.mark.parametrize("text", ["", "0", "soon", "exp:", "exp:1:2", "uniform:2s:1s"])
def test_no_pauses(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|shortest"):
        parse_pauses(text)


@pytest.mark.parametrize(
    ("text", "number"), [("400", 400), ("5k", 5000), ("1.5M", 1_500_000), ("64KiB", 65536)]
)
def test_quantities(text: str, number: int) -> None:
    assert parse_whole(text) == parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "k", "5x", "-5", "1.5", "1ki", "٣"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_whole(text)


def test_an_even_schedule() -> None:
    schedule = Schedule(5000, None, 2)
    assert [schedule.due(n) for n in (0, 1, 5000)] == [0, 200_000, 1_000_000_000]
    assert schedule.count(2) == 10_000


@pytest.mark.parametrize(("first", "last"), [(1000, 20000), (20000, 1000), (5000, 5000)])
def test_a_ramp(first: float, last: float) -> None:
    schedule = Schedule(first, last, 10, warmup=2)
    assert schedule.count(2) == pytest.approx(2 * first, abs=2), "the warm-up is even"
    assert schedule.count(12) - schedule.count(2) == pytest.approx(5 * (first + last), abs=3)
    halfway = schedule.count(7) - schedule.count(2)
    assert halfway == pytest.approx(5 * (first + (last - first) / 4), abs=3)
    dues = [schedule.due(n) for n in range(schedule.count(14))]
    assert dues == sorted(dues)
    assert schedule.count(14) - schedule.count(12) == pytest.approx(2 * last, abs=3), "afterwards"
