import ast
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import image_encoders
from image_encoders.cli import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "image_encoders"
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
HEAVY = ("torch", "transformers", "openvino", "lancedb", "pyarrow", "PIL", "numpy", "httpx", "huggingface_hub")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300).stdout


def loaded_by(statement: str) -> list[str]:
    found = python(f"import sys; {statement}; print(*sys.modules, sep='\\n')").split()
    return [module for module in HEAVY if module in found]


def test_importing_the_package_takes_no_time():
    code = "import time; start = time.process_time(); import image_encoders; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.3  # of the processor


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import image_encoders") == []


def test_starting_the_command_loads_nothing_heavy():
    assert loaded_by("import image_encoders.cli") == []


def test_listing_the_models_loads_no_nets():
    assert loaded_by("import image_encoders; assert image_encoders.names()") in ([], ["numpy"])


def test_the_public_names_are_these():
    assert image_encoders.__all__ == [
        "Collection",
        "CollectionError",
        "DeviceError",
        "Encoder",
        "ImageEncodersError",
        "InputError",
        "Locator",
        "MissingExtra",
        "Overloaded",
        "TooManyFailures",
        "Tower",
        "UnknownModel",
        "WeightsError",
        "load",
        "names",
        "open_collection",
        "read_audio",
        "read_image",
        "run",
    ]
    for name in image_encoders.__all__:
        assert getattr(image_encoders, name).__name__ == name
    assert dir(image_encoders) == image_encoders.__all__


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'encode'"):
        image_encoders.encode  # noqa: B018


def test_type_checkers_find_the_package_s_types():
    assert (SOURCE / "py.typed").is_file()


def test_the_first_result_is_on_the_readmes_first_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(line.startswith("image-encoders search") for line in lines[:25])
    assert len(lines) < 100


def test_the_readme_installs_the_version_of_torch_that_the_tests_run_with():
    version = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"pip install torch=={version} " in (ROOT / "README.md").read_text()


def test_every_page_of_the_docs_is_in_their_index():
    index = (ROOT / "docs" / "README.md").read_text()
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index)}
    pages = {page for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"}
    assert pages <= listed


def test_the_version_is_the_distributions():
    assert metadata.version("image-encoders") == image_encoders.__version__


def test_every_import_is_of_a_declared_dependency():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    declared = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in asked} | {"image-encoders"}
    homes = metadata.packages_distributions()
    strangers = set()
    for file in SOURCE.rglob("*.py"):
        if ("conformance" in file.parts and file.name.startswith("make_")) or "specs" in file.parts:
            continue  # programs that are run on their own
        if "integrations" in file.parts:
            continue  # runs inside a framework, with what that brings
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                first = name.split(".")[0]
                homes_of_it = {one.lower().replace("_", "-") for one in homes.get(first, [first])}
                if first not in sys.stdlib_module_names and not homes_of_it & declared:
                    strangers.add((first, str(file.relative_to(ROOT))))
    assert not strangers


# ---- help ----


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        app([command, "--help"], prog_name="image-encoders")
    text = capsys.readouterr().out
    examples = text.split("Examples:\n")[1]
    assert any(line.strip().startswith(f"image-encoders {command}") for line in examples.splitlines())
    offered = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text.split("Examples:\n")[0]))
    for line in examples.splitlines():
        if f"image-encoders {command}" in line:
            words = shlex.split(line.split(f"image-encoders {command}")[1].split("|")[0], comments=True)
            assert {word for word in words if word.startswith("-") and word != "-"} <= offered, line


def test_the_help_of_all_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        app(["--help"], prog_name="image-encoders")
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +[A-Z]", text.split("Commands:")[1], re.MULTILINE) == COMMANDS
    assert "..." not in text.split("Commands:")[1]  # each says what it does in one line


def test_the_help_names_the_default_model(capsys):
    from image_encoders.models import DEFAULT

    with pytest.raises(SystemExit, match="0"):
        app(["encode", "--help"], prog_name="image-encoders")
    assert DEFAULT in capsys.readouterr().out


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "image_encoders", "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert shown == f"image-encoders {image_encoders.__version__}\n"


# ---- the README and the docs ----


def blocks(language: str) -> list[str]:
    """The README's code blocks that need no network."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"<!-- not run: .*?-->\n```.*?```", "", text, flags=re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder in which the README's commands find `photos/`."""
    from PIL import Image

    from image_encoders.scenes import write_images

    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    write_images(folder / "photos", 20, seed=1)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (80, 60), "red").save(folder / "photos" / name)
    return folder


def test_the_readmes_commands_run_in_their_order(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    broken = False
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words:
            assert words[0] == "image-encoders"
            status = app(words[1:], prog_name="image-encoders", standalone_mode=False) or 0
            broken = broken or words[1] == "encode"
            assert status == (3 if words[1] == "encode" else 0), (line, capsys.readouterr().err)
    assert broken
    assert (photos / "triangles.html").exists()


def test_the_readmes_python_runs(photos, monkeypatch):
    monkeypatch.chdir(photos)
    names: dict = {}
    encode = ["encode", "photos", "-o", "shapes", "-m", "clip/demo", "--quiet"]
    assert app(encode, prog_name="image-encoders", standalone_mode=False) == 3  # some are broken
    exec("".join(blocks("python")), names)
    assert names["images"].shape == (2, 128)
    assert names["words"].shape == (1, 128)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target
