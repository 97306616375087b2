"""The documents are true: what they name exists, and every block of them runs on tiny data, or says why not."""

import ast
import glob
import os
import re
import shlex
import shutil
import subprocess
from functools import cache

import pytest
import yaml
from conftest import ROOT
from detectron2.config import CfgNode, get_cfg
from doc_blocks import OTHER, PEOPLE, RUN, TINY, Desk, blocks_of, make_people, shortened

from sst_d2 import add_sst_config
from sst_d2.label_domains import LabelDomain

DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "datasets/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
# Run by their own tests, which also look at what comes out.
ELSEWHERE = {"docs/CUSTOM_DATASET.md": "test_custom_dataset.py", "docs/PLUG_IN.md": "test_plug_in.py"}
FOLDERS = "benchmarks|configs|datasets|demo|docs|sst_d2|tests|tools"
BUILT_IN = ("pascal_person_part", "atr", "cihp", "lip")
TRAINED = "output/demo/training"


@cache
def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def prose_of(document):
    """The text without its blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.M | re.S)


def runs(document):
    return [block for block in blocks_of(document) if block.language in RUN and not block.not_run]


# ---- what the documents name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_or_says_why_not(document):
    assert not re.findall(r"^[ >]+```", text_of(document), flags=re.M), "an indented block would not be found"
    blocks = blocks_of(document)
    for block in blocks:
        assert block.language in RUN + OTHER, f"{block}: give the block a language: {', '.join(RUN + OTHER)}"
        if block.not_run is not None:
            assert block.language in RUN, f"{block}: nobody would run it anyway"
            assert len(block.not_run.split()) > 1, f"{block}: say why it is not run"
        if block.language == "text":
            commands = re.findall(r"^(?:\$ )?(?:python|make|pip|bash|export|torchrun)\b.*", block.text, flags=re.M)
            assert not commands, f"{block}: these are commands: {commands}"
    marks = [block for block in blocks if block.not_run is not None or block.file]
    found = re.findall(r"^<!-- (?:not run|file)\b", text_of(document), flags=re.M)
    assert len(marks) == len(found), (
        "a mark stands directly before its block: <!-- not run: REASON -->, <!-- file: NAME -->"
    )


def test_blocks_of_every_document_are_run_somewhere():
    for document, test in ELSEWHERE.items():
        assert document in DOCUMENTS and f'DOCUMENT = "{document}"' in (ROOT / "tests" / test).read_text()
    assert sum(len(runs(document)) for document in DOCUMENTS) > 25


@pytest.mark.parametrize("document", DOCUMENTS)
def test_yaml_and_pairs_of_key_and_value_are_such(document):
    for block in blocks_of(document):
        if block.language == "yaml":
            content = yaml.safe_load(block.text)
            assert isinstance(content, dict), block
            if "classes" in content:
                assert LabelDomain.from_dict(content, source=str(block)).num_classes > 1
        lines = block.text.splitlines() if block.language == "text" else []
        for line in (line for line in lines if re.match(r"[A-Z]+\.[A-Z]", line)):
            our_config().merge_from_list(shlex.split(line))


def our_config():
    cfg = get_cfg()
    add_sst_config(cfg)
    return cfg


def anchors_of(document):
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(document), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_and_anchors_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(os.path.relpath(file, ROOT)), f"{target}: no such heading"


def spellings(name):
    """What a shell makes of {a,b}."""
    head, brace, rest = name.partition("{")
    inner, _, tail = rest.partition("}")
    return [one for part in inner.split(",") for one in spellings(f"{head}{part}{tail}")] if brace else [name]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document):
    names = re.findall(rf"(?<![\w/.~}}$-])(?:{FOLDERS})/[\w./{{}},*-]*[\w}}*/]", text_of(document))
    names += re.findall(r"(?<![\w/.~$-])(?:train_net\.py|setup\.py|pyproject\.toml|Makefile)\b", text_of(document))
    absent = {one for name in names for one in spellings(name) if not glob.glob(str(ROOT / one), recursive=True)}
    assert absent - {"sst_d2/configs"} == set()  # that one is there in an installed package only


@pytest.mark.parametrize("document", DOCUMENTS)
def test_configuration_keys_that_a_document_names_exist(document):
    cfg = our_config()
    keys = re.findall(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)(?:\.[A-Z0-9_]+)+", text_of(document))
    absent = set()
    for key in keys:
        node = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                absent.add(key)
                break
            node = node[part]
    assert absent == set()


@cache
def sentences_of_the_project():
    """Every text of the code, what is filled in being "\\0"; the Makefile's too."""
    texts = [(ROOT / "Makefile").read_text()]
    for folder in ("sst_d2", "tools", "datasets", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


@pytest.mark.parametrize("document", ["docs/TROUBLESHOOTING.md", "docs/CUSTOM_DATASET.md"])
def test_messages_that_a_document_explains_are_the_codes(document):
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", text_of(document), flags=re.M)
    messages = [
        code for table in tables for row in table.splitlines() for code in re.findall("`([^`]+)`", row.split(" | ")[0])
    ]
    assert len(messages) > 5
    # The longest piece between two names says it.
    pieces = {message: max((part.strip(" '") for part in message.split("…")), key=len) for message in messages}
    strange = [m for m, piece in pieces.items() if not any(piece in text for text in sentences_of_the_project())]
    assert strange == [] and min(map(len, pieces.values())) > 7


def test_a_stranger_finds_the_essentials_at_once():
    first = "\n".join(text_of("README.md").splitlines()[:50])
    for needed in ("![", "make demo", "SSTPredictor(", "demo/demo.py", "train_net.py", "**State.**"):
        assert needed in first, needed


# ---- what the documents say to type


def test_only_values_are_added_to_what_is_typed():
    typed = ["train_net.py", "--config-file", "configs/single/cihp_R50.yaml", "--num-gpus", "4", "SEED", "1"]
    become = shortened(typed)
    assert become[:7] == [*typed[:4], "2", *typed[5:]]  # two processes are as good a trial as four
    assert dict(zip(become[7::2], become[8::2])) == {**TINY, "MODEL.WEIGHTS": ""}
    start = shortened([*typed[:3], "MODEL.WEIGHTS", "x.pth"])
    assert start.count("MODEL.WEIGHTS") == 1
    assert shortened(["tools/strip_auxiliary.py", "a", "b"]) == ["tools/strip_auxiliary.py", "a", "b"]
    assert shortened(["-c", "pass"]) == ["-c", "pass"]
    assert shortened(["datasets/make_synthetic_people.py"])[1:] == list(PEOPLE)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    make_people(folder / "synthetic_people")
    return folder / "synthetic_people"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, people):
    """What `make demo` leaves, of two steps."""
    desk = Desk(tmp_path_factory.mktemp("demo"), people)
    config = "configs/quick_schedules/synthetic_people.yaml"
    command = ["python", "train_net.py", "--config-file", config, "OUTPUT_DIR", TRAINED]
    subprocess.run(command, cwd=desk.checkout, env=desk.environment, check=True, capture_output=True)
    return desk.checkout / TRAINED


def film(path):
    """A second of video."""
    cv2, np = pytest.importorskip("cv2"), pytest.importorskip("numpy")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 4, (64, 48))
    for value in range(4):
        writer.write(np.full((48, 64, 3), 60 * value, np.uint8))
    writer.release()


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in ELSEWHERE and runs(name)])
def test_the_document_runs_as_it_stands(document, tmp_path, people, request):
    blocks = "".join(block.text for block in runs(document))
    prepared = [name for name in BUILT_IN if f"prepare_{name}.py" not in blocks]
    desk = Desk(tmp_path, people, tuple(prepared))
    if TRAINED in blocks:
        shutil.copytree(request.getfixturevalue("trained"), desk.checkout / TRAINED)
    if "film.mp4" in blocks:
        film(desk.checkout / "film.mp4")
    assert desk.type(document) == len(runs(document))
