"""The model card, for people, and the metadata, for programs, that go with an exported network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain

_RESULTS = "sem_seg_evaluation.json"
_TERMS = (
    "The program sst_d2 is under the Apache License 2.0. Weights come from photos and labels: the terms of the data "
    "sets above, and of the weights that training started from, apply to them; several data sets allow research alone. "
    "Who passes this network on should name the licence of these weights here."
)


@dataclass(frozen=True)
class Score:
    """One result of an evaluation.

    Attributes:
        data_set: its name.
        domain: name of the label domain.
        images: how many.
        miou: in percent.
        definition: what mIoU means there.
        augmented: whether with test-time augmentation.
    """

    data_set: str
    domain: str
    images: int
    miou: float
    definition: str
    augmented: bool


def scores_of(records: object, source: str) -> list[Score]:
    """Scores from what `dataclasses.asdict` made of them.

    Args:
        records: a list of mappings.
        source: the file, for the message.

    Raises:
        SSTDataError: they are none.
    """
    try:
        return [Score(**record) for record in records]
    except TypeError as reason:
        raise SSTDataError(f"{source}: its scores are damaged ({reason}); remove the file") from reason


def read_scores(folder: Path) -> list[Score]:
    """The results that evaluations have left in the folder of a training, below ``inference`` and ``inference_TTA``.

    Raises:
        SSTDataError: such a file is damaged.
    """
    return [_read_score(path) for path in sorted(folder.glob(f"inference*/*/{_RESULTS}"))]


def _read_score(path: Path) -> Score:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        named = (str(record["dataset"]), str(record["label_domain"]), int(record["images"]))
        miou, definition = float(record["sem_seg"]["mIoU"]), str(record["mIoU_definition"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as reason:
        raise SSTDataError(
            f"{path}: is no result of an evaluation ({reason!r}), which the model card would name; evaluate again, or "
            "remove the file"
        ) from reason
    return Score(*named, miou, definition, path.parents[1].name.endswith("_TTA"))


def metadata(
    domains: Sequence[LabelDomain],
    *,
    version: str,
    outputs: Sequence[str],
    size: tuple[int, int] | None,
    input_type: str,
    normalisation: Mapping[str, Any],
    card: str,
) -> dict[str, Any]:
    """What a program needs to use an exported file.

    Args:
        domains: the label domains that are in it.
        version: of sst_d2.
        outputs: names of the outputs.
        size: the only height and width that it takes; None: all.
        input_type: "uint8", "float32" or both.
        normalisation: what happens inside.
        card: the text of `model_card`.
    """
    sides = "any height and width" if size is None else f"height {size[0]} and width {size[1]} alone"
    labels = outputs[0].startswith("labels_")
    kind = (
        "label maps (1, H, W) uint8, a class id per pixel" if labels else "logits (1, K, H, W) float32, before softmax"
    )
    return {
        "sst_d2_version": version,
        "input": f"image (1, 3, H, W) {input_type}, one upright photo, red, green, blue, values 0 to 255; {sides}",
        "output": f"{', '.join(outputs)}: {kind}, in the size of the photo",
        "normalisation": {"done_inside": True, **normalisation},
        "label_domains": {
            domain.name: {
                "classes": list(domain.classes),
                "colors": [list(color) for color in domain.colors],
                "flip_pairs": [list(pair) for pair in domain.flip_pairs],
            }
            for domain in domains
        },
        "model_card": card,
    }


def model_card(
    domains: Sequence[LabelDomain], *, version: str, facts: Mapping[str, str], scores: Sequence[Score], use: str
) -> str:
    """Markdown: what the network is, which classes it knows, how well it does by which measure, whose terms apply.

    Args:
        domains: the label domains that are in it.
        version: of sst_d2.
        facts: by name what is to be known of the network and its training.
        scores: of evaluations; those of other label domains are left out.
        use: how to open it, Markdown.
    """
    names = [domain.name for domain in domains]
    parts = [
        f"# Human parsing: {', '.join(names)}",
        "Parses photos of people into body parts and clothes, in "
        + ("one label system" if len(names) == 1 else f"{len(names)} label systems from one pass")
        + f". Exported by sst_d2 {version}.",
        f"## Use\n\n{use}",
        "## Network and training\n\n" + _table(list(facts.items()), ["", ""]),
        "## How well it does\n\n" + _scores([score for score in scores if score.domain in names]),
        "## Classes\n\n" + "\n\n".join(map(_classes, domains)),
        f"## Terms\n\n{_TERMS}",
    ]
    return "\n\n".join(parts) + "\n"


def _classes(domain: LabelDomain) -> str:
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(domain.classes))
    return f"`{domain.name}`, {domain.num_classes} classes: {listed}."


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return "Not measured: beside the checkpoint lay no results of an evaluation."
    rows = [
        [s.data_set, s.domain, s.images, f"{s.miou:.2f}", "scales and mirror" if s.augmented else "one pass"]
        for s in scores
    ]
    table = _table(rows, ["data set", "label domain", "images", "mIoU (%)", "how"])
    definitions = "\n".join(
        f"mIoU: {definition}." for definition in dict.fromkeys(score.definition for score in scores)
    )
    return (
        f"{table}\n\n{definitions}\n\nMeasured by the last evaluation in the folder that the checkpoint lay in, before "
        "the export. Another checkpoint of the same training may do otherwise."
    )


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
