"""init, config, check-config and the dispatch of verbs, on folders of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from syshaxd import __version__
from syshaxd.cli import VERBS, main
from syshaxd.cli.hardware import Hardware, find_hardware
from syshaxd.cli.init import compose
from syshaxd.config import load, loads
from syshaxd.model.unit import Role
from syshaxd.topology import Node, Topology

MAIN = "# kept comment\nmodels: {path: /dev/null}\nunits: {gpu: {}, cpu: {}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder that every verb uses."""
    (tmp_path / "syshax.yaml").write_text(MAIN)
    monkeypatch.setenv("SYSHAX_CONFIG", str(tmp_path))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Run a verb; stdout, or stderr where it has to fail."""
    assert main(words) == code
    out, err = capsys.readouterr()
    return err if code else out


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("gpu.port", "units.gpu.port"),
        ("services.gpu.port", "units.gpu.port"),
        ("units.gpu.port", "units.gpu.port"),
        ("cpu.port", "units.cpu.port"),
        ("services.cpu.port", "units.cpu.port"),
        ("conductor.port", "services.conductor.port"),
        ("services.conductor.port", "services.conductor.port"),
    ],
)
def test_every_spelling_of_the_documents(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str, canonical: str
) -> None:
    assert said(capsys, "config", key, "8123").startswith(f"{canonical} = 8123, written to {folder}/zz-local.yaml")
    assert said(capsys, "config", key) == "8123\n"
    assert (folder / "syshax.yaml").read_text() == MAIN


@pytest.mark.parametrize("key", ["model", "models.default"])
def test_the_model_by_both_names(folder: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    said(capsys, "config", key, "ds-32b")
    assert load(folder).model_name == "ds-32b"
    assert load(folder).units[0].served_name == "ds-32b"


def test_the_documented_commands_in_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "init")
    for words in ("gpu.port 8001", "cpu.port 8002", "conductor.port 8010", "model m"):
        said(capsys, "config", *words.split())
    config = load(folder)
    assert [unit.port for unit in config.units] == [8001, 8002]
    assert (config.conductor.port, config.model_name) == (8010, "m")


@pytest.mark.parametrize("key", ["maxtokens", "temperature", "models.params.max_tokens"])
def test_keys_that_are_gone_say_what_took_their_place(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert "each request says" in said(capsys, "config", key, "1", code=2)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("gpu.prot", "1"), 2, "did you mean units.gpu.port?"),
        (("units.gpu", "1"), 2, "is a section"),
        (("nonsense", "1"), 2, "unknown key"),
        ((".", "1"), 2, "unknown key"),
        (("gpu.port", "8010"), 78, "services.conductor.port has too"),
        (("gpu.port", "port"), 78, "a whole number from 0 to 65535"),
        (("gpu.port", "1", "2"), 2, "takes one value"),
        (("pd.enabled", "yes"), 2, "write true"),
        (("gpu.kind", "vlm"), 78, "did you mean vllm?"),
        (("gpu.port", "[1"), 2, "never closed"),
    ],
)
def test_bad_writes_are_told_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, expected: str
) -> None:
    assert expected in said(capsys, "config", *words, code=code)
    assert sorted(path.name for path in folder.iterdir()) == ["syshax.yaml"]


def test_lists_numbers_as_text_and_unset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "config", "gpu.args", "--", "--dtype=half", "--seed", "7")
    said(capsys, "config", "gpu.env.OMP_NUM_THREADS", "08")
    said(capsys, "config", "cpu.command", "[run, '8']")
    gpu, cpu = load(folder).units
    assert gpu.extra_args == ("--dtype=half", "--seed", "7")
    assert gpu.env == {"OMP_NUM_THREADS": "08"}
    assert cpu.command == ("run", "8")
    for key in ("gpu.extra_args", "gpu.env.OMP_NUM_THREADS", "cpu.command"):
        said(capsys, "config", "--unset", key)
    assert load(folder).units[0].extra_args == ()
    assert "not set" in said(capsys, "config", "--unset", "gpu.port", code=2)


def test_hand_written_local_file_is_kept_in_meaning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "zz-local.yaml").write_text("services: {gpu: {port: 8001}}\nlog: {level: debug}\n")
    said(capsys, "config", "cpu.port", "8002")
    config = load(folder)
    assert ([unit.port for unit in config.units], config.log.level) == ([8001, 8002], "debug")


def test_a_faulty_local_file_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "zz-local.yaml").write_text("a: [\n")
    assert "repair or remove" in said(capsys, "config", "cpu.port", "8002", code=78)
    assert (folder / "zz-local.yaml").read_text() == "a: [\n"


def test_a_later_file_that_wins_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "zzz.yaml").write_text("units: {gpu: {port: 9}}\n")
    assert "zzz.yaml:1" in said(capsys, "config", "gpu.port", "8001")


def test_mode_of_the_local_file_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "config", "gpu.port", "1")
    (folder / "zz-local.yaml").chmod(0o600)
    said(capsys, "config", "gpu.port", "2")
    assert (folder / "zz-local.yaml").stat().st_mode & 0o777 == 0o600


def test_reading_sections_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "units.gpu.start_timeout = 1h\n" in said(capsys, "config", "gpu")
    assert json.loads(said(capsys, "config", "units.gpu.port", "--json")) == {"units.gpu.port": 0}
    assert said(capsys, "config", "gpu.env") == "{}\n"
    assert "models.path = /dev/null" in said(capsys, "config")
    assert "units are: gpu, cpu" in said(capsys, "config", "npu.port", code=2)


def test_help_lists_every_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", "--help"])
    assert caught.value.code == 0
    assert "units.NAME.restart.backoff_max" in capsys.readouterr().out


def test_check_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "configuration is good" in said(capsys, "check-config")
    assert said(capsys, "check-config", "-q") == ""
    for words in (("--print",), ("--print", "--all")):
        assert loads(said(capsys, "check-config", *words)) == load(folder)
    answer = json.loads(said(capsys, "check-config", "--json"))
    assert (answer["ok"], answer["units"]) == (True, ["gpu", "cpu"])


def test_check_config_of_a_faulty_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text("pd: {enabled: maybe}\nfoo: 1\n")
    assert said(capsys, "check-config", "-q", code=78).count("\n") == 2
    assert main(["check-config", "--json"]) == 78
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [(one["line"], one["column"], one["key"]) for one in problems] == [(1, 15, "pd.enabled"), (2, 1, "foo")]


def test_check_config_warns_of_what_this_host_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = folder / "keys"
    keys.write_text("secret")
    keys.chmod(0o644)
    (folder / "a.yaml").write_text(
        f"models: {{path: /no/such}}\nservices: {{conductor: {{api_keys_file: {keys}}}}}\n"
        "units: {gpu: {cpu: {affinity: '99998'}}, far: {role: cpu, backend: external, port: 1, api_key_file: /no}}\n"
    )
    assert main(["check-config"]) == 78, "the daemon would not start like this"
    told = capsys.readouterr().err
    for expected in ("/no/such does not exist", "open to everybody", "CPUs 99998 do not exist", "/no: No such file"):
        assert expected in told


def test_init_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--config", str(tmp_path / "new"))
    assert "wrote" in said(capsys, "init", *where)
    file = tmp_path / "new" / "syshax.yaml"
    first = file.read_text()
    file.write_text(first + "# mine\n")
    assert "is kept" in said(capsys, "init", *where)
    assert file.read_text().endswith("# mine\n")
    said(capsys, "init", "--force", *where)
    assert file.read_text() == first
    assert file.with_suffix(".yaml.old").read_text().endswith("# mine\n")
    assert load(tmp_path / "new").units


def test_init_of_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in said(capsys, "init", "--model", str(tmp_path / "x"), code=2)


KUNPENG = Topology(tuple(Node(i, frozenset(range(40 * i, 40 * i + 40))) for i in range(4)), ())
ONE_CPU = Topology((Node(0, frozenset((0,))),), ())


@pytest.mark.parametrize("engine", ["podman", "docker", ""])
@pytest.mark.parametrize("devices", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("brand", ["nvidia", "ascend"])
@pytest.mark.parametrize("topology", [KUNPENG, ONE_CPU], ids=["kunpeng", "one CPU"])
@pytest.mark.parametrize("with_model", [True, False])
def test_init_writes_a_good_file_for_any_host(
    tmp_path: Path, engine: str, devices: tuple[int, ...], brand: str, topology: Topology, with_model: bool
) -> None:
    nvidia, ascend = (devices, ()) if brand == "nvidia" else ((), devices)
    hardware = Hardware("Kunpeng-920", topology, nvidia, ascend, engine)
    config = loads(compose(hardware, str(tmp_path) if with_model else "", ""))
    assert [unit.role for unit in config.units] == [Role.ACCELERATOR, Role.CPU]
    uses_devices = config.units[0].kind == "vllm"
    assert uses_devices == (with_model and bool(devices) and bool(engine))


def test_hardware_is_found_by_its_device_nodes(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "davinci7", "davinci_manager"):
        (tmp_path / name).touch()
    found = find_hardware(tmp_path, KUNPENG)
    assert (found.nvidia, found.ascend, found.accelerator) == ((0, 1), (7,), "nvidia")
    assert found.cpu


def test_dispatch(capsys: pytest.CaptureFixture[str]) -> None:
    assert "syshax VERB" in said(capsys, "--help")
    assert all(verb.name in said(capsys, "help") for verb in VERBS)
    assert said(capsys, "chek-config", code=2) == (
        "syshax: unknown verb chek-config (did you mean check-config?); syshax --help lists them\n"
    )
    assert __version__ in said(capsys, "--version")
    assert json.loads(said(capsys, "version", "--json"))["version"] == __version__
    assert main([]) == 2


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: syshax {verb}" in capsys.readouterr().out


def test_interfaces_without_a_daemon_tells_the_configuration(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(f"control_socket: {folder}/none.sock\nunits: {{cpu: {{port: 8002}}}}\n")
    page = said(capsys, "interfaces")
    assert "the daemon does not run" in page
    assert "http://127.0.0.1:8010/v1/chat/completions" in page
    assert f"unix:{folder}/none.sock" in page
    answer = json.loads(said(capsys, "interfaces", "--json"))
    assert not answer["running"]
    assert {one["name"]: one["url"] for one in answer["interfaces"]}["cpu"] == "http://127.0.0.1:8002"


def test_a_faulty_configuration_does_not_keep_anyone_from_asking_the_daemon(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.yaml").write_text("pd: [\n")
    (folder / "b.yaml").write_text(f"control_socket: {folder}/none.sock\npd: 7\n")
    assert f"{folder}/none.sock" in said(capsys, "status", code=69)
