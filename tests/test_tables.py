"""Tables through the command line: what was observed comes out as it came in."""

import json
import os
import subprocess
import sys
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.data.formats.registry import listed
from rvi_fast.files import replacing

N = 60
SMALL = ("--epochs", 2, "--latent-dim", 2, "--hidden", 4, "--batch-size", 32, "--groups", 2)


def run(*arguments, status=0, capsys=None):
    assert cli.main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def filled(path, tmp_path, capsys, *train, out=None, impute=()):
    """Trains on a file, fills it in, and gives the path written and what was printed."""
    out = out or tmp_path / f"filled{path.suffix}"
    run("train", "--data", path, "--run-dir", tmp_path / "r", "--quiet", *SMALL, *train,
        capsys=capsys)  # fmt: skip
    text = run(
        "impute", "--run-dir", tmp_path / "r", "--out", out, "--quiet", *impute, capsys=capsys
    )
    return out, text


def numbers(seed=0):
    """Ids of nine digits, epoch seconds, prices, and a column with gaps that depends on the prices."""
    generator = np.random.default_rng(seed)
    price = np.round(generator.normal(250, 40, N), 2)
    return {
        "id": generator.integers(100_000_000, 999_999_999, N),
        "time": 1.7e9 + np.round(generator.random(N) * 1e6, 3),
        "price": price,
        "weight": np.where(np.arange(N) % 5 == 0, np.nan, np.round(price / 10, 1)),
    }


def text_of(columns, delimiter=",", end="\n", decimal="."):
    rows = [delimiter.join(columns)]
    for row in zip(*columns.values(), strict=True):
        cells = ["" if value != value else str(value).replace(".", decimal) for value in row]
        rows.append(delimiter.join(cells))
    return end.join(rows) + end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("delimiter", "decimal", "end"),
    [(",", ".", "\n"), (";", ",", "\r\n"), ("\t", ".", "\n"), ("\t", ",", "\r\n")],
)
def test_text_comes_out_byte_for_byte_but_for_what_was_missing(
    tmp_path, capsys, delimiter, decimal, end, encoding
):
    path = tmp_path / "t.csv"
    written = text_of(numbers(), delimiter, end, decimal)
    path.write_bytes(written.encode(encoding))
    out, printed = filled(path, tmp_path, capsys)
    read = out.read_bytes()
    assert read[:3] == path.read_bytes()[:3]  # a byte-order mark
    before, after = written.split(end), read.decode(encoding).split(end)
    assert len(before) == len(after) == N + 2
    for old, new in zip(before[:-1], after[:-1], strict=True):
        old, new = old.split(delimiter), new.split(delimiter)
        assert old[:3] == new[:3]
        assert new[3:] == old[3:] if old[-1] else 5 < float(new[3].replace(decimal, ".")) < 50
    assert ("decimal comma" in printed) == (decimal == ",")
    assert ("UTF-16" in printed) == (encoding == "utf-16")


def test_quotes_comments_text_and_odd_spellings_survive(tmp_path, capsys):
    head = '# made by hand\nname,a,"b, c",d\n'
    rows = [f'"row, ""{n}""\nof 20",{n}, "{n * 2}.50" ,{1e-3 * n:.6e}\n' for n in range(20)]
    rows[3] = 'x, NA ,"?", 1 \n'
    path = tmp_path / "t.csv"
    path.write_text(
        head + "\n" + "".join(rows[:10]) + "\n# half\n" + "".join(rows[10:]).rstrip("\n")
    )
    out, printed = filled(path, tmp_path, capsys)
    before, after = path.read_text(), out.read_text()
    at = before.index("x, NA")
    assert after[:at] == before[:at]
    rest = before[at:].index("\n")
    assert after.endswith(before[at + rest :])
    changed = after[at : len(after) - len(before[at + rest :])]
    name, a, b, d = changed.split(",")
    assert (name, d) == ("x", " 1 ")
    assert a[0] == a[-1] == " "
    assert b[0] == b[-1] == '"'
    assert float(a) == float(a)
    assert float(b.strip('"')) == float(b.strip('"'))
    assert "carried along: 0 ('name') (as in training)" in printed
    assert "comments (#) on 2 lines" in printed


