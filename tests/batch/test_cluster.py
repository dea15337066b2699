"""Whether a plan of actors fits, by arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.batch.cluster import plan_placement
from raymotion.errors import InputError

LAPTOP = [{"CPU": 2.0}]
GPU_NODES = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]


def test_laptop_gets_one_actor_a_core() -> None:
    plan = plan_placement(None, None, None, nodes=LAPTOP)
    assert (plan.workers, plan.cpus, plan.gpus) == (2, 1.0, 0.0)


def test_gpus_get_an_actor_each_with_their_share_of_the_cpus() -> None:
    plan = plan_placement(None, None, None, nodes=GPU_NODES)
    assert (plan.workers, plan.cpus, plan.gpus) == (4, 8.0, 1.0)


def test_cpu_nodes_beside_a_gpu_node_do_not_swell_its_workers() -> None:
    plan = plan_placement(None, None, None, nodes=[{"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}])
    assert (plan.workers, plan.cpus, plan.gpus) == (1, 4.0, 1.0)


def test_an_autoscaling_cluster_is_asked_for_what_was_said() -> None:
    head = [{"CPU": 0.0}]
    plan = plan_placement(4, 4, 1, nodes=head, autoscale=True)
    assert (plan.workers, plan.cpus, plan.gpus) == (4, 4, 1)
    with pytest.raises(InputError, match=r"how many workers.*--workers"):
        plan_placement(None, None, None, nodes=head, autoscale=True)


def test_a_command_is_named_its_own_options() -> None:
    """`study run` has no --workers: a remedy that it does not know is none."""
    own = ("--concurrent", "--cpus-per-trial", "--gpus-per-trial")
    with pytest.raises(InputError, match="--concurrent, --cpus-per-trial or --gpus-per-trial") as error:
        plan_placement(1, 1, 0.25, nodes=LAPTOP, options=own)
    assert "-per-worker" not in str(error.value)
    with pytest.raises(InputError, match=r"Give --concurrent"):
        plan_placement(None, 1, 0.25, nodes=LAPTOP, autoscale=True, options=own)


def test_fractional_gpus() -> None:
    plan = plan_placement(None, 2, 0.5, nodes=GPU_NODES)
    assert (plan.workers, plan.cpus, plan.gpus) == (8, 2, 0.5)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "nodes", "message"),
    [
        (
            3,
            1,
            0,
            LAPTOP,
            r"3 x \(1 CPU\) cannot be placed: the cluster has \(2 CPU, 0 GPU\), room for 2 such workers",
        ),
        (1, 4, 0, LAPTOP, r"1 x \(4 CPU\) cannot be placed: .* room for 0 such workers"),
        (1, 1, 1, LAPTOP, r"1 x \(1 CPU and 1 GPU\) cannot be placed"),
        # 8 CPUs in all, and yet no node has 6: sums do not place actors.
        (1, 6, 0, [{"CPU": 4.0}, {"CPU": 4.0}], r"the cluster has \(4 CPU, 0 GPU\) \+ \(4 CPU, 0 GPU\), room for 0"),
        (None, None, None, [], "the cluster has no node"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(
    workers: int | None, cpus: float | None, gpus: float | None, nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan_placement(workers, cpus, gpus, nodes=nodes)


@given(
    st.lists(st.fixed_dictionaries({"CPU": st.integers(1, 64), "GPU": st.integers(0, 8)}), min_size=1, max_size=5),
    st.sampled_from([None, 1.0, 2.0]),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_a_plan_that_is_accepted_can_be_placed(
    nodes: list[dict[str, int]], cpus: float | None, gpus: float | None
) -> None:
    try:
        plan = plan_placement(None, cpus, gpus, nodes=[{k: float(v) for k, v in n.items()} for n in nodes])
    except InputError:
        return
    left = plan.workers
    for node in nodes:
        cpu, gpu = float(node["CPU"]), float(node["GPU"])
        while left and cpu >= plan.cpus and gpu >= plan.gpus - 1e-9:
            cpu, gpu, left = cpu - plan.cpus, gpu - plan.gpus, left - 1
    assert left == 0
