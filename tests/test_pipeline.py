"""The real thing: `dvc repro` of the smoke profile as a subprocess, then with changed values, then as experiments."""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from freezeasguard.settings.code import PLUMBING
from project import ROOT, commit, copy_project, dvc, ran, repro, run

ARMS = ("pretrained", "uce-before", "full", "uce", "freezeasguard", "random")
AT_THE_END = {"score@portraits", "tables", "figures", "report", "track"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke profile after its first `dvc repro`, every file that a stage opened on record."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    log = tmp_path_factory.mktemp("audit")
    paths = f"{ROOT / 'tests/audit'}:{folder / 'stages'}"
    first = repro(folder, PYTHONPATH=paths, STAGE_AUDIT=str(log), PYTHONDONTWRITEBYTECODE="1", FREEZEASGUARD_WARM="0")
    (folder / "first.json").write_text(json.dumps({"ran": first, "log": str(log)}))
    return folder


def tracked(project: Path) -> tuple[list[Any], list[Any]]:
    """MLflow's parent runs and the runs of cells."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("freezeasguard")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" for run in runs)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in children], children


def test_the_first_run_makes_everything_and_the_second_nothing(project: Path) -> None:
    first = json.loads((project / "first.json").read_text())["ran"]
    assert {f"generate@portraits-{arm}" for arm in ARMS} <= set(first) and "pretrain" not in first
    with (project / "reports/tables/table2.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows[1:]] == [
        [arm, side]
        for arm in ("Pre-trained model", "UCE before fine-tuning", "Full FT", "UCE", "FG-30%", "R-30%")
        for side in ("illegal", "legal")
    ]
    assert "with zeroed signal" in (project / "reports/tables/mask_diagnostics.md").read_text()
    assert (project / "reports/index.html").is_file() and (project / "reports/figures/samples-portraits.png").is_file()
    for arm in ("freezeasguard", "random"):
        protected = json.loads((project / f"data/protected/portraits/{arm}/protected.json").read_text())
        assert len(protected["frozen"]) == round(0.3 * 686)
    assert repro(project) == []


def covered(path: str, listed: set[str]) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in listed)


def test_every_file_that_a_stage_opened_is_declared(project: Path) -> None:
    """What the recorder saw against dvc.lock: data by its paths, code - dynamic imports too - by the settings file."""
    log = Path(json.loads((project / "first.json").read_text())["log"])
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    by_command = {block["cmd"]: (name, block) for name, block in lock.items()}
    seen = set()
    for file in log.glob("*.log"):
        header, *opened = file.read_text().splitlines()
        if not (command := re.search(r"-m (stages\..*)", header)):
            continue
        name, block = by_command[f"python -m {command.group(1)}"]
        stage = name.partition("@")[0]
        listed = {entry["path"] for key in ("deps", "outs", "metrics") for entry in block.get(key, [])}
        listed |= code_watched_by(project, listed) | {f"stages/{name}" for name in PLUMBING}
        allowed = {"params.yaml"}  # the machine's workers and device; the stage settings watches all of it
        allowed |= {"data/downloads", "data/checkpoints"}  # kept between runs, keyed by what they depend on
        if stage == "track":
            allowed |= {"mlflow.db", "mlflow.db.lock", "mlruns"}  # the mirror: its state is asked run by run
        for path in opened:
            path = re.sub(r"__pycache__/(\w+)\.cpython-\d+(\.opt-\d)?\.pyc.*$", r"\1.py", path)
            hidden = re.sub(r"/\.([\w.-]+?)\.\d+\.(tmp|old)", r"/\1", path)  # a temporary name beside its file
            if (project / path).is_dir() or "egg-info" in path or path.startswith((".git", ".dvc")):
                continue
            if settings_only(path) or only_a_docstring(path):
                continue
            if "/" not in path and not (project / path).exists():
                continue  # a name below an open folder, as `shutil.rmtree` opens it
            assert covered(hidden, listed | allowed), f"{name} opened {path}, which it does not declare"
        seen.add(name)
    assert seen == set(lock) - {"pretrain"}  # frozen: it never ran


def code_watched_by(project: Path, listed: set[str]) -> set[str]:
    """The modules whose digests stand in the settings file that a stage watches."""
    files = [path for path in listed if re.fullmatch(r"data/settings/.*\.json", path)]
    return {f"stages/{name}" for file in files for name in json.loads((project / file).read_text())["code"]}


def only_a_docstring(path: str) -> bool:
    """A package's own file, which says what the package is and holds no code."""
    return path.endswith("__init__.py") and len(ast.parse((ROOT / path).read_text()).body) <= 1


def settings_only(path: str) -> bool:
    """Modules that the settings' own code imports, to check names: idle in every stage but `settings`, which watches
    all code; where a stage does more than read a name, its closure holds them."""
    library = "stages/freezeasguard"
    alone = ("settings/", "arms.py", "data/names.py", "protections/registry.py", "reading.py")
    idle = tuple(f"{library}/{name}" for name in alone)
    names = path.startswith(f"{library}/scores/") and not path.startswith(f"{library}/scores/networks/")
    return path.endswith(".py") and (names or path.startswith(idle))


def test_metrics_are_a_screenful_and_plots_are_listed(project: Path) -> None:
    shown = json.loads(dvc(project, "metrics", "show", "--json").partition("\n")[0])
    files = shown[""]["data"] if "" in shown else shown["workspace"]["data"]["files"]
    assert list(files) == ["reports/metrics.json"]
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert set(metrics["portraits"]) == {"full", "uce", "freezeasguard", "random"}
    assert set(metrics["portraits"]["random"]) >= {"illegal", "legal", "gap"}


def test_a_fresh_clone_prints_draws_and_tracks_whatever_its_lock_says(project: Path) -> None:
    """Git brings dvc.lock and the reports; what they say is up to date was never shown or logged on this machine."""
    for name in ("data/rendered", "mlflow.db", "data/tracked.json"):
        path = project / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            file.unlink()
    out = dvc(project, "repro")
    assert set(ran(out)) == {"tables", "figures", "report", "track"}
    assert "FG-30%" in out
    parents, children = tracked(project)
    assert len(parents) == 1 and len(children) == len(ARMS)
    assert repro(project) == []


def test_changed_values_rerun_what_they_must_and_going_back_nothing(project: Path) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("rho: 0.3", "rho: 0.5"))
    again = repro(project)
    cells = [f"{stage}@portraits-{arm}" for stage in ("protect", "adapt", "generate") for arm in ARMS[4:]]
    assert sorted(again) == sorted({"settings", *cells, *AT_THE_END})

    parents, children = tracked(project)
    names = sorted(run.data.tags["mlflow.runName"] for run in children)
    # Arms that do not depend on rho keep their one run; the two others have one a value.
    assert len(parents) == 2 and len(names) == len(ARMS) + 2
    out = run([sys.executable, "-m", "stages.track"], project)
    assert "0 runs logged, 6 known" in out

    # Going back restores every cell from DVC's run cache: nothing is trained or scored again, only told again, and
    # MLflow has no second run of it.
    params.write_text(before)
    assert set(repro(project)) == AT_THE_END - {"score@portraits"}
    assert [len(runs) for runs in tracked(project)] == [2, len(ARMS) + 2]


