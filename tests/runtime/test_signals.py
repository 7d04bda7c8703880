"""The first signal is a wish, the second one an order; what others repeat within an instant counts as one."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fapn_zoo.runtime import signals
from fapn_zoo.runtime.signals import Terminated, sigterm_as_interrupt, stop_signals

pytestmark = pytest.mark.unit
BOTH = (signal.SIGINT, signal.SIGTERM)
ALL = (*BOTH, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_handlers():
    """A test run in the background ignores SIGINT; and no mistake in a test may end the test run."""
    before = [signal.signal(number, signal.default_int_handler) for number in ALL]
    yield
    for number, handler in zip(ALL, before, strict=True):
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_two_at_once_are_one_wish(first: int, second: int) -> None:
    """torchrun adds a SIGTERM to the SIGINT of Ctrl-C, and sends SIGTERM to those who may have had it."""
    with stop_signals() as seen:
        send(first)
        send(second)
    assert seen == [first]


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_a_later_second_ends_at_once(monkeypatch: pytest.MonkeyPatch, first: int, second: int) -> None:
    monkeypatch.setattr(signals, "ECHO", 0)
    with stop_signals() as seen:
        send(first)
        with pytest.raises(Terminated if second == signal.SIGTERM else KeyboardInterrupt):
            send(second)
        assert seen == [first]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a third one needs nobody who listens
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_an_exception() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(Terminated) as raised, sigterm_as_interrupt():
            send(number)
        assert raised.value.number == number
    with pytest.raises(KeyboardInterrupt) as raised, sigterm_as_interrupt():
        send(signal.SIGINT)
    assert not isinstance(raised.value, Terminated)
    assert [signal.getsignal(number) for number in BOTH] == before


def test_what_is_saved_after_the_first_is_not_cut_by_its_echo() -> None:
    saved = []
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            saved.append(True)
    assert saved


def test_one_within_the_other() -> None:
    with sigterm_as_interrupt():
        with stop_signals() as seen:
            send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        with pytest.raises(Terminated):
            send(signal.SIGTERM)


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with sigterm_as_interrupt():
        send(signal.SIGINT)


def test_other_threads_get_none() -> None:
    found = []

    def work() -> None:
        with stop_signals() as seen, sigterm_as_interrupt():
            found.append((seen, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [([], signal.default_int_handler)]
