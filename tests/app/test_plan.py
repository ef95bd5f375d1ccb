"""Runs compiled for machines that are not here; of TPUs and GPUs where their compilers are installed."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from command_line import run

from jaxinterp.app.compiled import Program, collectives, examine, size_of, traffic
from jaxinterp.app.devices import DEVICES, Machine, machine_named, target_config
from jaxinterp.app.plan import Part, Plan, plan
from jaxinterp.app.training import run_of
from jaxinterp.errors import ConfigError
from jaxinterp.explain.products import Kind
from jaxinterp.recipe.data import counts

HLO = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (x: f32[8,4], y: u8[100]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = u8[100]{0} parameter(1)
  ROOT %z = f32[8,4]{1,0} custom-call(%x, %y)
}

ENTRY %main (p: f32[8,4], d: u8[100]) -> f32[8,4] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  %d = u8[100]{0} parameter(1), metadata={op_name="inputs['data']['image']"}
  %g = bf16[16,4]{1,0} all-gather(%p), dimensions={0}
  %s = (f32[8,4]{1,0}, f32[8,4]{1,0}) all-reduce-start(%p), to_apply=%add
  %e = f32[8,4]{1,0} all-reduce-done(%s)
  ROOT %f = f32[8,4]{1,0} fusion(%e, %d), kind=kLoop, calls=%fused
}
"""


def needs(platform: str) -> None:
    module = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}[platform]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("h20:8", "h200:8 or h100:8"),
        ("tpu-v5:2x2", "tpu-v5e:2x2"),
        ("gpu", "a device such as"),
        ("tpu-v5e:4", "tpu-v5e:2x2, chips along each axis"),
        ("tpu-v4:2x2", "tpu-v4:2x2x1"),
        ("h200:2x2", "h200:8, how many devices"),
        ("h200:0", "how many devices"),
        ("h200:", "how many devices"),
        ("h200:16", "at most 8"),
        ("tpu-v5e:32x32", "at most 256"),
    ],
)
def test_a_machine_that_does_not_exist_is_said_in_a_line(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"\A--device: got {text}, expected .*{fault}") as caught:
        machine_named(text)
    assert "\n" not in str(caught.value)


def test_missing_compilers_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for device, extra in (("tpu-v5e:2x2", "tpu"), ("h200:8", "cuda13")):
        with pytest.raises(ConfigError, match=rf"--device: got {device}.* pip install 'jax\[{extra}\]=="):
            _ = machine_named(device).devices


@pytest.mark.parametrize("name", DEVICES)
def test_peaks_are_ordered_and_a_gpu_is_described(name: str) -> None:
    device = DEVICES[name]
    kinds = [("int8", "default"), ("bfloat16", "default"), ("float32", "default"), ("float32", "highest")]
    peaks = [device.peak(*kind) for kind in kinds]
    assert peaks == sorted(peaks, reverse=True)
    assert device.usable < device.memory
    if device.cuda is not None:
        text = target_config(device.title, device.cuda, device.bandwidth)
        assert f"core_count: {device.cuda.cores} " in text
        assert text.count("{") == text.count("}") == 4


def test_compiled_text_tells_collectives_and_traffic() -> None:
    assert size_of("(f32[8,4]{1,0:T(8,128)}, pred[3], bf16[])") == 128 + 3 + 2
    assert collectives(HLO) == {"all-reduce": (1, 128), "all-gather": (1, 128)}
    assert traffic(HLO.replace("(8,128)}", "(8,128)S(1)}")) == traffic(HLO) - 128
    assert traffic(HLO) == (128 + 128) + 256 + (128 + 128)  # the data set is not read as a whole


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("(f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%p), dimensions={0}", {"all-gather": (1, 1024)}),
        (
            "((f32[8,4]{1,0}, f32[8,4]{1,0}), (f32[64,4], f32[64,4])) all-gather-start(%p, %p)",
            {"all-gather": (1, 2048)},
        ),
        ("(f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(%p)", {"collective-permute": (1, 128)}),
        ("((f32[8,4]{1,0:T(8,128)}), f32[8,4], u32[]) all-to-all-start(%p)", {"all-to-all": (1, 128)}),
        ("((f32[8,4]), f32[1,4]) reduce-scatter-start(%p), to_apply=%add", {"reduce-scatter": (1, 128)}),
    ],
)
def test_of_an_asynchronous_collective_the_result_is_counted_once(line: str, found: dict[str, tuple[int, int]]) -> None:
    hlo = "ENTRY %m {\n  %p = f32[8,4]{1,0} parameter(0)\n  %x = " + line + "\n}"
    assert collectives(hlo) == found


