"""Signals to this process: raised where nothing is lost, kept where something is, and never heard by forks."""

import os
import signal
import time

import pytest

from fastgen.stopping import Stopped, deferred, interruptible, listening, stop_signal


def tell(number=signal.SIGTERM):
    """A signal to this process; its handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_raises_where_nothing_is_lost(number, code):
    with listening(), pytest.raises(Stopped) as stop:
        tell(number)
    assert stop.value.exit_code == code
    assert str(stop.value) == f"stopped by {number.name}"


def kept(within):
    """What is done of some work that defers signals, one of which comes at its start."""
    done = []
    with deferred():
        tell()
        done.append(stop_signal())
        within(done)
    return done


def test_a_signal_waits_where_something_would_be_lost_and_raises_after_it():
    done = []
    with listening(), pytest.raises(Stopped):
        kept(lambda so_far: done.extend(so_far))
    assert done == [signal.SIGTERM]


def test_work_that_may_be_interrupted_does_not_begin_after_a_signal_and_what_is_around_it_goes_on():
    done = []

    def begun():
        done.append("begun")

    def within(_):
        with pytest.raises(Stopped):
            interruptible(begun)()
        done.append("went on")

    with listening(), pytest.raises(Stopped):
        kept(within)
    assert done == ["went on"]


def test_work_that_may_be_interrupted_is_also_where_all_else_waits():
    done = []

    def work():
        with deferred():
            with pytest.raises(Stopped):
                interruptible(tell)()
            done.append("went on")

    with listening(), pytest.raises(Stopped):
        work()
    assert done == ["went on"]


def test_a_second_signal_does_not_break_into_what_tidies_after_the_first():
    with listening():
        with pytest.raises(Stopped):
            tell()
        tell()  # within a second it is the echo of a launcher; later it ends the process


def test_handlers_are_as_they_were_afterwards_and_what_is_ignored_stays_ignored():
    before = signal.getsignal(signal.SIGINT)
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGINT) != before
            with listening():  # a command within a command
                pass
            tell(signal.SIGUSR1)
            assert stop_signal() is None
        assert signal.getsignal(signal.SIGINT) == before
        assert stop_signal() is None
    finally:
        signal.signal(signal.SIGUSR1, ignored)


def test_a_forked_process_leaves_signals_to_its_parent():
    with listening(), deferred():
        child = os.fork()
        if child == 0:
            time.sleep(10)
            os._exit(1)
        time.sleep(0.05)
        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        time.sleep(0.05)
        assert stop_signal() is None


def left_by(work, **settings):
    """The exit code of a fork that hears signals and does this work, and the seconds that it took."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        with listening("go on\n", **settings):
            work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def test_a_second_signal_leaves_at_once_wherever_the_main_thread_is(capfd):
    def work():
        with deferred():
            tell()
            tell()  # an echo
            time.sleep(1.1)
            tell(signal.SIGINT)
            time.sleep(20)

    code, seconds = left_by(work)
    assert code == 130
    assert seconds < 5
    assert "told twice to stop: left at once\ngo on\n" in capfd.readouterr().err


def test_a_signal_that_is_not_answered_ends_the_process_all_the_same(capfd):
    def work():
        try:
            tell()
        except Stopped:
            time.sleep(20)

    code, seconds = left_by(work, grace_s=0.3)
    assert code == 143
    assert seconds < 5
    assert "not over 0 s after it was told to stop" in capfd.readouterr().err
