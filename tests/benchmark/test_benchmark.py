"""Operations are counted right, floors lie below what was measured, and the command says what it found."""

import json
import resource
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.training_setup import read_config, write_run
from typer.testing import CliRunner

from splice_ff.benchmark import fresh_process, memory, training
from splice_ff.benchmark.floor import count_operations, measure_rates, sensible_precisions
from splice_ff.benchmark.plan import PARTS, plan_for
from splice_ff.benchmark.run import Options, benchmark, check_parts
from splice_ff.benchmark.steps import measure_steps
from splice_ff.benchmark.timing import Sections, Timing, time_in_turn
from splice_ff.benchmark.usage import measure_usage
from splice_ff.cli import app
from splice_ff.errors import InputError

CPU = torch.device("cpu")
RATES = {"fp32": 1e12, "bf16": 1e12}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_convolutions_and_attention_are_counted(dtype):
    a, b = torch.rand(5, 7).to(dtype), torch.rand(7, 11).to(dtype)
    assert count_operations(lambda: a @ b) == 2 * 5 * 7 * 11
    conv, image = torch.nn.Conv2d(3, 4, 3, padding=1).to(dtype), torch.rand(1, 3, 8, 10).to(dtype)
    assert count_operations(lambda: conv(image)) == 2 * 4 * 80 * 27
    query, key = torch.rand(2, 3, 50, 16).to(dtype), torch.rand(2, 3, 7, 16).to(dtype)
    assert count_operations(lambda: F.scaled_dot_product_attention(query, key, key)) == 2 * 2 * 6 * 50 * 7 * 16


def test_backward_is_counted_where_it_happens():
    weight = torch.rand(7, 11, requires_grad=True)
    image = torch.rand(5, 7)
    assert count_operations(lambda: (image @ weight).sum().backward()) == 2 * 2 * 5 * 7 * 11  # not towards the image
    query = torch.rand(1, 2, 50, 16, requires_grad=True)
    # two products forward; backward four, and one of the forward's again
    attention = count_operations(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward())
    assert attention == (2 + 5) * 2 * 2 * 50 * 50 * 16


def test_compiled_modules_are_counted():
    net = torch.nn.Linear(8, 16)
    net.compile(backend="eager")
    batch = torch.rand(3, 8)
    net(batch)
    assert count_operations(lambda: net(batch)) == 2 * 3 * 8 * 16


def test_timing():
    timing = Timing((1.0, 4.0, 2.0), operations=10, rate=20.0)
    assert (timing.median, timing.floor, timing.share) == (2.0, 0.5, 0.25)
    found = timing.to_dict()
    assert found["quartiles"] == [1.5, 3.0] and found["slowest"] == 4.0 and found["floor_share"] == 0.25
    assert Timing((1.0,), 0, 1.0).to_dict()["quartiles"] == [None, None]


def test_rounds_go_in_turn_and_the_first_counts_operations():
    done = []
    matrix = torch.rand(4, 4)
    works = {"a": lambda: done.append("a"), "b": lambda: done.append(matrix @ matrix) or done.append("b")}
    timings = time_in_turn(works, 2, CPU, {"a": 1.0, "b": 1.0}, again=True)
    assert [x for x in done if isinstance(x, str)] == ["a", "b"] * 4
    assert [timings[name].operations for name in works] == [0, 128]
    assert all(len(t.seconds) == 2 for t in timings.values())


