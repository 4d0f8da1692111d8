"""Runs what pages, notebooks and examples print, block by block, each in a directory of its own.

    python printed.py < requests

A request is a line of JSON: the name of a page, a list of [kind, line, text], a directory. Python
blocks share one namespace, as a reader who types them in has it; a block whose first line names a file
(`# train.py`) is written to that file and run as a program of its own, as the only process that
torchrun starts where it says so; bash blocks are commands. The answer is a line of JSON: what each block
has printed, or the error. Every request is answered by a fork of this process, which has imported what
takes long, and of rvi_fast what `import rvi_fast` does: a page does all imports of its own.
"""

import contextlib
import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import traceback
from pathlib import Path

# what pages import and takes seconds
SLOW = (
    "matplotlib.pyplot",
    "pandas",
    "sklearn.datasets",
    "sklearn.ensemble",
    "sklearn.impute",
    "rvi_fast",
)
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks_of_a_page(text):
    """[kind, line, text] of every fenced block of a page in Markdown that names a language."""
    return [[b[1], text.count("\n", 0, b.start()) + 2, b[2]] for b in FENCED.finditer(text)]


def blocks_of_a_notebook(text):
    """The same of the code cells of a notebook, whose line is the number of the cell."""
    cells = enumerate(json.loads(text)["cells"], 1)
    return [
        ["python", number, "".join(cell["source"])]
        for number, cell in cells
        if cell["cell_type"] == "code"
    ]


def file_of(text):
    """Name of the file that a block is to be written to, or None."""
    found = re.match(r"# ([\w.]+\.py)\b", text)
    return found and found[1]


def torchrun():
    """The variables that torchrun sets for one process."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, ("0", "0", "1", "1", "localhost", str(port)), strict=True))


def output_of(kind, text):
    """What a command prints, or a program of several lines in a file of its own."""
    if kind == "bash":
        command = ["bash", "-euo", "pipefail", "-c", text]
    else:
        Path(file_of(text)).write_text(text, encoding="utf-8")
        command = [sys.executable, file_of(text)]
    environment = os.environ | (torchrun() if "torchrun" in text else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run(page, blocks):
    """What each block prints; the first that fails ends it."""
    printed, namespace = [], {"__name__": "__main__"}
    for kind, line, text in blocks:
        out = io.StringIO()
        if kind == "python" and not file_of(text):
            # compiled with the line of the page, which a traceback then names
            code = compile("\n" * (line - 1) + text, page, "exec")
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
        elif kind in ("python", "bash"):
            out.write(output_of(kind, text))
        printed.append(out.getvalue())
    return printed


def answer(page, blocks, directory):
    """What the blocks print, or the text of an error, as JSON."""
    os.chdir(directory)
    try:
        return json.dumps(run(page, blocks))
    except BaseException:
        return json.dumps(traceback.format_exc())


def serve(requests, answers):
    """Answers requests one after the other, in forks that leave this process as it is."""
    for request in requests:
        reading, writing = os.pipe()
        if not os.fork():
            with os.fdopen(writing, "w") as back:
                back.write(answer(*json.loads(request)))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as back:
            answers.write(back.read() + "\n")
        answers.flush()
        os.wait()


if __name__ == "__main__":
    for name in SLOW:
        importlib.import_module(name)
    # what a page writes to the descriptor of the output itself is no answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
