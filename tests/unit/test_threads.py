"""Order, restraint and calling off."""

import threading
from collections.abc import Iterator

import pytest

from ssl_backdoor.threads import SMALL_BYTES, num_decode_threads, parallel_map


def test_results_come_in_order_though_the_first_ends_last() -> None:
    second_ended = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_ended.wait(30)
        if number == 1:
            second_ended.set()
        return number * number

    assert list(parallel_map(work, range(9), threads=2)) == [number * number for number in range(9)]


def test_items_are_taken_as_results_are_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel_map(str, items(), threads=2)
    assert not taken
    assert [next(results) for _ in range(10)] == [str(number) for number in range(10)]
    assert len(taken) <= 10 + 2 * 2
    results.close()
    assert len(taken) < 20


def test_an_error_is_raised_in_its_place_and_calls_off_the_rest() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = parallel_map(work, range(1000), threads=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 10


def test_one_thread_is_the_callers_own() -> None:
    found = set(parallel_map(lambda _: threading.get_ident(), range(9), threads=1))
    assert found == {threading.get_ident()}
    assert threading.get_ident() not in set(parallel_map(lambda _: threading.get_ident(), range(9), threads=2))


def test_small_images_are_decoded_on_one_thread_and_others_on_one_for_each_cpu(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert num_decode_threads(SMALL_BYTES - 1, 16) == 1
    assert [num_decode_threads(SMALL_BYTES, most) for most in (1, 2, 16)] == [1, 2, 3]
