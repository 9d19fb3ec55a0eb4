"""Files to one configuration, or every fault at once."""

from __future__ import annotations

import dataclasses
import enum
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.config import embedded_default, find_source, load, loads, read
from syshaxd.config.embedded import remove_private_pool
from syshaxd.config.emit import emit, with_defaults
from syshaxd.config.types import Config
from syshaxd.errors import ConfigError
from syshaxd.model.unit import BackendKind, Role

from .mistakes import GOOD, MISTAKES, complaints
from .strategies import configurations

HERE = Path(__file__).parent
ETC = Path(__file__).resolve().parents[3] / "etc"


def golden() -> dict[str, str]:
    """The kept complaints by name of the mistake."""
    sections = (HERE / "mistakes.golden").read_text(encoding="utf-8").split("== ")[1:]
    return {name: said.strip() for name, _, said in (section.partition("\n") for section in sections)}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_told_as_recorded(name: str) -> None:
    assert complaints(MISTAKES[name]) == golden()[name]


def test_at_least_sixty_mistakes_are_recorded() -> None:
    assert len(golden()) >= 60
    assert list(golden()) == list(MISTAKES)


def test_every_fault_has_a_place_and_one_line() -> None:
    for name, said in golden().items():
        for line in said.splitlines():
            assert line.startswith("syshax.yaml"), f"{name}: {line}"


def write(folder: Path, **texts: str) -> Path:
    """Files named like the arguments."""
    for name, text in texts.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(text)
    return folder


def test_main_file_first_then_by_name_lists_replace_and_sections_merge(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="units: {cpu: {command: [a]}}\nlog: {level: error}\n",
        syshax="models: {path: /m.gguf}\nunits: {cpu: {command: [x, z], port: 8002}}\nlog: {access: false}\n",
        b="log: {level: debug}\npd:\n",
    )
    config = load(tmp_path)
    unit = config.units[0]
    assert (unit.command, unit.port) == (("a",), 8002)
    assert (config.log.level, config.log.access) == ("debug", False)


def test_faults_of_all_files_are_told_together_in_reading_order(tmp_path: Path) -> None:
    write(tmp_path, syshax="log: {level: loud}\n", a="pd: {enabled: yes}\nx: [a\n", b=GOOD + "monitor: {interval: x}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    places = [(Path(one.file).name, one.line) for one in caught.value.problems]
    assert places == [("syshax.yaml", 1), ("a.yaml", 1), ("a.yaml", 2), ("b.yaml", 3)]


def test_another_file_may_use_the_other_spelling(tmp_path: Path) -> None:
    write(tmp_path, syshax="models: {path: /m}\nunits: {gpu: {port: 1}}\n", z="services: {gpu: {port: 8001}}\n")
    assert load(tmp_path).units[0].port == 8001


def test_empty_folder_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="syshax init"):
        load(tmp_path)


def test_unreadable_paths_are_faults(tmp_path: Path) -> None:
    (tmp_path / "syshax.yaml").mkdir()
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(ConfigError, match="can't be read"):
            load(path)


def test_a_pipe_or_a_device_in_the_folder_is_a_fault_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}/x.yaml: can't be read: it is no regular file",
        f"{tmp_path}/y.yaml: can't be read: it is no regular file",
    ]


def test_yml_files_are_warned_about(tmp_path: Path) -> None:
    write(tmp_path, syshax=GOOD)
    (tmp_path / "gpu.yml").write_text("")
    assert "is not read" in str(read(tmp_path).warnings[0])


def test_values_get_their_units_and_numbers_stay_text_where_text_is_asked_for() -> None:
    config = loads(
        "models: {default: 7.10, path: /m}\nlimits: {queue_timeout: 500ms}\npd: {pool_size: 64m}\n"
        "units: {cpu: {env: {OMP_NUM_THREADS: 160, V: 1.10, B: true}, args: [--port, 8001], device_ids: []}}\n"
    )
    assert config.model_name == "7.10"
    assert config.limits.queue_timeout == 0.5
    assert config.pd.pool_size == 64 << 20
    assert config.units[0].env == {"OMP_NUM_THREADS": "160", "V": "1.10", "B": "true"}
    assert config.units[0].extra_args == ("--port", "8001")


