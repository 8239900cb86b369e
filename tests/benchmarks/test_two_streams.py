"""The table of two streams in one process and in two compares setups round by round."""

from benchmarks.two_streams import NUM_STREAMS, ProcessRun, SetupRun, merged, setups, table


def test_every_setup_runs_two_streams_and_has_a_thread():
    for num_cores in (1, 2, 5):
        one, both, half = setups(num_cores)
        assert (one.num_processes, one.num_threads) == (1, num_cores)
        assert (both.num_processes, both.num_threads) == (NUM_STREAMS, num_cores)
        assert (half.num_processes, half.num_threads) == (NUM_STREAMS, max(1, num_cores // 2))


def test_processes_are_as_slow_as_the_slowest_and_take_the_memory_of_all():
    assert merged([ProcessRun(2.0, 300), ProcessRun(4.0, 500)], 40) == SetupRun(10.0, 800)
    assert merged([ProcessRun(2.0, 300), ProcessRun(4.0, None)], 40) == SetupRun(10.0, None)


def test_a_setup_is_compared_with_one_process_in_the_same_round():
    one, both, _ = setups(2)
    runs = {
        one: [SetupRun(10.0, 100_000_000), SetupRun(1.0, 100_000_000), SetupRun(8.0, 100_000_000)],
        both: [SetupRun(5.0, 200_000_000), SetupRun(0.5, 200_000_000), SetupRun(8.0, 200_000_000)],
    }
    _, _, first, second = table(runs).splitlines()
    assert first == "| one process | 8.00 | 1.00 | 100 | 1.00 |"
    assert second == "| two processes, all threads each | 5.00 | 0.50 | 200 | 2.00 |"


def test_memory_that_the_system_does_not_report_is_left_out():
    one, both, _ = setups(2)
    runs = {one: [SetupRun(8.0, None)], both: [SetupRun(8.0, 200_000_000)]}
    assert table(runs).splitlines()[2:] == [
        "| one process | 8.00 | 1.00 | - | - |",
        "| two processes, all threads each | 8.00 | 1.00 | 200 | - |",
    ]
