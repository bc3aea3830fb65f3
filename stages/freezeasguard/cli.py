"""The `freezeasguard` command: profiles, checks, gates."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:
    from freezeasguard.settings.params import Case, Params
    from freezeasguard.users.tuning import Task

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


class Width(StrEnum):
    """Of a rehearsal's networks."""

    FULL = "full"
    SMALL = "small"


@cli.command()
def profile(
    name: Annotated[str | None, typer.Argument(help="Its name; without one, the list.")] = None,
    allow_explicit: Annotated[
        bool, typer.Option("--allow-explicit", help="With the cases that fetch, generate and score explicit images.")
    ] = False,
) -> None:
    """Replace params.yaml, and the cells in data/cells.json, by a profile."""
    from freezeasguard.settings.profiles import explicit_domains, profile_names, write_profile

    if name is None:
        print("\n".join(profile_names()))
        return
    copy = write_profile(name, allow_explicit=allow_explicit)
    kept = f"; your edited params.yaml is kept as {copy}" if copy else ""
    print(f"params.yaml now holds the profile {name}; `git diff` shows what changed{kept}")
    if explicit := explicit_domains(name):
        shown = f"explicit images (domain {', '.join(explicit)})"
        print(
            f"it fetches and generates {shown}" if allow_explicit else f"without {shown}: --allow-explicit puts them in"
        )


@cli.command()
def cells() -> None:
    """Derive data/cells.json from the cases of params.yaml again, e.g. after editing a case's arms."""
    from freezeasguard.settings.profiles import write_cells

    write_cells()


@cli.command()
def check(
    short: Annotated[bool, typer.Option("--short", help="Only what will run, not every resolved setting.")] = False,
) -> None:
    """Check params.yaml, its cells, and what they need here; say what will run, and where each setting came from."""
    from freezeasguard.checks import look
    from freezeasguard.settings.origins import origins
    from freezeasguard.settings.params import load_params
    from freezeasguard.settings.profiles import check_cells

    params = load_params()
    check_cells(params)
    shown = f"rho {params.rho:g}, seed {params.seed}, roles {params.roles}, mask preset {params.mask.preset}"
    print(f"profile {params.profile}: {shown}, {len(params.cells)} cells")
    for name, case in params.cases.items():
        print(f"  {name} (Table {case.table}): {', '.join(case.arms)}")
    found = [] if short else origins()
    widths = [max((len(str(row[column])) for row in found), default=0) for column in (0, 1)]
    for key, value, origin in found:
        print(f"{key:<{widths[0]}}  {value!s:<{min(widths[1], 40)}}  {origin}")
    wrong, later = look(params)
    for line in later:
        print(f"not known yet: {line}")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


@cli.command()
def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages, as `dvc repro` takes them; none: all.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages at once on a node; the executor says otherwise.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, gpus, slurm, or a YAML file of your own.")] = "local",
    set_param: Annotated[
        list[str] | None,
        typer.Option("--set-param", "-S", help="KEY=VALUE[,VALUE...], as `dvc exp run -S`: an experiment each."),
    ] = None,
) -> None:
    """Run what `dvc repro` would run, stages side by side, on this machine or a cluster (Parsl); -S: experiments."""
    if set_param:
        from freezeasguard.running.grid import run_grid

        file = Path(executor)
        given = ["--executor", str(file.resolve()) if file.suffix in (".yaml", ".yml") else executor]
        given += ["--jobs", str(jobs)] if jobs else []
        ended = run_grid(Path(), set_param, targets or [], given)
        print(
            f"{sum(ended.values())} of {len(ended)} experiments ended well; `freezeasguard collect` gathers their cells"
        )
        if failed := [name for name, well in ended.items() if not well]:
            raise FreezeAsGuardError(
                f"some experiments failed: {', '.join(failed)}; the same command goes on with them"
            )
        return
    from freezeasguard.running.run import run_stages

    outcome = run_stages(Path(), targets or [], executor, jobs)
    print(f"{len(outcome.ran)} stages ran, {len(outcome.kept)} were as they are to be")
    if outcome.failed:
        lines = [f"{name}: {why} (see .dvc/tmp/freezeasguard/logs/{name}.log)" for name, why in outcome.failed.items()]
        lines += [f"{name} was left out: it stands on {other}" for name, other in outcome.left.items()]
        raise FreezeAsGuardError("\n".join(["some stages failed", *lines]))


@cli.command()
def plan(
    tflops: Annotated[
        float | None, typer.Option(min=1e-3, help="Sustained TFLOP/s of your device, in the place of the stated ones.")
    ] = None,
) -> None:
    """What params.yaml will cost: cells, estimated hours, disk and GPU memory of every stage, and what to fetch."""
    from freezeasguard.plan import lines
    from freezeasguard.settings.params import load_params

    for line in lines(load_params(), tflops):
        print(line)


@cli.command()
def fetch() -> None:
    """Bring every model, archive, data set and weight file that params.yaml needs; what is here is only checked."""
    from freezeasguard.fetching import fetch_all
    from freezeasguard.settings.params import load_params

    wrong = fetch_all(load_params(), print)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


