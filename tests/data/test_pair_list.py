"""Lists of pairs: folders, CSV, JSON lines."""

import csv
import io
import json
import locale
import time
from pathlib import Path

import pytest

from splice_ff.data.pair_list import PairFiles, read_pairs
from splice_ff.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "pairs"


def put(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_folder_of_pair_folders(tmp_path):
    put(tmp_path / "b" / "structure.png")
    put(tmp_path / "b" / "appearance.JPG")
    put(tmp_path / "b" / "appearance.txt")  # notes, not an image
    put(tmp_path / "a" / "structure.webp")
    put(tmp_path / "a" / "appearance.webp")
    put(tmp_path / "notes" / "read.me")
    put(tmp_path / ".hidden" / "structure.png")
    put(tmp_path / "pairs.json")
    assert read_pairs(tmp_path) == [
        PairFiles("a", tmp_path / "a" / "structure.webp", tmp_path / "a" / "appearance.webp"),
        PairFiles("b", tmp_path / "b" / "structure.png", tmp_path / "b" / "appearance.JPG"),
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_the_shared_pairs():
    pairs = read_pairs(SHARED)
    assert len(pairs) == 164
    assert all(pair.structure.exists() and pair.appearance.exists() for pair in pairs)


def test_csv_paths_are_its_folder_s_and_need_not_exist(tmp_path):
    text = "\ufeffname,structure,appearance,extra\none,x/s.png,a.png,7\n,/abs/s.png,b.png,\n"
    assert read_pairs(put(tmp_path / "l" / "pairs.csv", text)) == [
        PairFiles("one", tmp_path / "l" / "x" / "s.png", tmp_path / "l" / "a.png"),
        PairFiles("s--b", Path("/abs/s.png"), tmp_path / "l" / "b.png"),
    ]


def test_jsonl_with_blank_lines(tmp_path):
    text = '{"structure": "s.png", "appearance": "a.png"}\n\n{"structure": "é.png", "appearance": "a.png", "name": "n"}'
    assert [pair.name for pair in read_pairs(put(tmp_path / "pairs.jsonl", text))] == ["s--a", "n"]


def test_default_names_are_made_unique_and_leave_given_names_alone(tmp_path):
    lines = ["structure,appearance,name", "s.png,a.png,", "t/s.png,a.png,", "s.png,a.jpg,", "x.png,y.png,s--a-2"]
    names = [pair.name for pair in read_pairs(put(tmp_path / "pairs.csv", "\n".join(lines)))]
    assert names == ["s--a", "s--a-3", "s--a-4", "s--a-2"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "structure,look\na,b\n", "no column 'appearance'"),
        ("p.csv", "appearance\nb\n", "no column 'structure'"),
        ("p.csv", "", "no column 'structure'"),
        ("p.csv", "structure,appearance\na.png\n", "line 2: no 'appearance'"),
        ("p.csv", 'structure,appearance\n"a.png,b.png\n', "not a CSV file"),
        ("p.csv", "structure,appearance\n", "no pairs in it"),
        ("p.csv", "structure,appearance,name\na,b,n\nc,d,n\n", "line 3: the name 'n' is given twice"),
        ("p.csv", "structure,appearance,name\na,b,../n\n", "'../n' is no file name"),
        ("p.jsonl", '{"structure": "a", "appearance": "b"}\n{"structure"', "line 2: not JSON"),
        ("p.jsonl", '["a", "b"]', "line 1: not an object"),
        ("p.jsonl", '{"structure": 3, "appearance": "b"}', "line 1: no 'structure'"),
        ("p.jsonl", "", "no pairs in it"),
        ("p.txt", "a b", "not a list of pairs"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(put(tmp_path / name, text))
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_other_encodings_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes("structure,appearance\né,b\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_pairs(tmp_path / name)


def test_missing_source_empty_folder_and_broken_pair_folders(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_pairs(tmp_path / "absent")
    with pytest.raises(InputError, match="no pairs in it"):
        read_pairs(tmp_path)
    put(tmp_path / "a" / "structure.png")
    with pytest.raises(InputError, match="no appearance image"):
        read_pairs(tmp_path)
    put(tmp_path / "a" / "appearance.png")
    put(tmp_path / "a" / "appearance.webp")
    with pytest.raises(InputError, match=r"appearance.png and appearance.webp; keep one"):
        read_pairs(tmp_path)


ODD = {
    "u2028": "a\u2028b",
    "u0085": "a\u0085b",
    "tab": "a\tb\x1b[31m",
    "null": "a\0b",
    "surrogate": "a\ud800b",
    "snow": "Зима ☃",
    "dash": "-rf",
    "percent": "100%",
}


def write_list(path, rows):
    """The same list as .jsonl or .csv."""
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        return put_bytes(path, text.encode("utf-8", "surrogatepass"))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["structure", "appearance", "name"])
    writer.writeheader(), writer.writerows(rows)
    return put_bytes(path, file.getvalue().encode("utf-8", "surrogatepass"))


def put_bytes(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("name", [name for key, name in ODD.items() if key not in ("surrogate", "null")])
def test_names_with_odd_characters_are_usable(tmp_path, suffix, name):
    row = {"structure": "s.png", "appearance": "a.png", "name": name}
    (pair,) = read_pairs(write_list(tmp_path / f"pairs{suffix}", [row]))
    assert pair.name.isprintable() and len(pair.name) == len(name)
    assert pair.name == name or not name.isprintable()
    (tmp_path / f"{pair.name}.png").touch()


@pytest.mark.parametrize("name", [ODD["surrogate"], ODD["null"]])
def test_escaped_halves_of_characters_and_nulls(tmp_path, name):
    (pair,) = read_pairs(put(tmp_path / "p.jsonl", json.dumps({"structure": "s", "appearance": "a", "name": name})))
    assert pair.name == "a_b"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_long_names_are_shortened_apart_and_do_not_end_a_batch(tmp_path, suffix):
    rows = [{"structure": "s.png", "appearance": "a.png", "name": "ü" * 400 + end} for end in ("x", "y")]
    rows += [{"structure": f"{'s' * 250}.png", "appearance": f"{'a' * 250}.png", "name": ""}] * 2
    names = [pair.name for pair in read_pairs(write_list(tmp_path / f"p{suffix}", rows))]
    assert len({*names}) == 4 and names == [p.name for p in read_pairs(tmp_path / f"p{suffix}")]
    for name in names:
        (tmp_path / f"pair-{name}.parquet").touch()  # a name that the file system takes


def test_names_that_become_alike_are_told_apart(tmp_path):
    rows = [{"structure": "s", "appearance": "a", "name": name} for name in ("a\tb", "a_b", "a\nb")]
    rows.append({"structure": "a_b", "appearance": "x", "name": ""})
    names = [pair.name for pair in read_pairs(write_list(tmp_path / "p.jsonl", rows))]
    assert names == ["a_b", "a_b-2", "a_b-3", "a_b--x"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("p.csv", ["structure,appearance,name", "~/é.png,b/a.png,ñ"]),
        ("p.jsonl", ['{"structure": "~/é.png", "appearance": "b/a.png", "name": "ñ"}']),
    ],
)
def test_utf8_line_ends_home_and_relative_paths_whatever_the_locale(tmp_path, monkeypatch, newline, mark, name, lines):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(locale, "getencoding", lambda: "ascii")
    put_bytes(tmp_path / name, (mark + newline.join(lines) + newline).encode())
    assert read_pairs(tmp_path / name) == [PairFiles("ñ", tmp_path / "home" / "é.png", tmp_path / "b" / "a.png")]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"structure": ' + "9" * 5000 + "}", "{'structure': 1}", "NaN"])
def test_lines_out_of_bounds_are_one_line(tmp_path, line):
    with pytest.raises(InputError, match=r"line 1: no") as caught:
        read_pairs(put(tmp_path / "p.jsonl", line))
    assert len(str(caught.value)) < 400


def test_a_home_that_is_unknown_is_a_plain_path(tmp_path):
    (pair,) = read_pairs(put(tmp_path / "p.jsonl", '{"structure": "~nobody-here/s.png", "appearance": "a.png"}'))
    assert pair.structure == tmp_path / "~nobody-here" / "s.png"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_hundred_thousand_unnamed_pairs_in_seconds(tmp_path, suffix):
    rows = [{"structure": "s.png", "appearance": "a.png", "name": ""}] * 100_000
    write_list(tmp_path / f"p{suffix}", rows)
    start = time.process_time()
    pairs = read_pairs(tmp_path / f"p{suffix}")
    assert time.process_time() - start < 5
    assert len({pair.name for pair in pairs}) == 100_000 and pairs[-1].name == "s--a-100000"
