"""Runs the notebooks of this directory and keeps what they print and draw.

    pip install nbclient ipykernel
    python docs/notebooks/execute.py

The suite runs their cells too, without a kernel, and leaves the files alone.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path(__file__).parent.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as empty:
        resources = {"metadata": {"path": empty}}
        NotebookClient(notebook, record_timing=False, resources=resources).execute()
    # of the machine that ran them
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