@cli.command()
def collect(
    readme: Annotated[bool, typer.Option("--readme", help="Put the findings into README.md as well.")] = False,
) -> None:
    """Gather the cells of all DVC experiments into reports/study/cells.csv, average them, and say what they found."""
    from freezeasguard.commands import REPORTS
    from freezeasguard.reports.beside import beside
    from freezeasguard.reports.collect import collect_cells
    from freezeasguard.reports.evidence import write_evidence
    from freezeasguard.reports.findings import write_findings
    from freezeasguard.reports.study import write_study_tables
    from freezeasguard.settings.params import load_params

    cells = collect_cells(Path(), load_params().profile)
    written = write_study_tables(cells)  # first: it makes the folder anew
    written += write_findings(cells, Path("README.md") if readme else None, beside(REPORTS)) + write_evidence(cells)
    for path in written:
        print(f"\n{path}\n\n{path.read_text()}")


@cli.command()
def tune(
    cases: Annotated[list[str] | None, typer.Argument(help="Cases of params.yaml; none: all.")] = None,
    lr: Annotated[str, typer.Option(help="Learning rates, with commas.")] = "1e-4,2e-4,5e-4",
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "30,60,90",
) -> None:
    """Find how a case's users train best - full fine-tuning, held-out images, the score - into reports/tuning/CASE."""
    from freezeasguard.commands import REPORTS
    from freezeasguard.scores.registry import SCORES
    from freezeasguard.settings.params import load_params
    from freezeasguard.users.tuning import best, best_by_score
    from freezeasguard.users.tuning import tune as tune_case

    params = load_params()
    rates, numbers = ([kind(text) for text in given.split(",")] for kind, given in ((float, lr), (int, steps)))
    for name in cases or list(params.cases):
        task = _task(params, name, judged=True)
        runs = tune_case(task, rates, numbers, REPORTS / "tuning" / name, params.workers)
        found, count = best(runs)
        for side, judge in task.judge.names.items():
            mine, score = [run for run in runs if run.side == side], SCORES[judge]
            rate, n = best_by_score(mine, lower_is_better=score.lower_is_better)
            print(f"cases.{name}: by {score.label}, {side} side alone {rate:g}, {n} steps")
        print(f"cases.{name}: adapt_lr: {found:g}, adapt_steps: {count} (reports/tuning/{name}/curves.png)")


@cli.command()
def bound(
    case: Annotated[str, typer.Argument(help="A case of params.yaml that is encoded.")],
    rho: Annotated[float, typer.Option(min=0, max=1, help="Share of tensors frozen.")] = 0.9,
    masks: Annotated[int, typer.Option(min=20, help="How many are drawn.")] = 120,
) -> None:
    """How wide a gap any mask of whole tensors could open: masks by regression, into reports/bound/CASE."""
    from freezeasguard.commands import REPORTS
    from freezeasguard.settings.params import load_params
    from freezeasguard.users.bound import bound as bound_of

    params = load_params()
    written = bound_of(_task(params, case), case, rho, masks, REPORTS / "bound" / case, params.workers)
    print(written.read_text())