def test_one_column_keeps_its_empty_lines(tmp_path, capsys):
    path = tmp_path / "t.csv"
    cells = ["" if n % 6 == 0 else str(n) for n in range(1, 301)]
    path.write_text("\n".join(["size", *cells]) + "\n")
    out, _ = filled(path, tmp_path, capsys)
    lines = out.read_text().split("\n")[1:-1]
    assert len(lines) == 300
    assert all(new == old if old else float(new) for old, new in zip(cells, lines, strict=True))
    for rows in (["", "1", "", "2"], ["1", "2", ""]):
        path.write_text("\n".join(rows) + "\n")
        assert len(data.load_data(path).train) == len(rows)


def test_a_header_of_numbers_is_what_the_option_says(tmp_path, capsys):
    path = tmp_path / "t.csv"
    generator = np.random.default_rng(0)
    rows = [",".join(f"{value:.3f}" for value in row) for row in generator.normal(size=(N, 3))]
    rows[4] = ",1,2"
    path.write_text("\n".join(["2019,2020,2021", *rows]))
    arguments = ("train", "--data", path, "--quiet", *SMALL, "--run-dir")
    text = run(*arguments, tmp_path / "a", capsys=capsys)
    assert f"{N + 1} rows" in text
    assert "the first line is data (--header if it holds names)" in text
    text = run(*arguments, tmp_path / "b", "--header", capsys=capsys)
    assert f"{N} rows" in text
    assert json.loads((tmp_path / "b" / "run.json").read_text())["columns"] == [
        "2019",
        "2020",
        "2021",
    ]
    run(
        "impute", "--run-dir", tmp_path / "b", "--out", tmp_path / "f.csv", "--quiet", capsys=capsys
    )
    after = (tmp_path / "f.csv").read_text().split("\n")
    assert after[:5] == ["2019,2020,2021", *rows[:4]]
    assert after[5].endswith(",1,2")
    assert after[5][0] != ","
    (tmp_path / "n.csv").write_text("a,b\n" + "1,2\n" * 9)
    with pytest.raises(data.DataError, match=r"line 1, column 0: 'a' is not a number.*header"):
        data.load_data(tmp_path / "n.csv", header=False)


