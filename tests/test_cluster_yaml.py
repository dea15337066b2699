"""`cluster.yaml` against Ray's own schema and checks, and against what the comments in it promise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def test_it_fits_rays_schema(cluster, schema):
    jsonschema.validate(cluster, schema)


def test_rays_own_validation_takes_it(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(cluster)
    validate_config(prepare_config(copy.deepcopy(cluster)))  # with the provider's defaults filled in


@pytest.mark.parametrize("place", [(), ("available_node_types", "gpu_worker")], ids=["top", "node type"])
def test_a_misspelt_key_does_not_fit(cluster, schema, place):
    level = cluster
    for name in place:
        level = level[name]
    level["max_wokers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        jsonschema.validate(cluster, schema)


def test_a_value_of_the_wrong_type_does_not_fit(cluster, schema):
    cluster["auth"]["ssh_user"] = 3
    with pytest.raises(jsonschema.ValidationError, match="3 is not of type 'string'"):
        jsonschema.validate(cluster, schema)


def test_a_head_type_that_is_not_there_is_refused(cluster):
    from ray.autoscaler._private.util import validate_config

    cluster["head_node_type"] = "gone"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(cluster)


def test_worker_counts_fit_together(cluster):
    types = cluster["available_node_types"]
    workers = {name: node for name, node in types.items() if name != cluster["head_node_type"]}
    assert cluster["head_node_type"] in types
    assert sum(node["min_workers"] for node in workers.values()) <= cluster["max_workers"]
    assert sum(node["max_workers"] for node in workers.values()) == cluster["max_workers"]
    assert all(0 <= node["min_workers"] <= node["max_workers"] for node in workers.values())


def test_the_head_does_no_work_and_gpus_start_from_zero(cluster):
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    gpu = [node for name, node in types.items() if node["resources"].get("GPU", 0) > 0]
    assert gpu and all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in gpu)
    cpu = [node for node in types.values() if node["resources"]["CPU"] > 0 and not node["resources"].get("GPU")]
    assert cpu, "there are no CPU workers"


def test_every_node_installs_this_checkout_from_the_lock(cluster):
    commands = "\n".join(cluster["setup_commands"])
    assert cluster["file_mounts"]["/home/ubuntu/raymotion"] == "."
    for named in ("requirements.lock", "--editable ~/raymotion"):
        assert named in commands
    assert (REPOSITORY / "requirements.lock").is_file()
    assert (REPOSITORY / cluster["rsync_filter"][0]).is_file()


def test_the_cluster_asks_for_its_token(cluster):
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in cluster[key])
    # The dashboard's port gives full control of the cluster: it is reached through ssh, not from outside.
    assert "--dashboard-host=127.0.0.1" in "\n".join(cluster["head_start_ray_commands"])
