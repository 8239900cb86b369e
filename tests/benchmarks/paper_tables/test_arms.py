"""What is compared, and in which order."""

from benchmarks.paper_tables.arms import ARMS, CORE_ARMS, PLAN, SEEDS
from benchmarks.paper_tables.findings import QUESTIONS


def test_every_arm_is_run_once_with_every_seed():
    names = [run.name for run in PLAN]
    assert len(names) == len(set(names)) == len(ARMS) * len(SEEDS)


def test_no_two_arms_are_the_same_model():
    assert len({arm.mod for arm in ARMS.values()}) == len(ARMS)


def test_stopped_at_any_run_no_arm_of_a_group_is_more_than_one_seed_ahead():
    for stop in range(len(PLAN)):
        done = [run.arm.name for run in PLAN[:stop]]
        counts = [done.count(name) for name in CORE_ARMS]
        assert max(counts) - min(counts) <= 1


def test_the_insertions_come_last():
    assert all(run.arm.name in CORE_ARMS for run in PLAN[: len(CORE_ARMS) * len(SEEDS)])


def test_every_arm_stands_in_a_table_and_every_claim_is_about_arms_of_its_table():
    assert {arm for question in QUESTIONS for arm in question.arms} == {*ARMS}
    for question in QUESTIONS:
        for claim in question.claims:
            assert {claim.ours, claim.other} <= {*question.arms}