def test_what_was_never_observed_stays_empty(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,\n" + "".join(f"{n},,{n % 7 or ''},\n" for n in range(N)))
    out, printed = filled(path, tmp_path, capsys)
    assert "never observed, stay empty: 'b', ''" in printed
    for old, new in zip(path.read_text().split("\n"), out.read_text().split("\n"), strict=True):
        assert old == new or (old.split(",")[2] == "" and old.replace(",,,", "") in new)
        assert new.split(",")[1:2] in ([""], ["b"], [])
        assert new.split(",")[3:] in ([""], [])
    (tmp_path / "all.csv").write_text("a,b\n" + ",\n" * 9)
    text = run("train", "--data", tmp_path / "all.csv", "--run-dir", tmp_path / "n", status=2,
               capsys=capsys)  # fmt: skip
    assert "every entry" in text


def test_columns_are_matched_by_name(tmp_path, capsys):
    columns = numbers()
    path, other = tmp_path / "t.csv", tmp_path / "o.csv"
    path.write_text(text_of(columns))
    same, _ = filled(path, tmp_path, capsys, impute=("--data", path))
    names = ["weight", "id", "price", "time"]
    other.write_text(text_of({name: columns[name] for name in names}))
    arguments = ("impute", "--run-dir", tmp_path / "r", "--quiet", "--data")
    run(*arguments, other, "--out", tmp_path / "g.csv", capsys=capsys)
    a, b = data.read_table(same), data.read_table(tmp_path / "g.csv")
    assert b.features == tuple(names)
    np.testing.assert_array_equal(a.values[:, [3, 0, 2, 1]], b.values)
    lacking = {"weight": columns["weight"], "id": columns["id"], "cost": columns["price"]}
    other.write_text(text_of(lacking))
    text = run(*arguments, other, "--out", tmp_path / "h.csv", status=2, capsys=capsys)
    assert "missing: time, price; extra: cost" in text
    # no names: by position
    np.save(tmp_path / "n.npy", np.stack([columns[name] for name in columns], axis=1))
    run(*arguments, tmp_path / "n.npy", "--out", tmp_path / "n_out.npy", capsys=capsys)
    np.testing.assert_allclose(np.load(tmp_path / "n_out.npy"), a.values, rtol=1e-6)


def test_columns_left_out_and_columns_of_text_are_carried(tmp_path, capsys):
    columns = {"day": [f"2024-01-{1 + n % 28:02}" for n in range(N)], **numbers()}
    path = tmp_path / "t.csv"
    path.write_text(text_of(columns))
    out, printed = filled(path, tmp_path, capsys, "--ignore", "id")
    assert "carried along: 0 ('day') (as in training), 1 ('id') (left out)" in printed
    before, after = (p.read_text().split("\n") for p in (path, out))
    assert [line.split(",")[:4] for line in before] == [line.split(",")[:4] for line in after]
    # new data are read as the data of training
    _, printed = filled(
        path, tmp_path, capsys, "--ignore", "id", "--resume", impute=("--data", path)
    )
    assert "1 ('id') (as in training)" in printed
    text = run("train", "--data", path, "--ignore", "idd", "--run-dir", tmp_path / "q", status=2,
               capsys=capsys)  # fmt: skip
    assert "ignore: expected columns of the table ('day', 'id'" in text
    path.write_text("a,b\n1,2\n3,red\n")
    text = run("train", "--data", path, "--run-dir", tmp_path / "q", status=2, capsys=capsys)
    assert "line 3, column 1 ('b'): 'red' is not a number" in text


def test_arrays_keep_values_and_dtype(tmp_path, capsys):
    generator = np.random.default_rng(0)
    whole = generator.integers(0, 2**40, (N, 3))
    for name, array in (
        ("f8", np.where(generator.random((N, 3)) < 0.2, np.nan, 1.7e9 + generator.random((N, 3)))),
        ("f4", np.where(generator.random((N, 3)) < 0.2, np.nan, whole).astype(">f4")),
        ("i8", whole),
    ):
        path = tmp_path / f"{name}.npy"
        np.save(path, array)
        (tmp_path / name).mkdir()
        out, _ = filled(path, tmp_path / name, capsys)
        after = np.load(out)
        assert after.dtype == array.dtype
        known = ~np.isnan(array)
        np.testing.assert_array_equal(after[known], array[known])
        assert np.isfinite(after).all()
    # nothing but float64 holds what is filled in
    (tmp_path / "h").mkdir()
    hidden, _ = filled(tmp_path / "i8.npy", tmp_path / "h", capsys, "--missing", 0.2)
    shown = data.mcar(whole.shape, 0.2, seed=0)
    assert np.load(hidden).dtype == np.float64
    np.testing.assert_array_equal(np.load(hidden)[shown], whole[shown])
    # but where that would change others
    huge = data.fill(np.array([2**60 + 1, 5]), np.array([0.0, 2.6]), np.array([False, True]))
    assert huge.tolist() == [2**60 + 1, 3]


def test_stacks_of_images_keep_their_shape(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (N, 4, 5), np.uint8)
    np.save(tmp_path / "t.npy", images)
    out, _ = filled(tmp_path / "t.npy", tmp_path, capsys, "--missing", 0.3)
    after, shown = np.load(out), data.mcar((N, 20), 0.3, seed=0).reshape(images.shape)
    assert (after.shape, after.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(after[shown], images[shown])


def test_parquet_keeps_types_index_and_names(tmp_path, capsys):
    pandas = pytest.importorskip("pandas")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = numbers()
    gap = np.arange(N) % 5 == 0
    frame = pandas.DataFrame(
        {
            "key": np.arange(N) + 2**60,
            **columns,
            "count": pandas.array(np.where(gap, None, np.arange(N)), "Int64"),
            "small": columns["weight"].astype(np.float32),
            "cost": [None if g else Decimal(f"{n}.25") for n, g in enumerate(gap)],
            "color": pandas.Categorical(["red", "green", "blue"] * (N // 3)),
            "day": [datetime(2024, 1, 1 + n % 28) for n in range(N)],
        },
        index=pandas.Index([f"r{n}" for n in range(N)], name="row"),
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    out, printed = filled(path, tmp_path, capsys)
    after = pandas.read_parquet(out)
    pandas.testing.assert_index_equal(after.index, frame.index)
    assert list(after) == list(frame)
    for name in frame:
        known = frame[name].notna().to_numpy()
        assert after[name].notna().all()
        assert [*after[name][known]] == [*frame[name][known]], name
        assert after[name].dtype == (np.float64 if name == "count" else frame[name].dtype), name
    assert "('color') (as in training)" in printed
    assert "('row') (as in training)" in printed
    one = arrow.table([arrow.array([1.0, None] * 30)] * 2, names=["a", "a"])
    parquet.write_table(one, tmp_path / "twice.parquet")
    (tmp_path / "d").mkdir()
    out, _ = filled(tmp_path / "twice.parquet", tmp_path / "d", capsys)
    with open(out, "rb") as file:
        assert parquet.ParquetFile(file).read().column_names == ["a", "a"]


def test_whole_numbers_are_filled_in_within_their_type(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = arrow.array([1, None, 3, None], arrow.uint8())
    parquet.write_table(arrow.table({"n": column}), tmp_path / "t.parquet")
    table = data.read_table(tmp_path / "t.parquet")
    filled = table.filled(np.array([[1.0], [-3.0], [3.0], [300.0]]), np.isnan(table.values))
    assert filled.columns()[0].values == [1, 0, 3, 255]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".npy", ".npz"])
def test_another_format_keeps_the_numbers(tmp_path, capsys, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv"
    path.write_text(text_of({"who": ["a,b"] * N, **numbers()}, delimiter=";"))
    out, _ = filled(path, tmp_path, capsys, out=tmp_path / f"f{suffix}")
    before, after = data.read_table(path), data.read_table(out)
    known = ~np.isnan(before.values)
    np.testing.assert_array_equal(before.values[known], after.values[known])
    carried = {".npy": (), ".npz": ()}.get(suffix, ("who",))
    assert after.carried_names == carried


def test_whole_numbers_that_float64_rounds_stay_as_they_are(tmp_path):
    numbers = [2**53 - 1, 2**53 + 1, -(2**53) - 1, 123456789012345678]
    path = tmp_path / "t.csv"
    path.write_text(text_of({"id": numbers, "x": [1.5, 2.5, 3.5, 4.5]}))
    assert [*data.read_table(path).columns()[0].values] == numbers


def test_bounds_hold_for_what_is_filled_in(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(text_of(numbers()))
    out, _ = filled(path, tmp_path, capsys, impute=("--min-value", 24, "--max-value", 24.5))
    weight = data.read_table(out).values[:, 3][np.arange(N) % 5 == 0]
    assert ((weight >= 24) & (weight <= 24.5)).all()
    text = run("impute", "--run-dir", tmp_path / "r", "--out", out, "--min-value", 2, "--max-value", 1,
               status=2, capsys=capsys)  # fmt: skip
    assert "--min-value: expected at most --max-value (1.0), got 2.0" in text


@pytest.fixture
def trained(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(text_of(numbers()))
    run("train", "--data", path, "--run-dir", tmp_path / "r", "--quiet", *SMALL, capsys=capsys)
    return tmp_path


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("absent/f.csv", (), "--out: the directory"),
        ("f.xlsx", (), f"--out: expected {listed(data.SUFFIXES)}"),
        ("f.csv", ("--draws", 2), "--out: expected .npy or .npz"),
        ("f.npy", ("--draws", 0), "--draws: expected an integer >= 1"),
        ("folder.csv", (), "is a directory"),
        ("t.csv", (), "--out: expected another file than the data"),
        ("f.csv", ("--device", "nope"), "--device: expected cpu, cuda, xpu or mps, got 'nope'"),
        ("f.csv", ("--device", "meta"), "--device: expected cpu, cuda, xpu or mps, got 'meta'"),
        ("f.csv", ("--steps", 0), "--steps: expected"),
        ("f.csv", ("--lr", -1), "--lr: expected"),
        ("f.csv", ("--data", "digits", "--header"), "--header: expected a file"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    trained, monkeypatch, capsys, out, more, message
):
    def work(*arguments, **options):
        raise AssertionError("work was done")

    (trained / "folder.csv").mkdir()
    monkeypatch.setattr(cli.apply, "impute", work)
    monkeypatch.setattr(cli.apply, "infer", work)
    monkeypatch.chdir(trained)
    before = sorted(os.listdir("."))
    text = run("impute", "--run-dir", "r", "--out", out, *more, status=2, capsys=capsys)
    assert message in text
    assert text.startswith("rvi-fast: error: ")
    assert text.count("\n") == 1
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "mps:7"), "torch sees 0 MPS devices"),
        (("--latent-dim", 10**9), "lower groups or latent_dim"),
        (("--groups", 10**9), "lower groups or latent_dim"),
        (("--hidden", 10**9), "network: needs"),
        (("--model", "vae", "--latent-dim", 10**9), "network: needs"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, capsys, arguments, message):
    text = run("train", "--data", "digits", "--run-dir", tmp_path / "r", *arguments, status=2,
               capsys=capsys)  # fmt: skip
    assert message in text
    assert text.count("\n") == 1


def test_options_are_never_cut_short(tmp_path):
    for command in ("train", "infer", "impute", "export", "demo", "reproduce", "report"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--hel"])
        assert end.value.code == 2
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "imputation", "--data-d", "x", "--out", str(tmp_path)])


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = """
import os, sys
from pathlib import Path
from rvi_fast.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
"""
    target = tmp_path / "f.npy"
    killed = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True)
    assert killed.returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    with replacing(target) as file:
        file.write(b"whole")
        # nobody takes the file of a process that lives
        data.save_table(target, np.zeros((2, 2)))
    assert os.listdir(tmp_path) == ["f.npy"]
    assert target.read_bytes() == b"whole"


def test_a_directory_that_fit_made_takes_new_data(tmp_path, capsys):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(N, 4)).astype(np.float32)
    x[generator.random(x.shape) < 0.2] = np.nan
    np.save(tmp_path / "new.npy", x)
    model = rvi_fast.models.rvi(N, 4, latent_dim=2, hidden=[4], groups=[2])
    rvi_fast.fit(model, x, epochs=2, run_dir=tmp_path / "r", progress=False)
    arguments = ("impute", "--run-dir", tmp_path / "r", "--out", tmp_path / "f.npy", "--quiet")
    text = run(*arguments, "--data", tmp_path / "new.npy", capsys=capsys)
    assert "no run.json" in text
    after = np.load(tmp_path / "f.npy")
    np.testing.assert_array_equal(after[~np.isnan(x)], x[~np.isnan(x)])
    posterior = rvi_fast.infer(model, x)
    wanted = rvi_fast.impute(model, x, posterior=posterior).numpy()
    np.testing.assert_allclose(after, wanted, rtol=1e-5)
    assert "--data: expected a table" in run(*arguments, status=2, capsys=capsys)


def test_changed_data_are_one_line_that_says_what_to_do(trained, capsys):
    path = trained / "t.csv"
    lines = path.read_text().split("\n")
    resume = ("train", "--data", path, "--run-dir", trained / "r", "--quiet", *SMALL, "--resume")
    for changed in ([lines[0], *lines[-2:0:-1], ""], [*lines[:5], "1,2,3,4", *lines[6:]]):
        path.write_text("\n".join(changed))
        text = run(*resume, capsys=capsys, status=2)
        assert text.startswith("rvi-fast: error: --data: ")
        assert "name another --run-dir" in text
        assert len(text) < 400
        text = run("impute", "--run-dir", trained / "r", "--out", trained / "f.csv", status=2,
                   capsys=capsys)  # fmt: skip
        assert "name it with --data" in text
    path.write_text("\n".join(lines))
    run(*resume, capsys=capsys)


def test_every_damage_of_run_json_is_one_refusal(trained, capsys):
    path = trained / "r" / "run.json"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.integers(0, len(whole), 25):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(generator.integers(0, 7))
        path.write_bytes(damaged)
        text = run("impute", "--run-dir", trained / "r", "--out", trained / "f.csv", "--quiet",
                   status=2, capsys=capsys)  # fmt: skip
        assert "run.json: is damaged" in text


@pytest.mark.parametrize("module", ["rvi_fast", "rvi_fast.cli"])
def test_a_process_of_its_own_fills_a_file(trained, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "impute", "--run-dir", str(trained / "r"), "--out",
         str(trained / "f.csv"), "--quiet", "--device", "cpu"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (trained / "t.csv").read_text(), (trained / "f.csv").read_text()
    assert [line.split(",")[:3] for line in before.split("\n")] == [
        line.split(",")[:3] for line in after.split("\n")
    ]


def test_whole_numbers_that_float64_rounds_go_from_text_to_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.csv"
    path.write_text(f"n,x\n1,0.5\n{2**53 + 1},\n,2\n")
    data.write_table(tmp_path / "a.parquet", data.read_table(path))
    assert pandas.read_parquet(tmp_path / "a.parquet", dtype_backend="pyarrow")["n"][1] == 2**53 + 1
    path.write_text(f"n\n0.5\n{2**53 + 1}\n")
    with pytest.raises(ValueError, match=r"path: column 'n': "):
        data.write_table(tmp_path / "b.parquet", data.read_table(path))
    assert not (tmp_path / "b.parquet").exists()
