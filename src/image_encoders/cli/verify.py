"""`image-encoders verify`: are the embeddings those of the original code?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.loading import check_paths, load
from image_encoders.cli.options import Json, Offline, Options, Weights, go_offline, local_path, parse_options
from image_encoders.cli.printing import counted, print, print_json, print_table, say, shown
from image_encoders.engines.precision import accepted
from image_encoders.errors import UnknownModel

if TYPE_CHECKING:
    from image_encoders.conformance.cases import Case, Result
    from image_encoders.conformance.published import Comparison
    from image_encoders.encoder import Encoder

EXAMPLES = """\b
Examples:
  image-encoders verify bit                      # on synthetic checkpoints, generated once
  image-encoders verify all --full --markdown    # all of them: 4 GB, some minutes
  image-encoders verify vsepp/f30k-vgg19 --weights runs/f30k_vse++_vggfull/model_best.pth.tar
\b
Exit status: 0 all checks passed; 3 a check failed; 2 error, explained in one sentence."""

REFERENCE = {"device": "cpu", "precision": "float32", "engine": "torch"}  # what the tolerances are for
HEADINGS = ("case", "file format", "stage", "max abs error", "rel error", "1 - cos", "tolerance", "")


def verify(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A family, such as bit; a model, such as bit/R50x1; or all.")
    ],
    weights: Weights = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --weights: the image man_piercing.jpg, whose embeddings were published.",
            parser=local_path,
        ),
    ] = None,
    options: Options = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also use the synthetic checkpoints of 300 MB and more; 4 GB for all.")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where synthetic checkpoints are kept.  [default: the cache folder]",
            parser=local_path,
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="PRECISION", help=f"One of {', '.join(accepted(calibrated=False))}.")
    ] = "float32",
    engine: Annotated[str, typer.Option(metavar="ENGINE", help="What runs the model: auto or torch.")] = "torch",
    offline: Offline = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write the table as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Check that embeddings equal those of the original code.

    Synthetic checkpoints of the original sizes are generated and loaded, and preprocessed inputs and embeddings of
    arrays, image files, texts and sounds are compared with what the original code computed from the same checkpoint.
    By default those below 300 MB are used, or the smallest of a family that has none.

    The tolerances are for float32 by torch on the CPU. With another --device, --precision or --engine the table shows
    how close the embeddings are, and the exit status is always 0.

    With --weights a published checkpoint is loaded instead, and compared with the embeddings published for it.
    """
    wishes = {"device": device, "precision": precision, "engine": engine}
    if offline:
        go_offline()
    if weights is None:
        if name == "clip/demo":
            raise UnknownModel("clip/demo has no original to compare with; `verify clip` checks the same code")
        for option, given in (("--image", image), ("-O", options)):
            if given:
                raise typer.BadParameter(f"{option} needs --weights")
        _synthetic(name, full, keep, wishes, markdown, as_json)
        return
    for option, flag in (("--full", full), ("--keep", keep), ("--markdown", markdown)):
        if flag:
            raise typer.BadParameter(f"{option} cannot be combined with --weights")
    check_paths(weights, None)
    _real(name, weights, parse_options(options), image, wishes, as_json)


# ---------------------------------------------------------------- synthetic checkpoints


def _synthetic(
    name: str, full: bool, keep: Path | None, wishes: Mapping[str, str], markdown: bool, as_json: bool
) -> None:
    from image_encoders.conformance import cases

    matching = cases.named(name)
    chosen = matching if full else cases.small(matching)
    _announce(chosen, keep)
    started = time.perf_counter()
    results: list[Result] = []
    for case in chosen:
        began = time.perf_counter()
        own = list(cases.verify(case, keep, **wishes))
        failed = sum(not result.passed for result in own)
        verdict = f"{failed} FAILED" if failed else "all pass"
        say(f"{case.name}: {counted(len(own), 'check')}, {verdict}, {time.perf_counter() - began:.0f} s")
        results += own
    asserted = all(wishes[key] == value for key, value in REFERENCE.items())
    skipped = [case for case in matching if case not in chosen]
    if as_json:
        print_json(_as_json(results, skipped, wishes, asserted))
    elif markdown:
        _print_markdown(name, full, results, wishes)
    else:
        print_table(HEADINGS, (_cells(result) for result in results))
    failed = sum(not result.passed for result in results)
    say(
        f"\n{counted(len(results), 'check')}, {failed} outside the tolerance, {time.perf_counter() - started:.0f} s"
        + ("" if asserted else "; the tolerances are for float32 by torch on the CPU and shown only for comparison")
    )
    if skipped:
        say(f"not run: {', '.join(_sized(case) for case in skipped)}; --full runs them")
    if failed and asserted:
        raise typer.Exit(3)


