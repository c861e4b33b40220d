"""Lists of pairs: folders, CSV, JSON lines."""

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
