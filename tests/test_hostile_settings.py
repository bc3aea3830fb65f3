"""params.yaml of any content: sensible values, or one line that says why not; and nothing of it reaches a shell."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.commands import machine
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.origins import origins
from freezeasguard.settings.params import Params, load_params, parse_params
from freezeasguard.settings.profiles import check_cells, profile_names, profile_text, update_params, write_profile
from freezeasguard.settings.reading import MAX_BYTES, parse_yaml, read_yaml
from project import copy_project

PATH = Path("params.yaml")
SMOKE = parse_yaml(profile_text("smoke"), PATH)
COMMIT = "0123456789" * 4
PYDANTIC = ("Input should", "valid", "String should", "Field required", "pattern", "Value error", "type=")


def changed(**values: Any) -> dict[str, Any]:
    """The profile smoke's values, with dotted keys (by __) changed."""
    found = copy.deepcopy(SMOKE)
    for key, value in values.items():
        *path, last = key.split("__")
        block: Any = found
        for part in path:
            block = block[part]
        block[last] = value
    return found


def refusal(values: Any) -> str:
    with pytest.raises(FreezeAsGuardError) as error:
        parse_params(values, PATH)
    said = str(error.value)
    assert "\n" not in said and said.startswith("params.yaml") and not any(word in said for word in PYDANTIC), said
    return said


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generate__guidance_scale", float("inf"), "is inf; a number must be finite"),
        ("generate__guidance_scale", 1e4, "must be at most 100"),
        ("rho", float("nan"), "rho is nan; a number must be finite"),
        ("rho", True, "rho is True: must be a number"),
        ("adapt__lr", 1e300, "adapt.lr is 1e+300: must be at most 100"),
        ("adapt__lr", 0, "adapt.lr is 0: must be at least 1e-12"),
        ("mask__temperature", 1e-320, "mask.temperature is 1e-320: must be at least 0.001"),
        ("mask__mask_lr", -1, "must be at least"),
        ("seed", 2**64, "more than 63 bits"),
        ("seed", 2**63, "more than 63 bits"),
        ("seed", 10**1000, "more than 63 bits"),
        ("seed", -1, "seed is -1: must be at least 0"),
        ("seed", 0.5, "seed is 0.5: must be a whole number"),
        ("adapt__steps", 10**12, "must be at most 1000000"),
        ("adapt__steps", None, "adapt.steps is None: must be a whole number"),
        ("adapt__flip", "perhaps", "must be true or false"),
        ("generate__steps", 1001, "must be at most 1000"),
        ("workers", 0, "workers is 0: must be at least 1"),
        ("workers", 10**6, "must be at most 256"),
        ("device", "tpu", "choose from 'auto', 'cpu' or 'cuda'"),
        ("cases__portraits__table", -1, "must be above 0"),
        ("cases__portraits__illegal", "mira", "cases.portraits.illegal is 'mira': must be a whole number"),
        ("cases__portraits__illegal", [], "cases.portraits.illegal is []: needs at least 1 entries"),
        ("cases__portraits__arms", "full", "cases.portraits.arms is 'full': must be a list"),
        ("cases__portraits__guide", ["a"], "must be a text"),
        ("domains", [], "domains is []: must be a block of keys"),
        ("domains__portraits", None, "domains.portraits is None: must be a block of keys"),
        ("mask__of_profile", ["x"], "must be a block of keys"),
        ("mask__preset", ["paper"], "mask.preset is ['paper']: choose from"),
        ("methods", {"nothing": {"x": 1}}, "methods.nothing is the block of no registered method"),
    ],
)
def test_a_value_out_of_range_or_of_another_kind_is_named(key: str, value: Any, said: str) -> None:
    assert said in refusal(changed(**{key: value}))


@pytest.mark.parametrize("revision", ["main", "v1.0", "abc", "0" * 39, "0" * 41, "A" * 40, COMMIT + "\n", ""])
def test_a_revision_is_a_commit(revision: str) -> None:
    model = {"repo": "someone/sd", "revision": revision}
    assert "revision" in refusal(changed(models={"tiny-1.5": model}))
    data = {"source": "hf", "hf": {"repo": "someone/faces", "class_name": "a", "revision": revision}}
    assert "revision" in refusal({**SMOKE, "domains": {**SMOKE["domains"], "more": data}})
    if revision == "main":
        assert "must be a commit of the hub, 40 digits" in refusal(changed(models={"tiny-1.5": model}))
    assert parse_params(changed(models={"tiny-1.5": {**model, "revision": COMMIT}}), PATH)


# --- names and paths --------------------------------------------------------------------------------------

EVIL = ["a;touch X", "../x", "", "a\nb", "x" * 300, "$(id)", "-rf", "a b", "a/b", "`id`", "a|b", "a\\b", "é", "a\x00"]


