#!/usr/bin/env python
"""A page in the browser: a photo goes in, its parts come out, in all label systems of one network side by side.

    python demo/web.py --weights output/universal/full_R50/model_inference.pth

then open http://127.0.0.1:7860. Needs Gradio: python -m pip install "gradio>=6.20,<7". Nobody but this computer can
open the page, unless --host says otherwise; the page needs no network and tells nobody anything. A photo lies on the
disk for at most 20 minutes, and no longer than the program runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from web_page import ParsedPhoto, draw_overlays, parse_photo, sentence_of

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import SSTError, SSTPredictor
from sst_d2.arguments import positive_number
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.launch import report_user_error

# Older ones load a script from a server of others.
OLDEST_GRADIO, GRADIO = (6, 20), "gradio>=6.20,<7"
_KEPT_SECONDS = 20 * 60
_MAX_FILE_SIZE = "200mb"
_HEIGHT = 360  # of a picture on the page, in pixels
_STYLE = """
#heading h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
#heading p, #message, table.areas th { opacity: .75; }
.mistake { color: var(--error-text-color); font-weight: 600; overflow-wrap: anywhere; }
table.areas { width: 100%; border-collapse: collapse; font-size: .9rem; margin-bottom: 1rem; }
table.areas, table.areas tr { border: 0; }
table.areas th, table.areas td { padding: .2rem 0; border: 0; text-align: left; font-weight: normal; }
table.areas td { border-top: 1px solid var(--border-color-primary); }
table.areas :is(th, td):last-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; vertical-align: -.1em;
  border: 1px solid var(--border-color-primary); border-radius: 3px; }
"""


def import_gradio(folder: str, host: str) -> ModuleType:
    """Import Gradio, which reads its settings from the environment while it does.

    Args:
        folder: where it puts what the browser sends and what is shown.
        host: where the page will be.

    Raises:
        SSTConfigError: it is not there, or is too old.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # photos in the browser's store
    os.environ["GRADIO_TEMP_DIR"] = folder
    # It asks its own page whether it answers; a proxy would be asked instead.
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, "localhost,127.0.0.1", host]))
    remedy = f'python -m pip install "{GRADIO}"'
    try:
        import gradio
    except ImportError as reason:
        raise SSTConfigError(f"demo/web.py needs Gradio ({reason}); install it: {remedy}") from reason
    if tuple(map(int, gradio.__version__.split(".")[:2])) < OLDEST_GRADIO:
        raise SSTConfigError(f"Gradio {gradio.__version__} is too old for demo/web.py; renew it: {remedy}")
    return gradio