@pytest.mark.parametrize("is_compiled", [False, True])
def test_sections_of_work(is_compiled):
    """Modules and blocks, time and operations; a section inside another counts once."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    if is_compiled:
        net.compile(backend="eager")
    matrix, sections, batch = torch.rand(4, 4), Sections(CPU), torch.rand(3, 8)

    def work():
        with sections("sleep"):
            time.sleep(0.02)
        made = net(batch)
        with sections("product"), sections("inner"):
            made = made @ matrix
        return (made @ matrix).sum()

    with sections.watch({"net": net, "second": net[1]}):
        timings = sections.time(work, 2, rate=1.0, again=is_compiled)
    assert list(timings) == ["all", "sleep", "net", "product", "rest"]
    operations = {name: timing.operations for name, timing in timings.items()}
    product = 2 * 3 * 4 * 4
    passes = 2 * 3 * (8 * 16 + 16 * 4)
    assert operations == {"all": passes + 2 * product, "sleep": 0, "net": passes, "product": product, "rest": product}
    assert all(len(timing.seconds) == 2 for timing in timings.values())
    for whole, *parts in zip(*(timing.seconds for timing in timings.values()), strict=True):
        assert sum(parts) == pytest.approx(whole) and parts[0] >= 0.02
    assert not net._forward_hooks and not net._forward_pre_hooks


def test_bfloat16_is_left_out_where_it_is_emulated():
    assert sensible_precisions({"fp32": 100.0, "bf16": 60.0}) == ["fp32", "bf16"]
    assert sensible_precisions({"fp32": 100.0, "bf16": 1.0}) == ["fp32"]


def test_steps(vit_folder):
    rates = measure_rates(CPU)
    part = measure_steps([str(vit_folder)], [64], ["fp32"], 1, CPU, rates)
    rows = {row["step"]: row for row in part.rows}
    assert list(rows) == ["naive fp32", "paper fp32", "fast fp32"]
    assert rows["naive fp32"]["operations"] > 1.5 * rows["paper fp32"]["operations"]
    assert rows["paper fp32"]["operations"] > rows["fast fp32"]["operations"]
    for row in part.rows:
        assert 0 < row["floor"] < 2 * row["median"]  # twice: the rate is a measurement on a busy machine
        assert row["floor"] == pytest.approx(row["operations"] / rates["fp32"])
    assert rows["naive fp32"]["naive_over_this"] == 1


def test_one_shot_command(vit_folder, tmp_path):
    arguments = ["benchmark", "one-shot", "--backbone", str(vit_folder), "--size", "64", "--batch", "1", "--batch", "3"]
    arguments += ["--repeats", "1", "--precision", "fp32", "--generator", "tiny", "--device", "cpu", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "speed.json")])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["operations_per_second"]["fp32"] > 0 and "torch" in found["machine"] and found["version"]
    one, three = found["parts"]["one-shot"]["rows"]
    assert three["batch"] == 3 and three["operations"] == pytest.approx(3 * one["operations"], rel=0.05)
    assert list(one["parts"]) == ["reading", "ViT", "encoder", "UNet", "writing", "rest"]
    assert one["parts"]["reading"]["operations"] == 0 < one["parts"]["UNet"]["operations"]
    assert one["median"] == pytest.approx(sum(part["median"] for part in one["parts"].values()))
    assert one["floor"] < 2 * one["median"]
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def test_training_is_split_into_its_parts(tmp_path, vit_state, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    config = read_config(write_run(tmp_path, vit_state))
    found = training.train_some_steps(config.model_dump(mode="json"), 1, "cpu")
    names = ["all", "waiting for data", "ViT", "generator", "backward", "optimizer", "rest"]
    assert list(found["timings"]) == names and found["peak"] > 2**20
    operations = {name: timing["operations"] for name, timing in found["timings"].items()}
    assert all(operations[name] > 0 for name in ("ViT", "generator", "backward"))
    assert operations["waiting for data"] == operations["optimizer"] == 0
    assert operations["rest"] < 0.1 * operations["all"]  # the losses' own products


@pytest.fixture
def launched(monkeypatch):
    """What fresh processes were asked; two of them take a quarter longer for a step."""
    asked = []

    def fake(work, *, device, config, repeats, processes=1, threads=None):
        assert work is training.train_some_steps
        asked.append(SimpleNamespace(config=config, processes=processes, threads=threads))
        seconds = {"all": [2.0 * (1.25 if processes == 2 else 1)], "ViT": [1.0], "rest": [0.5]}
        return {"timings": {k: {"seconds": s, "operations": 10**12} for k, s in seconds.items()}, "peak": 2**30}

    monkeypatch.setattr(training, "in_fresh_process", fake)
    return asked


def test_throughput_and_shares(launched):
    with training.training_settings(
        None, ["optimizer.gradient_accumulation_steps=3"], "vit_mini", "tiny", CPU
    ) as settings:
        part = training.measure_training(settings, ["fp32", "bf16"], 1, CPU, RATES, compile=True)
    assert [row["precision"] for row in part.rows] == ["fp32", "fp32 compiled", "bf16", "bf16 compiled"]
    assert [(x.config["run"]["precision"], x.config["run"]["compile"]) for x in launched] == [
        ("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)
    ]  # fmt: skip
    row = part.rows[0]
    assert row["pairs_per_second"] == 2 * 8 * 3 / 2.0
    assert row["shares"] == pytest.approx({"all": 1.0, "ViT": 0.5, "rest": 0.25})
    assert row["parts"]["all"]["floor_share"] == 0.5


def test_scaling(launched):
    with training.training_settings(None, [], "vit_mini", "tiny", CPU) as settings:
        part = training.measure_scaling(settings, [1, 2], "fp32", 1, CPU)
    assert [row["efficiency"] for row in part.rows] == pytest.approx([1.0, 0.8])
    assert [row["pairs_per_second"] for row in part.rows] == pytest.approx([8.0, 12.8])
    assert [x.processes for x in launched] == [1, 2]
    assert len({x.threads for x in launched}) == 1  # a process has the same in both


def test_memory_is_that_of_a_fresh_process(vit_folder):
    held = torch.ones(2**28)  # 1 GiB; a child's ru_maxrss would include it
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = fresh_process.in_fresh_process(
        memory.memory_of_steps, device=CPU, backbone=str(vit_folder), size=96, precision="fp32"
    )
    assert held.sum() == 2**28
    assert 2**26 < found["before"] <= found["peak"] < ours - 2**29


def test_usage_is_timed_and_weighed_in_fresh_processes(vit_folder):
    one_shot = {"backbone": str(vit_folder), "generator": "tiny", "checkpoint": None}
    part = measure_usage(one_shot, [(64, 96), (512, 512)], [64], 3, 2, CPU)
    small, large, refined = part.rows
    assert [row["image"] for row in part.rows] == ["96x64", "512x512", "96x64"]
    assert [len(row["seconds"]) for row in part.rows] == [2, 2, 1] and refined["size"] == 64
    assert all(0 < row["before"] < row["peak"] and min(row["seconds"]) > 0 for row in part.rows)
    assert large["before"] > small["before"] and "3 refining steps" in part.markdown()


def test_what_a_fresh_process_refuses_is_an_input_error(monkeypatch, capsys):
    def run_here(command, **_):
        monkeypatch.setattr("sys.argv", command[2:])
        with pytest.raises(SystemExit) as stopped:
            fresh_process.main()
        return SimpleNamespace(returncode=stopped.value.code, stderr=capsys.readouterr().err)

    monkeypatch.setattr("subprocess.run", run_here)
    with pytest.raises(InputError, match=r"^unknown backbone"):
        fresh_process.in_fresh_process(
            memory.memory_of_steps, device=CPU, backbone="no_such_vit", size=96, precision="fp32"
        )


def test_a_fresh_process_that_fails_is_not_silent(monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="Traceback: out of memory")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="out of memory"):
        fresh_process.in_fresh_process(training.train_some_steps, device=CPU, processes=2)


def test_parts_and_plans():
    assert check_parts([]) == check_parts(["all"]) == list(PARTS)
    assert check_parts(["memory", "step"]) == ["step", "memory"]
    assert "dino_vitb8" in plan_for(CPU, 1).step_backbones and "dino_vitb8" not in plan_for(CPU, 5).step_backbones


def test_from_python(vit_folder, tmp_path):
    """What the command does; a part that fails leaves those before it in the file."""
    heard = []
    options = Options(
        backbones=[str(vit_folder)], sizes=[64], repeats=1, precisions=["fp32"], generator="tiny", batches=[1]
    )
    arguments = {
        "device": "cpu", "output": tmp_path / "speed.json", "before_part": heard.append,
        "on_heading": lambda report: heard.append(report.version), "on_part": lambda part: heard.append(part.title),
    }  # fmt: skip
    report = benchmark(["one-shot"], options, **arguments)
    assert heard == [report.version, "one-shot", report.parts["one-shot"].title]
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept == json.loads(json.dumps(report.to_dict())) and list(kept["parts"]) == ["one-shot"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown part 'speed'. Known: all, step"),
        (["step", "--backbone", "no_such_vit"], "unknown backbone"),
        (["step", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["step", "--size", "32"], "size must be at least 64"),
        (["step", "--repeats", "0"], "repeats must be at least 1"),
        (["one-shot", "--batch", "0"], "batch must be at least 1"),
        (["one-shot", "--generator", "huge"], "unknown generator 'huge'"),
        (["one-shot", "--model", "no/such/model"], "no/such/model"),
        (["scaling", "--processes", "0"], "processes must be at least 1"),
        (["training", "--set", "optimizer.batch_size=none"], "batch_size"),
        (["training", "--config", "none.yaml"], "none.yaml"),
        (["step", "--json", "/proc/none/speed.json"], "/proc/none"),
        (["step", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_the_command_refuses(arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["benchmark", *arguments, "--quiet"])
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