def test_a_collective_in_a_loop_counts_as_often_as_it_runs() -> None:
    body = "%body {\n  %p = f32[8,4]{1,0} parameter(0)\n  %r = f32[8,4]{1,0} all-reduce(%p), to_apply=%add\n}\n"
    trips = 'backend_config={"known_trip_count":{"n":"5"}}'
    loop = f"  %w = f32[8,4] while(%a), condition=%test, body=%body, {trips}\n"
    main = "ENTRY %m {\n  %a = f32[8,4]{1,0} parameter(0)\n" + loop + "  %b = f32[8,4] all-reduce(%w), to_apply=%add\n}"
    assert collectives(body + main) == {"all-reduce": (6, 6 * 128)}


LOOP = """HloModule m

%slice (a: f32[5,8], b: s32[]) -> f32[8] {
  %a = f32[5,8]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %z = s32[] constant(0)
  %one = f32[1,8]{1,0} dynamic-slice(%a, %b, %z), dynamic_slice_sizes={1,8}
  ROOT %c = f32[8]{0} bitcast(%one)
}

%put (d: f32[5,8], e: f32[1,8], f: s32[]) -> f32[5,8] {
  %d = f32[5,8]{1,0} parameter(0)
  %e = f32[1,8]{1,0} parameter(1)
  %f = s32[] parameter(2)
  %y = s32[] constant(0)
  ROOT %u = f32[5,8]{1,0} dynamic-update-slice(%d, %e, %f, %y)
}

%body (t: (s32[], f32[5,8])) -> (s32[], f32[5,8]) {
  %t = (s32[], f32[5,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[5,8]{1,0} get-tuple-element(%t), index=1
  %s = f32[8]{0} fusion(%x, %i), kind=kLoop, calls=%slice
  %r = f32[1,8]{1,0} bitcast(%s)
  %w = f32[5,8]{1,0} fusion(%x, %r, %i), kind=kLoop, calls=%put
  ROOT %o = (s32[], f32[5,8]{1,0}) tuple(%i, %w)
}

%condition (q: (s32[], f32[5,8])) -> pred[] {
  %q = (s32[], f32[5,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(5)
  ROOT %l = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (p: (s32[], f32[5,8])) -> (s32[], f32[5,8]) {
  %p = (s32[], f32[5,8]{1,0}) parameter(0)
  ROOT %v = (s32[], f32[5,8]{1,0}) while(%p), condition=%condition, body=%body, CONFIG
}
""".replace("CONFIG", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_a_loop_moves_what_its_body_moves_each_time() -> None:
    body = (32 + 4 + 32) + (32 + 4 + 32)  # a row out and a row in, not the whole carry
    condition = 4 + 4 + 1
    assert traffic(LOOP) == 5 * (body + condition)
    assert traffic(LOOP.replace("known_trip_count", "unknown")) == body + condition
    branches = "conditional(%p, %p, %p), branch_computations={%condition, %body}"
    start, end = LOOP.index("while(%p)"), LOOP.rindex("\n}")
    assert traffic(LOOP[:start] + branches + LOOP[end:]) == condition  # the least, which a bound may count


def test_a_compiled_scan_reads_each_row_once() -> None:
    x = jax.ShapeDtypeStruct((50, 1000), jnp.float32)
    text = (
        jax.jit(lambda x: jax.lax.scan(lambda c, row: (jnp.sin(c + row), None), x[0], x)[0])
        .lower(x)
        .compile()
        .as_text()
    )
    assert 50 * 1000 * 4 * 3 <= traffic(text) < 50 * 1000 * 4 * 12


def test_a_program_says_what_it_takes_and_a_bound() -> None:
    machine = machine_named("h200:8")
    device = DEVICES["h200"]
    one = Program(machine, 8, 1.0, 2.0, {Kind("bfloat16", "default"): int(8 * device.bfloat16)}, arguments=100,
                  outputs=50, aliased=40, temporaries=30)  # fmt: skip
    assert one.bytes == 140
    assert one.fits
    assert one.bound == pytest.approx(1)
    assert replace(one, traffic=int(2 * device.bandwidth)).bound == pytest.approx(2)
    sent = {"all-reduce": (3, int(4 * device.interconnect))}
    assert replace(one, collectives=sent).bound == pytest.approx(7)
    assert not replace(one, beside=device.usable - 139).fits
    large = replace(one, temporaries=device.usable)
    assert not large.fits
    found = Plan("a", run_of("gated/digits-relu"), machine, (Part("train", 32, 40, large, 4),))
    assert not found.fits
    assert "does not fit: train needs 105.75 GiB of 105.75 GiB" in found.outcome
    assert Plan("a", found.run, machine, (Part("train", 32, 40, replace(one, error="no"), 4),)).outcome.endswith("no")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gated/digits-relu", (1293, 144, 360, False)),
        ("coda/cifar10-s", (49_000, 1_000, 10_000, False)),
        ("coda/imagenet100-l", (128_000, 0, 5_000, True)),
        ("glassbox/mnist-3-8", (12_000, 0, 2_000, False)),
    ],
)
def test_images_are_counted_without_reading_them(name: str, found: tuple[int, int, int, bool]) -> None:
    assert tuple(counts(run_of(name), None)) == found