@pytest.mark.parametrize("name", EVIL)
def test_no_name_reaches_a_command_or_a_path(name: str) -> None:
    for block in ("domains", "models", "cases"):
        values = changed()
        values[block][name] = next(iter(values[block].values()))
        refusal(values)
    refusal(changed(profile=name))
    refusal(changed(methods={name: {}}))
    for key in ("domain", "model"):
        refusal(changed(**{f"cases__portraits__{key}": name}))
    for arm in (name, f"random-{name}", f"random-draw{'1' * 50}", "random-draw1000"):
        refusal(changed(cases__portraits__arms=["pretrained", "full", arm]))
    if name not in ("a b", "é"):  # letters of any script, and blanks, become a folder of their own
        refusal(changed(cases__portraits__illegal=[name]))
        refusal({**SMOKE, "domains": {"d": {"source": "crawl", "crawl": {"engine": "bing", "classes": {name: {}}}}}})
    refusal(changed(models={"tiny-1.5": {"repo": name if "/" not in name else "../x", "revision": COMMIT}}))


@pytest.mark.parametrize("path", ["https://example.org/x", "remote://a/b", "s3://a", "${item.arm}", "", ".", "a\nb"])
def test_a_models_path_that_dvc_watches_is_one_on_this_machine(path: str) -> None:
    assert "path" in refusal(changed(models={"tiny-1.5": {"path": path}}))
    assert parse_params(changed(models={"tiny-1.5": {"path": "../models/sd"}}), PATH)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=70) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,61}", fullmatch=True))
def test_names_that_pass_mean_nothing_to_a_shell(name: str) -> None:
    values = changed()
    values["cases"][name] = values["cases"]["portraits"]
    try:
        parse_params(values, PATH)
    except FreezeAsGuardError as error:
        assert "\n" not in str(error)
    else:
        assert name.isascii() and len(name) <= 60 and name[0].isalnum()
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.parametrize("where", ["params.yaml", "data/cells.json"])
def test_dvc_runs_no_command_with_a_name_of_a_file_edited_by_hand(tmp_path: Path, where: str) -> None:
    folder = copy_project(tmp_path / "project")
    text = (folder / where).read_text()
    if where == "params.yaml":
        values = text.replace("\n  portraits:\n    source:", "\n  a;touch X:\n    source:", 1)
    else:
        values = text.replace('"model": "tiny-1.5"', '"model": "tiny-1.5;touch X"')
    assert values != text
    (folder / where).write_text(values)
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0 and re.findall(r"Running stage '(.+)'", done.stdout) == ["settings"], done
    assert ("domains.a;touch X is no key there" if where == "params.yaml" else "does not match") in done.stderr
    assert not list(folder.rglob("X"))


# --- the file -------------------------------------------------------------------------------------------


