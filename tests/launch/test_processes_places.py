"""Which process of which job this is: by flags, SLURM, MPI, GKE, MegaScale, and the metadata."""

import http.server
import threading

import pytest

from core_jax.errors import ConfigError
from launch.options import Options, UsageError, take_options
from launch.places import Place, first_node, on_gpus, on_tpus

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-011,020],login",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
}
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "job-0.svc,job-1.svc,job-2.svc"}
SLICES = {
    "MEGASCALE_COORDINATOR_ADDRESS": "first.svc:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


def explicit(**kw):
    return Options(coordinator="10.0.0.1:1234", num_processes=5, **kw)


def test_flags_are_split_off_wherever_they_stand():
    words = "rec.pretrain --process-id 3 --preset demo --coordinator=h:1 --mesh.data -1 --dry-run"
    options, rest = take_options(words.split(), several=True)
    assert options == Options(process_id=3, coordinator="h:1", dry_run=True)
    assert rest == ["rec.pretrain", "--preset", "demo", "--mesh.data", "-1"]


def test_one_process_has_no_flags_of_many():
    options, rest = take_options(["job", "--dry-run", "--process-id", "1"], several=False)
    assert (options, rest) == (Options(dry_run=True), ["job", "--process-id", "1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator"], "--coordinator needs a value"),
        (["--num-processes", "--dry-run"], "--num-processes needs a value"),
        (["--process-id", "two"], "--process-id is 'two'; it must be a whole number"),
    ],
)
def test_a_wrong_flag_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        take_options(words, several=True)


@pytest.mark.parametrize("find", [on_gpus, on_tpus])
def test_explicit_flags(find):
    place = find(explicit(process_id=3), {})
    assert place == Place(
        coordinator="10.0.0.1:1234", num_processes=5, process_id=3, source="flags"
    )
    variables = {
        "JAX_COORDINATOR_ADDRESS": "h:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    assert find(Options(), variables).coordinator == "h:1"


@pytest.mark.parametrize("find", [on_gpus, on_tpus])
def test_half_of_the_flags_is_an_error_that_names_the_rest(find):
    with pytest.raises(ConfigError, match="--num-processes given, but not --process-id; give all"):
        find(explicit(), {})
    with pytest.raises(ConfigError, match="not --coordinator and --num-processes"):
        find(Options(process_id=0), {})
    with pytest.raises(ConfigError, match="--process-id is 5 and --num-processes 5; numbers go"):
        find(explicit(process_id=5), {})


def test_slurm():
    place = on_gpus(Options(), SLURM)
    assert place == Place(
        coordinator=f"gpu007:{61440 + 70001 % 4096}",
        num_processes=6,
        process_id=4,
        local_devices=(1,),
        source="SLURM job 70001",
    )
    assert on_gpus(explicit(process_id=0), SLURM).source == "flags"


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x6)"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, (1,)),
    ],
)
def test_a_task_that_is_alone_or_bound_uses_all_that_it_sees(changes, devices):
    assert on_gpus(Options(), SLURM | changes).local_devices == devices
    assert on_gpus(Options(local_devices="2,3"), SLURM | changes).local_devices == (2, 3)


@pytest.mark.parametrize("nodes", ["n1", "n1,n2", "n[1-3]", "n[1,4-5],m"])
def test_the_first_node_of_a_list(nodes):
    assert first_node(nodes) == "n1"


def test_open_mpi_on_one_host_and_on_several():
    ranks = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    }
    here = on_gpus(Options(), ranks)
    assert (here.num_processes, here.process_id, here.local_devices) == (4, 3, (1,))
    assert here.coordinator.startswith("127.0.0.1:")
    hosts = ranks | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(ConfigError, match="does not say on which host rank 0 of 4 runs; give --co"):
        on_gpus(Options(), hosts)
    assert on_gpus(Options(coordinator="a:1"), hosts).coordinator == "a:1"
    uri = hosts | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
    assert on_gpus(Options(), uri).coordinator.startswith("10.96.0.1:")


def test_pmi_needs_a_coordinator():
    ranks = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
    place = on_gpus(Options(coordinator="a:1"), ranks)
    assert place == Place(coordinator="a:1", num_processes=2, process_id=1, source="MPI")


def test_a_process_of_nothing_is_told_what_there_is():
    with pytest.raises(ConfigError, match="start it with srun or mpirun, give the three flags"):
        on_gpus(Options(), {})
    with pytest.raises(ConfigError, match="--cluster slurm, but there is no task"):
        on_gpus(Options(cluster="slurm"), {})
    with pytest.raises(ConfigError, match="no TPU worker"):
        on_tpus(Options(), {"TPU_SKIP_MDS_QUERY": "1"})
    with pytest.raises(UsageError, match="--cluster is 'pbs'"):
        on_gpus(Options(cluster="pbs"), {})


def test_gke_with_one_slice_and_with_two():
    place = on_tpus(Options(), GKE)
    assert (place.coordinator, place.num_processes, place.process_id) == ("job-0.svc:8482", 3, 1)
    place = on_tpus(Options(), GKE | SLICES | {"JAX_COORDINATOR_PORT": "99"})
    assert (place.coordinator, place.num_processes, place.process_id) == ("first.svc:99", 6, 4)
    with pytest.raises(ConfigError, match="worker 3 of 3"):
        on_tpus(Options(), GKE | {"TPU_WORKER_ID": "3"})
    with pytest.raises(ConfigError, match="not MEGASCALE_COORDINATOR_ADDRESS"):
        on_tpus(Options(), GKE | {"MEGASCALE_NUM_SLICES": "2"})


@pytest.mark.parametrize(
    "endpoints", ["10.0.0.7,10.0.0.8", "unknown:unknown:10.0.0.7,unknown:unknown:10.0.0.8"]
)
def test_the_metadata_of_a_tpu_vm(endpoints):
    """A server that answers as Google's does, slices and all."""
    answers = {
        "agent-worker-number": "1",
        "worker-network-endpoints": endpoints,
        "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = answers.get(self.path.rpartition("/")[2])
            known = found is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        place = on_tpus(Options(), variables)
        assert (place.coordinator, place.num_processes, place.process_id) == ("10.0.0.1:8482", 4, 3)
        answers["tpu-env"] = "ZONE: 'z'\n"
        place = on_tpus(Options(), variables)
        assert (place.coordinator, place.num_processes, place.process_id) == ("10.0.0.7:8482", 2, 1)
        server.shutdown()