def test_a_plan_for_cpus_has_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("plan gated/digits-relu --device cpu:2 --json --train.batch_size 16", capsys)
    assert status == 0
    found = json.loads(out)
    train, evaluate, explain = found["stages"]
    assert (found["run"], found["device"], found["fits"]) == ("gated/digits-relu train.batch_size=16", "cpu:2", True)
    assert [train["images"], evaluate["images"], explain["images"]] == [16, 256, 1]
    parameters = train["bytes"]["parameters"]
    assert train["bytes"]["optimizer"] == 2 * parameters + 8  # Adam's moments and counts
    assert train["collectives"]["all-reduce"]["bytes"] >= parameters
    assert 0.9 < evaluate["flops"] / (256 * 2 * parameters / 4) < 1  # all but biases
    image = 8 * 8 + 4  # bytes of it and of its label
    assert train["bytes"]["data"] == (1293 + 144) * image + 1280 * 4  # and the order of an epoch
    assert evaluate["bytes"]["data"] == (1293 + 144 + 360) * image
    assert evaluate["bytes_per_device"] > evaluate["bytes"]["data"] + 3 * parameters
    assert train["roofline_epoch_seconds"] is None  # nobody publishes the peak of this machine


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, field in (
        ("plan gated/digits-relu --device cpu:3", "batch_size: got 32, expected a multiple of 3"),
        ("plan gated/digits-relu --device cpu:99", "--device: got cpu:99"),
        ("plan gated/digits-rel --device cpu", "RUN: got gated/digits-rel"),
        ("plan gated/digits-relu --device cpu --train.mode pmap", "train.mode: got pmap"),
        ("plan coda/small --device cpu", "--data: got nothing"),
    ):
        status, _, err = run(arguments, capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert field in err


def test_a_closed_form_has_no_training_step() -> None:
    found = plan(run_of("glassbox/digits"), "cpu", stages=("train", "evaluate"))
    assert [part.stage for part in found.parts] == ["evaluate"]
    assert found.largest_batch is None


@pytest.mark.parametrize("device", ["tpu-v5e:2x2", "h200:2"])
def test_a_run_is_compiled_for_a_machine_that_is_not_here(device: str) -> None:
    needs("tpu" if device.startswith("tpu") else "cuda")
    found = plan(run_of("gated/digits-relu"), device, stages=("train", "explain"), largest=False)
    assert found.fits
    train = found.parts[0]
    assert sum(size for _, size in train.program.collectives.values()) >= train.parameters
    assert train.epoch_seconds is not None
    assert train.epoch_seconds > 0


@pytest.mark.parametrize("device", ["tpu-v5e:1x1", "h200:1"])
def test_training_in_bfloat16_multiplies_bfloat16(device: str) -> None:
    """In the traced program, and in what the compiler makes of it."""
    needs("tpu" if device.startswith("tpu") else "cuda")
    half = run_of("gated/digits-relu").replace(train={"dtype": "bfloat16"})
    program = plan(half, device, stages=("train",), largest=False).parts[0].program
    assert program.flops[Kind("bfloat16", "default")] > 0.95 * sum(program.flops.values())
    assert program.products["bf16"] > program.products.get("f32", 0)


def test_a_topology_that_libtpu_does_not_know() -> None:
    needs("tpu")
    with pytest.raises(ConfigError, match=r"\A--device: got tpu-v5e:3x5, expected a machine that libtpu knows"):
        _ = Machine("tpu-v5e", (3, 5)).devices


def test_a_program_too_large_for_a_tpu_says_how_many_bytes_it_needs() -> None:
    needs("tpu")
    machine = machine_named("tpu-v5e:1x1")
    place = jax.NamedSharding(machine.mesh(), jax.P())
    x = jax.ShapeDtypeStruct((70_000, 70_000), jnp.float32, sharding=place)
    program, _ = examine(jax.jit(lambda x: (x @ x) @ x), (x,), machine, 1)
    assert not program.fits
    assert program.bytes > machine.device.usable