def test_what_a_unit_leaves_out_is_inferred() -> None:
    config = loads(
        "models: {default: ds, path: /m}\nservices: {gpu: {}, cpu: {model_path: /own, served_name: other}}\n"
        "units: {far: {role: accelerator, kind: openai, backend: external, host: '::1', port: 9000}}\n"
    )
    gpu, cpu, far = config.units
    assert (gpu.role, gpu.model_path, gpu.served_name) == (Role.ACCELERATOR, "/m", "ds")
    assert (cpu.role, cpu.model_path, cpu.served_name) == (Role.CPU, "/own", "other")
    assert (far.url, far.model_path, far.kind, far.backend) == (
        "http://[::1]:9000", "", "openai", BackendKind.EXTERNAL,
    )  # fmt: skip


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        loads(GOOD).model_name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("path", [ETC, *sorted((ETC / "examples").glob("*.yaml"))], ids=lambda path: path.name)
def test_shipped_files_are_good(path: Path) -> None:
    assert load(path).units


@pytest.mark.parametrize("cpus", [[0], [0, 1], list(range(3, 12)), list(range(0, 160, 2))])
def test_embedded_default_is_good_and_keeps_cpus_apart(cpus: list[int]) -> None:
    config = loads(embedded_default(Path("/srv/sysHAX"), cpus))
    assert [unit.role for unit in config.units] == [Role.ACCELERATOR, Role.CPU]
    assert all((unit.cpu.affinity == "none") == (len(cpus) < 2) for unit in config.units)


def test_only_an_empty_folder_of_a_checkout_is_removed(tmp_path: Path) -> None:
    own = f"syshax-{os.getuid()}"
    for name in ("syshax", f"{own}-1234", f"{own}-5678"):
        (tmp_path / name).mkdir()
    (tmp_path / f"{own}-5678/cpu.pool").touch()
    for name in (*os.listdir(tmp_path), f"{own}-gone"):
        remove_private_pool(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["syshax", f"{own}-5678"]


def test_embedded_default_of_a_deep_checkout_has_a_usable_socket() -> None:
    config = loads(embedded_default(Path("/srv/" + "deep/" * 30)))
    assert len(config.control_socket) < 100


def test_source_order(tmp_path: Path) -> None:
    write(tmp_path, syshax=GOOD)
    assert str(find_source("given", {"SYSHAX_CONFIG": "env"})) == "given"
    assert str(find_source(None, {"SYSHAX_CONFIG": "env"})) == "env"
    assert str(find_source(None, {}, str(tmp_path))) == str(tmp_path)
    fresh = find_source(None, {}, str(tmp_path / "absent"))
    assert fresh.load().model_name == "syshax-demo"


def same(one: Config, other: Config) -> bool:
    """Equality, with the difference shown by pytest where there is one."""
    assert plain(one) == plain(other)
    return True


def plain(value: Any) -> Any:
    """Dataclasses as dicts."""
    simple = dataclasses.asdict(value)
    return {key: item.value if isinstance(item, enum.Enum) else item for key, item in simple.items()}


@pytest.mark.parametrize("shape", [lambda root: root, with_defaults], ids=["written", "all"])
@settings(deadline=None, max_examples=40)
@given(text=configurations())
def test_print_reads_as_the_same_configuration(shape: Callable[[Any], Any], text: str) -> None:
    from syshaxd.config.load import Document, interpret

    loaded = interpret([Document("a", text.encode())])
    for origins in (False, True):
        assert same(loads(emit(shape(loaded.root), origins)), loaded.config)


MANGLED = st.lists(
    st.one_of(
        st.sampled_from(list(MISTAKES.values())).flatmap(lambda text: st.sampled_from(text.splitlines(True) or [""])),
        st.text(alphabet=st.sampled_from("{}[],:#&*!|>'\"%@`-? \t\nab01.yY~<\\xuU\ud800\ufeff\x00"), max_size=30),
        st.text(max_size=20),
    ),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=MANGLED)
def test_no_text_makes_the_loader_raise_anything_else(text: str) -> None:
    complaints(text)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=200))
def test_no_bytes_make_the_loader_raise_anything_else(data: bytes) -> None:
    from syshaxd.config.load import Document, interpret

    try:
        interpret([Document("bytes", data)])
    except ConfigError as err:
        assert err.problems


@settings(deadline=None, max_examples=200)
@given(name=st.sampled_from(sorted(MISTAKES)), where=st.integers(0, 300), junk=st.text(max_size=3))
def test_no_mangled_file_makes_the_loader_raise_anything_else(name: str, where: int, junk: str) -> None:
    text = MISTAKES[name]
    complaints(text[:where] + junk + text[where + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]\n",
        'a: "\\UFFFFFFFF"',
        'a: "\\ud800"',
        "a: " + "9" * 6000,
        "%YAML " + "9" * 6000 + ".1\n---\na: 1",
        "? {a: b}\n: c",
        "? *x\n: c",
        "a" * (1024 * 1024 + 1),
        "\ufeffmodels: {}",
    ],
    ids=range(12),
)
def test_hostile_texts_are_refused_quickly(text: str) -> None:
    assert complaints(text)