def _announce(chosen: Iterable[Case], keep: Path | None) -> None:
    """Say what is going to be generated, and how much disk it needs."""
    from image_encoders.conformance import bundle

    lacking = [case for case in chosen if not bundle.place(case.name, keep).is_dir()]
    if lacking:
        total = sum(bundle.size(case.name) for case in lacking) / 1e6
        where = shown(keep or bundle.checkpoints())
        say(f"generating {counted(len(lacking), 'synthetic checkpoint')}, {total:,.0f} MB, in {where}")


def _sized(case: Case) -> str:
    from image_encoders.conformance import bundle

    return f"{case.name} ({bundle.size(case.name) / 1e6:,.0f} MB)"


def _cells(result: Result) -> Sequence[str]:
    return (
        result.case.name,
        result.case.format,
        result.stage,
        *(f"{value:.1e}" for value in result.agreement),
        str(result.limits),
        "ok" if result.passed else "FAIL",
    )


def _as_json(
    results: Iterable[Result], skipped: Iterable[Case], wishes: Mapping[str, str], asserted: bool
) -> dict[str, Any]:
    checks = [
        {
            "case": result.case.name,
            "model": result.case.model,
            "format": result.case.format,
            "stage": result.stage,
            **result.agreement._asdict(),
            "limits": {key: limit for key, limit in result.limits._asdict().items() if limit < float("inf")},
            "passed": result.passed,
        }
        for result in results
    ]
    return {
        **wishes,
        "asserted": asserted,
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "not_run": [case.name for case in skipped],
    }


def _print_markdown(name: str, full: bool, results: Iterable[Result], wishes: Mapping[str, str]) -> None:
    from importlib.metadata import version

    changed = "".join(f" --{key} {value}" for key, value in wishes.items() if value != REFERENCE[key])
    print(
        f"`image-encoders verify {name}{' --full' if full else ''} --markdown{changed}`, {time.strftime('%Y-%m-%d')},"
    )
    print(", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "numpy", "pillow")) + "\n")
    print("| " + " | ".join(HEADINGS[:-1]) + " | |\n" + "|---" * len(HEADINGS) + "|")
    for result in results:
        print(f"| {' | '.join(_cells(result))} |")


# ---------------------------------------------------------------- real weights


def _real(
    name: str,
    weights: Path,
    options: Mapping[str, Any],
    image: Path | None,
    wishes: Mapping[str, Any],
    as_json: bool,
) -> None:
    from image_encoders.conformance import published

    known = published.of_model(name)
    if image is not None:
        if not any(one.modality == "image" for one in known):
            raise typer.BadParameter(f"--image: no embedding of an image is published for {name}")
        published.check_image(image)

    def loaded(more: Mapping[str, Any]) -> Encoder:
        return load(name, {**options, **more}, weights=weights, **wishes)

    loaded({})  # which is strict: every tensor of the model comes from the file, and none is left over
    same_file = published.is_published_file(name, weights.expanduser())
    found = list(published.compare(name, loaded, image))
    done = [one for one in found if one.found is not None]
    asserted = all(wishes[key] == value for key, value in REFERENCE.items())
    passed = all(one.passed for one in done) and same_file is not False
    if as_json:
        verdict = {"published_file": same_file, "asserted": asserted, "passed": passed}
        print_json({"model": name, "weights": str(weights), **wishes, **verdict, **_comparisons(found)})
    else:
        print(f"{shown(weights)}: loads as {name}; every tensor was used and none is missing")
        _show_published(same_file, done)
    _say_what_is_not_checked(name, found)
    if asserted and not passed:
        raise typer.Exit(3)


def _show_published(same_file: bool | None, done: Sequence[Comparison]) -> None:
    """What was found about a checkpoint: whether it is the published file, and how near its embeddings are."""
    if same_file is not None:
        print(f"size and sha256 are {'' if same_file else 'NOT '}those of the published file")
    headings = ("published embedding", "error of the first values", "error of the norm", "tolerance", "")
    if done:
        print_table(headings, map(_cells_of, done))


def _cells_of(one: Comparison) -> Sequence[str]:
    errors = f"{one.max_abs:.1e}", f"{one.norm_error:.1e}", f"{one.published.limit:.0e}"
    return str(one.published), *errors, "ok" if one.passed else "FAIL"


def _comparisons(found: Sequence[Comparison]) -> dict[str, Any]:
    checks = [
        {
            "embedding": str(one.published),
            "first_values_max_abs": one.max_abs,
            "norm_error": one.norm_error,
            "limit": one.published.limit,
            "passed": one.passed,
        }
        for one in found
        if one.found is not None
    ]
    return {"checks": checks, "not_checked": [str(one.published) for one in found if one.found is None]}


def _say_what_is_not_checked(name: str, found: Sequence[Comparison]) -> None:
    from image_encoders.conformance import published

    if not found:
        models = ", ".join(dict.fromkeys(one.model for one in published.EMBEDDINGS))
        say(f"no embedding is published for {name}, so none was compared; there are some for {models}")
    if any(one.found is None for one in found):
        say(
            f"not compared: the embedding of {published.IMAGE}, an image that is not part of this package; "
            f"--image FILE compares it (sha256 {published.IMAGE_SHA256})"
        )