@cli.command()
def attack(
    case: Annotated[str, typer.Argument(help="A case of params.yaml that is protected.")],
    arms: Annotated[list[str] | None, typer.Argument(help="Arms of the case; none: all that are fine-tuned.")] = None,
    lr: Annotated[str, typer.Option(help="Learning rates, with commas; the case's own is among them.")] = (
        "1e-4,2e-4,5e-4"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Users of each kind.")] = 3,
    longer: Annotated[int, typer.Option(min=1, help="Times the case's steps, at its rate; 1: none.")] = 4,
    users_of: Annotated[
        str | None, typer.Option(help="Another case, on whose images users train: bystanders, of neither side.")
    ] = None,
) -> None:
    """What protections keep before training, and against users of other rates, seeds and more steps.

    Into reports/attacks/CASE.

    With `--users-of OTHER` into reports/attacks/CASE-users-of-OTHER: what is left to those whom CASE has nothing to do
    with.
    """
    from freezeasguard.arms import Arm
    from freezeasguard.commands import DATA, REPORTS
    from freezeasguard.settings.params import load_params
    from freezeasguard.users.attacks import FULL, attacks_of
    from freezeasguard.users.attacks import attack as attack_case

    params, others = load_params(), users_of or case
    if _case(params, case).model != _case(params, others).model:
        raise FreezeAsGuardError(f"--users-of {others}: its model is not that of {case}; choose a case of the same")
    task, name = _task(params, others), case if others == case else f"{case}-users-of-{others}"
    asked = arms or [arm for arm in params.cases[case].arms if not Arm.parse(arm).before and arm != FULL]
    attacks = attacks_of(task, [float(text) for text in lr.split(",")], longer)
    where = f"Profile {params.profile}, seed {params.seed}, roles {params.roles}, attacker {task.config.attacker}."
    folders = DATA / "protected" / case, REPORTS / "attacks" / name
    how = {"rho": params.rho, "where": where}
    print(attack_case(task, name, asked, attacks, seeds, *folders, params.workers, **how).read_text())


def _case(params: Params, name: str) -> Case:
    if name not in params.cases:
        raise FreezeAsGuardError(f"params.yaml has no case {name!r}; it has {', '.join(params.cases)}")
    return params.cases[name]


def _task(params: Params, case: str, *, judged: bool = False) -> Task:
    """What a case's users train on, for commands that train users outside the pipeline; scored or not."""
    from freezeasguard.commands import DATA, FEATURES, SCORERS
    from freezeasguard.models.latents import CaseData
    from freezeasguard.reading import read_tensors
    from freezeasguard.scores.registry import side_score
    from freezeasguard.scores.scoring import REFERENCE_FILE, Reference
    from freezeasguard.sides import SIDES
    from freezeasguard.users.tuning import Judge, Task
    from freezeasguard.workers import resolve_device

    model = DATA / "fetched" / _case(params, case).model
    data = CaseData.load(DATA / "latents" / case)
    judge = None
    if judged:
        path = DATA / "reference" / case / FEATURES / REFERENCE_FILE
        real = Reference.from_tensors(read_tensors(path, f"run `dvc repro reference@{case}`"))
        raw = DATA / "raw" / params.cases[case].domain
        names = {side: side_score(params.domain_of(case).score_names(), side, params.roles) for side in SIDES}
        judge = Judge(names, params.generate_block(case), params.score_block, real, raw, SCORERS)
    device = resolve_device(params.device)
    return Task(model, data, params.adapt_block(case), params.seed, device, params.compute, judge)


@cli.command("new-case")
def new_case(
    name: Annotated[str, typer.Argument(help="Of the case: letters, digits and dashes.")],
    illegal: Annotated[
        Path, typer.Option(help="Images that must not be learned: a folder, or one with class folders.")
    ],
    legal: Annotated[Path, typer.Option(help="Images that must stay learnable, likewise.")],
    model: Annotated[str, typer.Option(help="A name in params.yaml, a diffusers folder, or a hub id.")] = "tiny-1.5",
    revision: Annotated[str | None, typer.Option(help="Of a hub model; required for one.")] = None,
    size_px: Annotated[int, typer.Option(help="Image size of the model: 64 for the tiny one, 512 for SD v1.x.")] = 64,
    only: Annotated[bool, typer.Option(help="Drop the other cases from params.yaml.")] = False,
) -> None:
    """Protect a model of yours against a folder of images: adds a case to params.yaml, for `dvc repro`."""
    from freezeasguard.new_case import add_case

    added = add_case(name, {"illegal": illegal, "legal": legal}, model, revision, size_px, only)
    counted = ", ".join(f"{n} {side} images" for side, n in added.n_images.items())
    if added.left_out:
        print("left out: " + ", ".join(f"{n} {reason}" for reason, n in added.left_out.items()))
    if added.copy:
        print(f"your edited params.yaml is kept as {added.copy}")
    if added.miniature:
        print(
            f"shared with the other cases, and made for miniature models: {', '.join(added.miniature)}; or use --only"
        )
    print(f"params.yaml has the case {name} ({counted}); run `dvc repro`, then see reports/tables/case-{name}.md")


@cli.command()
def rehearse(
    name: Annotated[str, typer.Argument(help="A profile, as paper; or a params.yaml by path.")],
    to: Annotated[Path | None, typer.Option(help="Where it goes on, or starts; a new folder below /tmp.")] = None,
    width: Annotated[Width, typer.Option(help="full: the real architectures; small: their names, few channels.")] = (
        Width.FULL
    ),
    size_px: Annotated[int | None, typer.Option(help="Of all images; a multiple of 64.")] = None,
    few: Annotated[bool, typer.Option("--few", help="One case a model and kind of source, few arms.")] = False,
) -> None:
    """Run every stage of a profile, in a copy of this project, on what the hub would give with random weights."""
    from tempfile import mkdtemp

    from freezeasguard.rehearsal.run import rehearse

    folder = (to or Path(mkdtemp(prefix="freezeasguard-rehearsal-"))).absolute()
    print(f"rehearsing {name} in {folder}")
    print("\n".join(rehearse(name, folder, small=width is Width.SMALL, size_px=size_px, few=few)))


@cli.command()
def gates(
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this group of gates again, and keep what it says.")
    ] = None,
    model: Annotated[str, typer.Option(help="Of the family: tiny-1.4, tiny-1.5, tiny-2.1.")] = "tiny-1.5",
) -> None:
    """Print the quality gates of a shipped miniature model."""
    from freezeasguard.miniature.gates import MODEL, SCORERS, format_gates, merge_gates, read_gates, write_gates

    folder = MODEL.with_name(model)
    if only:
        from freezeasguard.miniature.measure import measure_gates

        kept = read_gates(folder)  # where there is nothing to merge into, say so before measuring
        write_gates(merge_gates(kept, measure_gates(folder, SCORERS, only)), folder)
    print(format_gates(read_gates(folder)))


def app() -> None:
    """Console entry: an expected error is one line and exit code 1."""
    from freezeasguard.commands import keep_weights_here

    keep_weights_here()
    try:
        cli()
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
