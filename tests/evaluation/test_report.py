"""Statistics with known answers, the tables, and the report as a browser shows it."""

import errno
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from splice_ff.errors import InputError
from splice_ff.evaluation import bootstrap, report, tables
from splice_ff.evaluation.metrics import METRICS
from splice_ff.evaluation.summary import summarize
from splice_ff.images import save_image

CHROMIUM = shutil.which("chromium")
METHODS = ["copy", "<b>ours</b>", "theirs"]
PAIRS = 12


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve pairs of two domains: ours half-way from copy to theirs; theirs has no image of the last pair."""
    folder = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    found = []
    for i in range(PAIRS):
        name = f"pair-{i:02d}"
        noise = float(rng.normal(0, 0.02))
        for role in ("structure", "appearance"):
            save_image(folder / f"{name}-{role}.png", torch.full((1, 3, 24, 32), i / PAIRS))
        for method, gap in zip(METHODS, (0.0, 0.5, 1.0), strict=True):
            if method == "theirs" and i == PAIRS - 1:
                continue
            image = f"images/{len(found)}.png"
            save_image(folder / image, torch.full((1, 3, 24, 32), gap))
            values = {m.name: 1 + noise + m.sign * gap + (i % 3) * 0.1 for m in METRICS if m.name != "identity"}
            found.append(
                {
                    "pair": name, "domain": "cat" if i < 8 else 'sea & "sky"', "method": method, "image": image,
                    "structure_file": str(folder / f"{name}-structure.png"), "error": None,
                    "appearance_file": str(folder / f"{name}-appearance.png"),
                    "seconds": {"copy": 1e-6, "theirs": None}.get(method, 2.0 + i), **values,
                }
            )  # fmt: skip
    broken = found[0] | {"pair": "broken", "error": "damaged </script><i>file</i>", "image": None, "seconds": None}
    found.append({k: v for k, v in broken.items() if k not in {m.name for m in METRICS}})
    return folder, found


@pytest.fixture(scope="module")
def written(rows):
    folder, found = rows
    summary = summarize(found, METHODS, METRICS, "theirs", {"command": "x < y", "other backbones": []})
    return folder, summary, report.write_report(folder, summary, found).read_text()


def test_bootstrap_of_the_mean_is_students():
    values = np.random.default_rng(1).normal(5, 2, 400)
    estimate = bootstrap.mean(values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert estimate == bootstrap.mean(values.tolist())


def test_too_few_pairs_have_no_interval():
    assert bootstrap.mean([1.0, 2.0, 3.0, 4.0]) == bootstrap.Estimate(2.5, None, None, 4)
    with pytest.raises(ValueError, match="no values"):
        bootstrap.mean([])


def test_the_p_value_is_that_of_all_signs():
    shares = [3.0, 2.0, 1.0, -0.5]
    sums = [abs(np.dot(signs, shares)) for signs in itertools.product((-1, 1), repeat=4)]
    exact = np.mean([total >= 5.5 for total in sums])
    assert bootstrap.permutation_p_value(shares) == pytest.approx(exact, abs=0.02) and exact == 0.25
    assert bootstrap.permutation_p_value([0.0, 0.0]) == 1
    assert bootstrap.permutation_p_value([1.0] * 40) < 0.001


def test_paired_differences_see_what_means_do_not():
    base = {str(i): float(i) for i in range(20)}
    ours = {k: v - 0.1 for k, v in base.items()} | {"another": 1000.0}
    difference = bootstrap.paired_difference(ours, base, sign=-1)
    assert difference.n == 20 and difference.wins == 1
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert bootstrap.paired_difference(ours, base, sign=1).wins == 0
    assert bootstrap.paired_difference(base, base, sign=1).wins == 0.5
    assert bootstrap.paired_difference(ours, {"other": 1.0}, sign=1) is None


def test_gap_closed():
    floor = {str(i): 2.0 + 0.1 * i for i in range(10)}
    goal = {k: v - 1 for k, v in floor.items()}
    ours = {k: v - 0.3 for k, v in floor.items()}
    gap = bootstrap.gap_closed(ours, floor, goal)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.3, 0.3, 0.3))
    uncertain = {k: v + (1 if int(k) % 2 else -1) for k, v in floor.items()}
    assert bootstrap.gap_closed(ours, floor, uncertain) is None
    assert bootstrap.gap_closed(ours, floor, {k: goal[k] for k in list(goal)[:3]}) is None
    assert bootstrap.gap_closed(ours, floor, {}) is None


@pytest.mark.filterwarnings("error")
def test_a_gap_of_nothing_has_no_ratio():
    floor = {str(i): 0.0 for i in range(10)}
    assert bootstrap.gap_closed(dict.fromkeys(floor, 1.0), floor, dict(floor)) is None
    goal = {k: -1.0 if k == "0" else 1.0 for k in floor}  # the gap is certain, but nothing in some of the samples
    gap = bootstrap.gap_closed(dict(floor), floor, goal)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)


def test_summary(written):
    _, summary, _ = written
    ours = summary["methods"]["<b>ours</b>"]
    assert summary["pairs"] == PAIRS and summary["domains"] == {"cat": 8, 'sea & "sky"': 4}
    assert ours["pairs"] == 12 and summary["methods"]["theirs"]["pairs"] == 11
    assert ours["seconds"] == 7.5 and summary["methods"]["theirs"]["seconds"] is None
    assert ours["differences"]["objective"]["value"] == pytest.approx(0.5)
    assert ours["differences"]["cls_cosine"]["value"] == pytest.approx(-0.5)
    assert ours["differences"]["objective"]["n"] == 11 and ours["differences"]["objective"]["wins"] == 0
    assert ours["gap_closed"]["objective"]["value"] == pytest.approx(0.5)
    assert set(ours["gap_closed"]) == {"objective", "cls_cosine", "color", "texture"}
    assert ours["gap_closed_by_domain"]['sea & "sky"'] == {}
    assert "identity" not in ours["means"]
    assert [error["pair"] for error in summary["errors"]] == ["broken"]


def test_summary_refuses(rows):
    _, found = rows
    with pytest.raises(InputError, match="'splice' is not among the methods"):
        summarize(found, METHODS, METRICS, "splice", {})
    with pytest.raises(InputError, match=r"nothing could be measured \(damaged"):
        summarize(found[-1:], METHODS, METRICS, "copy", {})


def test_verdicts(written):
    _, summary, _ = written
    table = tables.differences_table(summary)
    by_metric = {row[0].text: row for row in table.rows}
    assert table.header == ["difference", "copy", "<b>ours</b>"]
    for name in ("objective ↓", "CLS cosine ↑"):
        assert [cell.verdict for cell in by_metric[name][1:]] == ["worse", "worse"]
    assert by_metric["objective ↓"][2].text == "+0.5" and by_metric["objective ↓"][2].detail.endswith(" 0%")


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (3e-9, "0"), (-0.01234, "-0.0123"), (12345.6, "12346")])
def test_numbers(value, text):
    assert tables.number(value) == text


def test_markdown_tables_are_whole(written):
    folder, _, _ = written
    text = (folder / "summary.md").read_text()
    for block in re.split(r"\n(?!\|)", text):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "| objective ↓ |" in text and "command: x &lt; y" in text


def test_other_files(rows, written):
    folder, summary, _ = written
    assert json.loads((folder / "summary.json").read_text()) == summary
    table = pq.read_table(folder / "results.parquet").to_pylist()
    assert len(table) == len(rows[1])
    assert table[4]["objective"] == rows[1][4]["objective"] and table[4]["identity"] is None
    assert table[-1]["error"].startswith("damaged") and table[-1]["objective"] is None


class Links(HTMLParser):
    """Everything that a browser would fetch, and the elements met."""

    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]


def test_the_page_needs_no_other_file_and_escapes_names(written):
    parser = Links()
    parser.feed(written[2])
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in parser.links)
    assert sum(link.startswith("data:") for link in parser.links) == 2 * (PAIRS + 1) + 3 * PAIRS - 1
    assert "b" not in parser.tags and "i" not in parser.tags
    assert parser.tags.count("svg") == 3
    assert "@import" not in written[2] and "url(http" not in written[2]


NASTY = ["copy", "a$b_{<b>|\x1b[31m", "_hidden", "名前"]


def test_no_name_breaks_a_report(tmp_path):
    """Formulas, bars, HTML, control characters and broken Unicode in names of methods, pairs, domains and files."""
    values = {m.name: 0.5 for m in METRICS if m.name != "identity"}
    rows = [
        {
            "pair": f"{i}\udcff</script><i>|", "domain": ("$\\frac{", "_\x00|<b>")[i % 2], "method": method,
            "image": None,
            "structure_file": "\udcff.png", "appearance_file": "none.png", "seconds": 1.0, "error": None,
            **{name: value + 0.1 * j + 0.01 * i for name, value in values.items()},
        }
        for i in range(12)
        for j, method in enumerate(NASTY)
    ]  # fmt: skip
    summary = summarize(rows, NASTY, METRICS, NASTY[1], {"command": "x \x1b[0m | <b>"})
    text = report.write_report(tmp_path, summary, rows).read_text(encoding="utf-8")
    parser = Links()
    parser.feed(text)
    assert {"b", "i"}.isdisjoint(parser.tags) and parser.tags.count("script") == 2
    table = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "<b>" not in table and "\x1b" not in table + text and "\x00" not in table + text
    *blocks, meanings = ([line for line in b.splitlines() if line[:1] == "|"] for b in table.split("###")[1:])
    assert not meanings
    assert all(len({line.replace("\\|", "").count("|") for line in block}) == 1 for block in blocks)
    assert pq.read_table(tmp_path / "results.parquet").num_rows == len(rows)
    assert "_hidden" in text


@pytest.mark.parametrize("name", ["summary.json", "summary.md", "results.parquet", "report.html"])
def test_a_full_disk_leaves_whole_files(rows, written, tmp_path, monkeypatch, name):
    _, found = rows
    (tmp_path / name).write_bytes(b"of an earlier report")
    write = Path.write_bytes

    def fill(path, data):
        write(path, data[:9])
        if path.suffix == Path(name).suffix:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: cannot be written \(No space left"):
        report.write_report(tmp_path, written[1], found)
    assert (tmp_path / name).read_bytes() == b"of an earlier report"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(
    ("choices", "first", "last", "shown"),
    [
        ({}, "least of ours", "broken", 13),
        ({"order": "worst", "method": "copy"}, "worst of copy", "broken", 13),
        ({"order": "name"}, "broken", "pair-11", 13),
        ({"method": "theirs", "metric": "cls_cosine", "domain": 'sea & "sky"'}, "most cosine of theirs", None, 4),
    ],
)
def test_in_a_browser(rows, written, tmp_path, choices, first, last, shown):
    _, found = rows
    values = {(row["pair"], row["method"]): row for row in found if not row["error"]}
    expected = {
        "least of ours": min(
            (p for p, m in values if m == METHODS[1]), key=lambda p: values[p, METHODS[1]]["objective"]
        ),
        "worst of copy": max((p for p, m in values if m == "copy"), key=lambda p: values[p, "copy"]["objective"]),
        "most cosine of theirs": max(
            (p for p, m in values if m == "theirs"), key=lambda p: values[p, "theirs"]["cls_cosine"]
        ),
    }.get(first, first)
    choose = "".join(
        f"document.getElementById({json.dumps(k)}).value = {json.dumps(v)};"
        f"document.getElementById({json.dumps(k)}).dispatchEvent(new Event('change'));"
        for k, v in choices.items()
    )
    tell = (
        "const shown = pairs.filter(p => !p.hidden); document.title = JSON.stringify({order: [...main.children].map("
        "p => p.dataset.pair), shown: shown.length, wide: document.documentElement.scrollWidth - innerWidth, "
        "first: [...main.children[0].querySelectorAll('output')].map(o => o.textContent),"
        "broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length});"
    )
    page = tmp_path / "report.html"
    page.write_text(written[2].replace("arrange();\n</script>", f"arrange();{choose}{tell}\n</script>"))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync "
        f"--user-data-dir={tmp_path / 'profile'} --window-size=1200,900 --dump-dom"
    )
    done = subprocess.run([CHROMIUM, *flags.split(), page.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr[-2000:]
    told = json.loads(title[1])
    assert told["order"][0] == expected and (last is None or told["order"][-1] == last)
    assert len(told["order"]) == PAIRS + 1 and told["shown"] == shown
    assert told["wide"] <= 0 and told["broken"] == 0
    metric = choices.get("metric", "objective")
    if first != "broken":
        assert [float(text) for text in told["first"]] == pytest.approx(
            [values[expected, m][metric] for m in METHODS], rel=1e-2
        )
