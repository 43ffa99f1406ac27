"""Processes meet before JAX starts, and compare what they run: here threads take their parts."""

import dataclasses
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig
from launch import agreement, xla_flags
from launch.agreement import check_agreement, check_shared, data_digest, facts_of
from launch.plan import configs_in
from launch.rendezvous import Rendezvous
from tests.launch.fake_jobs import FakeConfig

SECONDS = 10.0


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def meet(*parts):
    """Runs every part in a thread; gives what each returned or raised."""

    def call(part):
        try:
            return part()
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(call, parts))


def part(address, count, number, say, seconds=SECONDS):
    """One process: meets, says something twice and hears what all say."""

    def run():
        with Rendezvous(address, count, number, seconds) as meeting:
            assert len(meeting.hosts) == count
            return [meeting.exchange(say), meeting.exchange([say])]

    return run


def test_all_hear_what_all_say_in_the_order_of_their_numbers(address):
    heard = meet(*(part(address, 3, number, f"I am {number}") for number in (2, 0, 1)))
    says = ["I am 0", "I am 1", "I am 2"]
    assert heard == [[says, [[one] for one in says]]] * 3


def test_the_port_is_free_at_once(address):
    for _ in range(3):
        assert meet(*(part(address, 2, number, number) for number in (0, 1)))[0] == [
            [0, 1],
            [[0], [1]],
        ]


def test_a_coordinator_that_does_not_answer(address):
    (said,) = meet(part(address, 2, 1, "", seconds=0.5))
    assert f"process 1 of 2 did not reach process 0 at {address} within 0.5 s" in said
    assert "is process 0 running" in said


def test_processes_that_do_not_come_are_named_to_all(address):
    late = [part(address, 4, number, "", seconds=3.0) for number in (0, 2)]
    for said in meet(*late):
        assert "process 1, 3 of 4 had not come" in said


def test_two_processes_of_one_number(address):
    """Process 0 and one of the two learn of it; the other may have hung up already."""
    said = meet(*(part(address, 3, number, "") for number in (0, 1, 1)))
    assert all("two processes are number 1: " in one for one in said)
    said = meet(part(address, 2, 0, ""), part(address, 3, 1, ""))
    assert all(
        "process 1" in one and "counts 3 processes, process 0 counts 2" in one for one in said
    )


def test_a_stranger_is_no_process(address):
    """What says no hello of ours is sent away, and the meeting goes on."""
    host, _, port = address.rpartition(":")

    def stranger():
        for _ in range(200):
            try:
                with socket.create_connection((host, int(port))) as line:
                    line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return "gone" if line.recv(1) == b"" else "answered"
            except ConnectionError:
                threading.Event().wait(0.02)
        return "nobody"

    def second():
        threading.Event().wait(0.3)
        return part(address, 2, 1, 1)()

    first, other, strange = meet(part(address, 2, 0, 0), second, stranger)
    assert first == other == [[0, 1], [[0], [1]]] and strange == "gone"


def test_a_port_that_is_taken(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (said,) = meet(part(address, 2, 0, ""))
    assert "process 0 cannot listen at port" in said and "choose another port" in said


def test_an_address_without_a_port():
    with pytest.raises(ConfigError, match="--coordinator is 'host'; it must be HOST:PORT"):
        Rendezvous("host", 2, 0, SECONDS)


def test_agreement_names_item_processes_and_values(tmp_path):
    one = facts_of(FakeConfig())
    check_agreement([one, dict(one)], ["a", "b"])
    two = facts_of(FakeConfig(seed=3)) | {"code rec_jax": "other"}
    with pytest.raises(ConfigError) as raised:
        check_agreement([one, two, one], ["a", "b", "c"])
    said = str(raised.value)
    assert "config seed: processes 0 (a), 2 (c): 0; process 1 (b): 3" in said
    code = one["code rec_jax"]
    assert f"code rec_jax: processes 0 (a), 2 (c): {code}; process 1 (b): other" in said
    assert "config model" not in said


def test_inputs_count_by_what_they_hold(tmp_path, monkeypatch):
    """The same name and another content, a folder with another file, a missing file."""
    path = tmp_path / "log.csv"
    path.write_text("1")
    first = facts_of(FakeConfig(run_dir=str(tmp_path)))
    assert first["data model.kind"] == "(absent)" and "data run_dir" not in first
    digests = [data_digest(str(path)), data_digest(str(tmp_path))]
    path.write_text("2")
    assert data_digest(str(path)) != digests[0] and data_digest(str(tmp_path)) == digests[1]
    (tmp_path / "more").write_text("")
    assert data_digest(str(tmp_path)) != digests[1]
    monkeypatch.setattr(agreement, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(agreement, "_END_BYTES", 1)
    ends = data_digest(str(path))
    path.write_text("3")
    assert data_digest(str(path)) != ends
    assert data_digest("no such file") == data_digest("x" * 5000) == "(absent)"


def test_a_run_folder_that_is_not_shared(tmp_path, address, monkeypatch):
    monkeypatch.setattr(agreement, "_SHARED_SECONDS", 0.3)

    def check(number, folder):
        with Rendezvous(address, 2, number, SECONDS) as meeting:
            check_shared(meeting, number, str(folder))
        return "shared"

    same = tmp_path / "run"
    assert meet(lambda: check(0, same), lambda: check(1, same)) == ["shared"] * 2
    assert list(same.iterdir()) == []
    for said in meet(lambda: check(0, same), lambda: check(1, tmp_path / "own")):
        assert "is not one folder for all processes: process 1 (" in said
    (tmp_path / "file").touch()
    for said in meet(lambda: check(0, tmp_path / "file"), lambda: check(1, tmp_path / "file")):
        assert "cannot be made" in said


def test_configs_within_a_config():
    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: object
        mesh: MeshConfig

    mesh, own = MeshConfig(fsdp=2), MeshConfig()
    inner = Outer(inner=None, mesh=own)
    assert configs_in(Outer(inner=inner, mesh=mesh), MeshConfig) == {
        "inner.mesh": own,
        "mesh": mesh,
    }


def test_xla_flags_are_added_once_and_never_changed():
    variables = {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=1"}
    added = xla_flags.set_flags("v6e", variables)
    assert len(added) == 2 and "98304" not in variables["LIBTPU_INIT_ARGS"]
    assert all(flag in variables["LIBTPU_INIT_ARGS"].split() for flag in added)
    assert xla_flags.set_flags("v6e", variables) == []
    assert xla_flags.set_flags("h100", variables) == [variables["XLA_FLAGS"]]
    with pytest.raises(ConfigError, match=r"--chip is 'v6x'.*Did you mean 'v6e'"):
        xla_flags.set_flags("v6x", variables)


def test_every_xla_flag_stands_in_the_table_with_its_source():
    text = xla_flags.table_text()
    for entry in xla_flags.FLAGS:
        assert entry.flag in text and entry.source in text and entry.why in text