def check_address(host: str, port: int) -> None:
    """Find out whether somebody else is there, before the network is loaded.

    Raises:
        SSTConfigError: nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as reason:
        if getattr(reason, "errno", None) == errno.EADDRINUSE:
            raise SSTConfigError(
                f"--port {port}: another program listens there; end it, or name another port: --port {port + 1}"
            ) from reason
        raise SSTConfigError(
            f"--host {host} --port {port}: no page can be there ({reason}); a host is an address of this computer "
            "(127.0.0.1: for itself alone, 0.0.0.0: for its whole network), a port a number from 1024 to 65535"
        ) from reason


def page_functions(gr: ModuleType, predictor: SSTPredictor, folder: str) -> tuple[Callable, Callable]:
    """What happens when a photo comes, and when it is to be drawn (again)."""
    count = len(predictor.domains)
    no_file = gr.update(value=None, interactive=False)

    def _predict(upload: dict[str, Any] | None) -> list[Any]:
        """The photo as it was sent, not as Gradio would decode it; parsed photo, message, tables, files."""
        nothing = [None, "", *[""] * count, *[no_file] * count]
        if upload is None:
            return nothing
        path = upload["path"]
        try:
            if not Path(path).resolve().is_relative_to(folder):  # the browser says where its photo lies
                raise SSTDataError(f"{path}: was not uploaded to this page")
            photo = parse_photo(predictor, path, folder)
        except SSTError as error:
            nothing[1] = sentence_of(error, path)
            return nothing
        files = [gr.update(value=str(file), interactive=True) for file in photo.files]
        return [photo, photo.summary, *photo.tables, *files]

    def _draw(photo: ParsedPhoto | None, opacity: float) -> Any:
        pictures = [None] * count if photo is None else list(map(str, draw_overlays(photo, opacity, folder)))
        return pictures if count > 1 else pictures[0]

    return _predict, _draw


def build_page(gr: ModuleType, predictor: SSTPredictor, folder: str) -> Any:
    """The page: the photo and a column for every label domain."""
    predict, draw = page_functions(gr, predictor, folder)
    pictures, tables, files = [], [], []
    with gr.Blocks(
        title="Human parsing", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS), fill_width=True
    ) as page:
        gr.HTML(_heading(len(predictor.domains)), elem_id="heading", padding=False)
        parsed = gr.State()
        with gr.Row():
            with gr.Column(min_width=240):
                photo = gr.Image(
                    label="photo",
                    elem_id="photo",
                    height=_HEIGHT,
                    buttons=[],
                    # Mirrored, left arms would be right ones.
                    webcam_options=gr.WebcamOptions(mirror=False),
                )
                opacity = gr.Slider(0, 100, 60, step=5, label="opacity of the colours", elem_id="opacity")
                message = gr.HTML(elem_id="message", padding=False)
            for name in predictor.domains:
                with gr.Column(min_width=240, elem_id=f"domain_{name}"):
                    shown = gr.Image(label=name, interactive=False, height=_HEIGHT, buttons=["fullscreen"])
                    pictures.append(shown)
                    save = gr.DownloadButton(
                        "save the label map (PNG)", size="sm", interactive=False, elem_id=f"save_{name}"
                    )
                    files.append(save)
                    tables.append(gr.HTML(padding=False))
        predicted = photo.change(
            predict,
            photo,
            [parsed, message, *tables, *files],
            preprocess=False,
            show_progress_on=pictures,
            api_visibility="private",
        )
        redraw = {"fn": draw, "inputs": [parsed, opacity], "outputs": pictures, "api_visibility": "private"}
        predicted.then(**redraw, show_progress="hidden")
        opacity.change(**redraw, show_progress="hidden")
    return page


def _heading(count: int) -> str:
    systems = f"{count} label systems, one network, one pass" if count > 1 else "one label system"
    return (
        f"<h1>Human parsing</h1><p>{systems[0].upper()}{systems[1:]}. Photos go to the computer that runs this page, "
        f"nowhere else, and are deleted there after {_KEPT_SECONDS // 60} minutes.</p>"
    )


def serve(gr: ModuleType, page: Any, host: str, port: int) -> None:
    """Show the page until somebody ends the program.

    Raises:
        SSTConfigError: somebody else has taken the port meanwhile.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    name = f"[{host}]" if ":" in host else host
    try:
        page.launch(
            server_name=name,
            server_port=port,
            share=False,
            inbrowser=False,
            inline=False,
            ssr_mode=False,
            max_file_size=_MAX_FILE_SIZE,
            theme=theme,
            css=_STYLE,
            footer_links=[],
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as reason:
        raise SSTConfigError(f"--host {host} --port {port}: the page cannot be shown there ({reason})") from reason
    print(f"The page is at {page.local_url} (Ctrl-C ends it).", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE|BUNDLE", help="a checkpoint (.pth), or an exported folder")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this computer alone)")
    add("--port", type=positive_number, default=7860, metavar="N", help="(default: %(default)s)")
    add("--device", help="cpu, cuda, cuda:N (default: a GPU, if there is one)")
    add("--max-pixels", type=positive_number, metavar="N", help="refuse larger photos (default: TEST.SST.MAX_PIXELS)")
    add("--tta", action="store_true", help="test-time augmentation: slower, a little better")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes of the configuration")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Show the page."""
    arguments = parse_arguments(argv)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # --max-pixels refuses them
    for name in ("SIGTERM", "SIGHUP"):  # end as Ctrl-C does, and leave no photo behind
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="sst_d2_web_") as folder:
            folder = os.path.realpath(folder)
            gr = import_gradio(folder, arguments.host)
            check_address(arguments.host, arguments.port)
            predictor = SSTPredictor(
                arguments.weights,
                device=arguments.device,
                tta=arguments.tta or None,
                opts=arguments.opts,
                max_pixels=arguments.max_pixels,
            )
            serve(gr, build_page(gr, predictor, folder), arguments.host, arguments.port)
    except KeyboardInterrupt:  # before the page was there
        sys.exit(130)


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