def test_experiments_rerun_what_they_must_and_are_collected(project: Path) -> None:
    commit(project)
    learned = [f"{stage}@portraits-freezeasguard" for stage in ("protect", "adapt", "generate")]
    out = dvc(project, "exp", "run", "-S", "mask.preset=paper", "-n", "paper")
    assert sorted(ran(out)) == sorted({"settings", "relearn@portraits", *learned, *AT_THE_END})
    protected = json.loads((project / "data/protected/portraits/freezeasguard/protected.json").read_text())
    assert protected["settings"]["user_lr"] == 1e-5 and protected["settings"]["users"] == "joint"
    run(["git", "checkout", "-q", "."], project)
    dvc(project, "checkout", "-q")

    # A queue of seeds and roles, as a study runs: elsewhere, with the models and the one database.
    dvc(project, "exp", "run", "--queue", "-S", "seed=1", "-S", "roles=given,swapped")
    log = dvc(project, "exp", "run", "--run-all", "--jobs", "1")
    assert "failed" not in log.lower(), log
    queued = [ran(file.read_text()) for file in sorted((project / ".dvc/tmp/exps/run").glob("*/*.out"))]
    seeded, swapped = sorted((set(names) for names in queued), key=len, reverse=True)
    # A seed reruns all that is drawn, and nothing else; swapped roles rerun the case, and share what came before it.
    drawn = {f"{stage}@portraits" for stage in ("crawl", "split", "encode", "reference", "relearn", "score")}
    drawn |= {f"protect@portraits-{arm}" for arm in ("uce", "freezeasguard", "random")}
    drawn |= {f"{stage}@portraits-{arm}" for stage in ("adapt", "generate") for arm in ARMS}
    assert drawn <= seeded and not {"fetch@tiny-1.5", "pretrain", "protect@portraits-full"} & seeded
    assert "encode@portraits" in swapped and "adapt@portraits-full" in swapped
    assert not {f"{stage}@portraits" for stage in ("crawl", "caption", "split")} & swapped
    assert "protect@portraits-random" not in swapped
    out = run([str(Path(sys.executable).parent / "freezeasguard"), "collect"], project)
    with (project / "reports/study/cells.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["profile"] != "study"]  # that one came with git
    found = {(row["seed"], row["roles"], row["preset"]) for row in rows}
    assert found == {
        ("0", "given", "freezeasguard"),
        ("0", "given", "paper"),
        ("1", "given", "freezeasguard"),
        ("1", "swapped", "freezeasguard"),
    }
    classes = {row["roles"]: row["classes"] for row in rows if (row["seed"], row["side"]) == ("1", "illegal")}
    legal = {row["roles"]: row["classes"] for row in rows if (row["seed"], row["side"]) == ("1", "legal")}
    assert classes["given"] == legal["swapped"] and classes["swapped"] == legal["given"]
    assert "R-30%" in out
    parents, _ = tracked(project)
    assert {(r.data.tags["seed"], r.data.tags["roles"]) for r in parents} >= {("1", "given"), ("1", "swapped")}