def bomb(levels: int, merge: bool = False) -> str:
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [lol, lol]"]
    for i in range(1, levels):
        twice = f"*a{i - 1}, *a{i - 1}"
        lines.append(f"a{i}: &a{i} {{<<: [{twice}]}}" if merge else f"a{i}: &a{i} [{twice}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(40), "holds over 20000 values"),
        (bomb(40, merge=True), "holds over 20000 values"),
        ("a: &a [*a]", "holds over 20000 values"),
        ("x: &x " + "y" * 4000 + "\nl: [" + "*x, " * 2000 + "]", "holds over 20000 values"),
        ("[" * 200_000, "nests more than 20 deep"),
        ("{a: " * 50_000, "nests more than 20 deep"),
        ("- " * 100_000, "nests more than 20 deep"),
        ("a" * (MAX_BYTES + 1), "has more than 262144 bytes"),
        ("seed: 1\nseed: 2", 'found duplicate key "seed"'),
        ("1: x", "has the key 1, which is no text; quote it"),
        ("? [a]\n: x", "is no text; quote it"),
        ("rho: !!python/object/apply:os.system ['touch X']", "could not determine a constructor"),
        ("rho: !secret x", "could not determine a constructor"),
        ("rho: !!binary aGVsbG8=", "rho is a bytes"),
        ("rho: !!set {a}", "rho is a set"),
        ("rho: 2020-01-01", "rho is a date"),
        ("rho: .nan", "rho is nan"),
        ("rho: 1e999", "rho is inf"),
        (f"rho: {'9' * 5000}", "no YAML that can be read"),
        ("rho: 2001-99-99", "no YAML that can be read"),
        ("a: 1\n---\nb: 2", "found another document"),
        ("a: [", "no YAML that can be read"),
        ("a: *nobody", "found undefined alias"),
        ("a: \x07", "no YAML that can be read"),
        ("", "holds no mapping"),
        ("just text", "holds no mapping"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (None, "is missing; run `freezeasguard profile tiny`, or change"),
        ("folder", "cannot be read"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused_at_once_by_every_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content == "folder":
        PATH.mkdir()
    elif content is not None:
        PATH.write_bytes(content.encode() if isinstance(content, str) else content)
    readers = (load_params, origins, machine, lambda: read_yaml(PATH), lambda: update_params(PATH, {"seed": 1}))
    for reader in readers:
        start = time.process_time()
        with pytest.raises(FreezeAsGuardError) as error:
            reader()
        assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1000
        assert time.process_time() - start < 1
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["params.yaml"])


def test_the_machine_is_read_and_checked_though_other_keys_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    PATH.write_text("workers: 2\ndevice: cpu\nrhoo: 1\n")
    assert machine() == ("cpu", 2)
    for text, said in (
        ("workers: 0", "workers is 0"),
        ("workers: -1", "workers is -1"),
        ("workers: 2\ndevice: gpu", "device is 'gpu': choose from"),
        ("device: cpu", "workers is missing"),
    ):
        PATH.write_text(text)
        with pytest.raises(FreezeAsGuardError, match=f"params.yaml: {said}"):
            machine()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**62, max_value=2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "x" * 6000, "a\nb", "\ud800", "../x", "${a}", "full", "paper", 1e-320, float("nan"), b"b"]),
)
THINGS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner)
)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within."""
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield (*path, key)
        yield from places(values[key], (*path, key))


# Besides the profile's keys, those that it leaves at their defaults.
WHOLE = parse_params(SMOKE, PATH).model_dump(mode="json")
PLACES = sorted(set(map(repr, places(WHOLE))))
BY_REPR = {repr(place): place for place in places(WHOLE)}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(st.sampled_from(PLACES), THINGS), min_size=1, max_size=2))
def test_any_mutation_is_read_back_the_same_or_refused_in_one_line(mutations: list[tuple[str, Any]]) -> None:
    values = copy.deepcopy(WHOLE)
    for place, thing in mutations:
        *path, last = BY_REPR[place]
        block: Any = values
        try:
            for part in path:
                block = block[part]
            block[last] = thing
        except (TypeError, KeyError, IndexError):  # an earlier mutation took the place away
            continue
    try:
        params = parse_params(values, PATH)
    except FreezeAsGuardError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 3000 and not any(word in said for word in PYDANTIC[:4]), said
    else:
        told = json.dumps(params.model_dump(mode="json"), allow_nan=False)
        assert Params.model_validate(json.loads(told)) == params
        told.encode()


@example(894, 0, "\t")  # the parser that keeps comments refuses more than the other
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 4000), st.integers(0, 30), st.text(max_size=8) | st.sampled_from(["&a ", "*a", "[", "{", "!!", "\t"])
)
def test_any_edit_of_the_text_is_taken_or_refused_and_nothing_is_half_written(
    tmp_path: Path, at: int, gone: int, new: str
) -> None:
    path, cells = tmp_path / "params.yaml", tmp_path / "data/cells.json"
    text = profile_text("smoke")
    content = (text[:at] + new + text[at + gone :]).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    cells.unlink(missing_ok=True)
    try:
        load_params(path)
        update_params(path, {"seed": 5})
    except FreezeAsGuardError as error:
        assert "\n" not in str(error)
        assert path.read_bytes() == content and not cells.exists()
    else:
        found = load_params(path)
        check_cells(found, cells)
        assert found.seed == 5
    assert {p.name for p in tmp_path.rglob("*")} <= {"params.yaml", "data", "cells.json"}


# --- a profile over an edited file ----------------------------------------------------------------------


def test_a_profile_keeps_an_edited_file_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in profile_names():  # over nothing, and over each other
        assert write_profile(name) is None
    edits = []
    for number, name in enumerate(("params.yaml.bak", "params.yaml.bak2")):
        PATH.write_text(PATH.read_text() + f"# mine, {number}\n")
        edits.append(PATH.read_text())
        said = CliRunner().invoke(cli, ["profile", "smoke"]).output
        assert f"your edited params.yaml is kept as {name}" in said
    PATH.write_text(edits[0])
    assert write_profile("tiny") == Path("params.yaml.bak")  # that copy is there already
    assert [Path(f"params.yaml.bak{n}").read_text() for n in ("", "2")] == edits
    assert sorted(p.name for p in Path().iterdir()) == ["data", "params.yaml", "params.yaml.bak", "params.yaml.bak2"]
    assert PATH.read_text() == profile_text("tiny")


def test_a_profile_over_what_git_has_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile("smoke")
    PATH.write_text(PATH.read_text() + "# committed\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "params.yaml"], [*who, "commit", "-qm", "edit"]):
        subprocess.run(["git", *command], check=True)
    assert write_profile("tiny") is None and not list(Path().glob("*.bak*"))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"more": {}}, "more does not match"),
        ({"cells": []}, "cells does not match"),
        ({"fetched": {"tiny-1.5": {"watch": "https://x"}}}, "fetched does not match .*tiny-1.5"),
        ({"protected": {"a\nb": {}}}, r"protected does not match .*a\\nb"),
    ],
)
def test_cells_of_any_other_content_are_refused(tmp_path: Path, cells: dict[str, Any], said: str) -> None:
    path, file = tmp_path / "params.yaml", tmp_path / "data/cells.json"
    write_profile("smoke", path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **cells}))
    with pytest.raises(FreezeAsGuardError, match=said) as error:
        check_cells(load_params(path), file)
    assert "\n" not in str(error.value)
