import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.errors import CheckpointError
from jaxinterp.train import Checkpoints, TrainState, checkpoint, device_mesh, load_variables

# Reads that orbax leaves behind when another one fails may end, and complain, after the error has been raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TX = optax.adam(1e-3)
CONFIG = {"seed": 0, "model": "Tiny(features=4)", "batch": [2, 3]}


def state_of(step, *, width=5, dtype=jnp.float32, seed=0, extra=()):
    rng = np.random.default_rng(seed + step)
    params = {"w": jnp.asarray(rng.normal(size=(7, width)), dtype), "half": jnp.ones(3, jnp.bfloat16) * step}
    keys = {"key": jax.random.key(step), "raw": jax.random.key_data(jax.random.key(step))}
    opt_state = TX.init(params), keys, *extra
    return TrainState(jnp.int32(step), params, {}, opt_state, {"loss": jnp.float32(step)}, jnp.int32(-1))


def shapes(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


TARGET = shapes(state_of(0))


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(folder, *steps, keep=2, accuracies=(), seed=0, numbers=None):
    """Save states; the accuracy on validation data after each step, if any, goes into the history."""
    with Checkpoints(folder, keep) as checkpoints:
        for number in numbers or range(1, len(steps) + 1):
            step, past = steps[number - 1], zip(steps[:number], accuracies, strict=False)
            history = [{"loss": 0.1 + step}, *({"step": s, "val_accuracy": accuracy} for s, accuracy in past)]
            checkpoints.save(state_of(step, seed=seed), {"fingerprint": CONFIG, "history": history})


def restore(folder, target=TARGET, fingerprint=CONFIG, **options):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(target, fingerprint=fingerprint, **options)


def raises(folder, message, target=TARGET, fingerprint=CONFIG, **options):
    with pytest.raises(CheckpointError, match=message) as error:
        restore(folder, target, fingerprint, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_state_comes_back_bit_for_bit_with_its_meta_keys_and_sharding(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(TARGET) is None
    save(tmp_path, 3, 5, 7)
    replicated = NamedSharding(device_mesh(), P())
    state, meta, errors = restore(tmp_path, shapes(state_of(0), replicated), json.loads(json.dumps(CONFIG)))
    assert_same(state, state_of(7))
    assert all(leaf.sharding.is_equivalent_to(replicated, leaf.ndim) for leaf in jax.tree.leaves(state))
    assert (meta["step"], meta["history"], errors) == (7, [{"loss": 7.1}], [])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [7, 5]
        assert checkpoints.set_aside_after(5) == [tmp_path / "checkpoints/7.damaged-1"]
        assert checkpoints.steps() == [5]


def test_saving_returns_before_it_is_done_and_the_state_may_be_donated(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        state = state_of(4)
        checkpoints.save(state, {"fingerprint": CONFIG})
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(state.params)
        with pytest.raises(CheckpointError, match=r"4 could not be written .*already exists"):
            checkpoints.save(state_of(4), {})
    assert_same(restore(tmp_path)[0], state_of(4))


def test_the_first_of_the_best_epochs_is_kept_beside_the_last_ones(tmp_path):
    steps, accuracies = (1, 2, 3, 4, 5, 6), (0.1, 0.5, 0.7, 0.7, 0.2, 0.3)
    save(tmp_path, *steps, accuracies=accuracies, numbers=range(1, 3))
    save(tmp_path, *steps, accuracies=accuracies, numbers=range(3, 7))  # opened twice, as a resumed run does
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [6, 5, 3]
    for which, step in (("best", 3), ("last", 6)):
        assert_same(restore(tmp_path, which=which)[0], state_of(step))
    for step in (6, 5):  # what remains is a checkpoint like any other, and the best one
        shutil.rmtree(tmp_path / f"checkpoints/{step}")
    raises(tmp_path, "checkpoints/6, the newest one, is missing. `jaxinterp train --allow-older`")
    for which in ("last", "best"):
        assert_same(restore(tmp_path, which=which, allow_older=True)[0], state_of(3))
    save(tmp_path / "gone", 1, 2, 3, keep=1, accuracies=(0.9, 0.2, 0.3))
    shutil.rmtree(tmp_path / "gone/checkpoints/1")
    raises(tmp_path / "gone", "no best checkpoint .*: step 1 is missing", which="best")
    save(tmp_path / "none", 1)
    raises(tmp_path / "none", "no best checkpoint .* validation", which="best")


def test_a_path_of_any_characters_works(tmp_path):
    folder = tmp_path / "lr[0.1] a\\b*?" / os.fsdecode(b"\xff%#")
    save(folder, 3, 5, 7)
    assert_same(restore(folder)[0], state_of(7))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["5", "7"]


def test_what_was_written_is_read_back_before_an_older_one_goes(tmp_path, monkeypatch):
    save(tmp_path, 3, 5)
    read = checkpoint._read_item

    def damaged(path, name, args):
        item = read(path, name, args)
        return {**item, "step": item["step"] + 1} if path.name == "7" and name == "training" else item

    monkeypatch.setattr(checkpoint, "_read_item", damaged)
    with pytest.raises(CheckpointError, match="checkpoints/7 is damaged"):
        save(tmp_path, 7)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [7, 5, 3]


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path, monkeypatch, capfd):
    save(tmp_path, 3)
    full = 'RESOURCE_EXHAUSTED: Error writing "x": [OS error 28: ENOSPC No space left on device] [src=a.cc]\nmore'

    def fail(*_, **__):
        raise ValueError(full)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", fail)
    with pytest.raises(CheckpointError, match=r"checkpoints/5 could not be written \(No space left on device\)$"):
        save(tmp_path, 5)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "checkpoints/5", ignore_errors=True)
    assert_same(restore(tmp_path)[0], state_of(3))
    assert capfd.readouterr() == ("", "")


def test_another_model_type_or_configuration_raises_in_one_line(tmp_path):
    save(tmp_path, 3)
    wide, half = shapes(state_of(0, width=6)), shapes(state_of(0, dtype=jnp.float16))
    more, long = shapes(state_of(0, extra=({"new": jnp.ones(2)},))), "x" * 200 + "Tiny(features=8)" + "x" * 200
    raises(tmp_path, r"another model: .*\['w'\] is float32 \(7, 5\) in it, expected float32 \(7, 6\)", wide)
    raises(tmp_path, r"another model: .*is float32 \(7, 5\) in it, expected float16 \(7, 5\)", half)
    message = r"another model: .*\['new'\] is no such leaf in it, expected float32 \(2,\)"
    raises(tmp_path, message, more, allow_older=True)
    message = "another configuration: seed was 0, now it is 1"
    raises(tmp_path, message, fingerprint={**CONFIG, "seed": 1}, allow_older=True)
    message = r"configuration: model was Tiny\(features=4\), now it is ...x{80}\.\.\."
    raises(tmp_path, message, fingerprint={**CONFIG, "model": long})


def test_an_older_one_is_used_only_on_request_and_said(tmp_path):
    save(tmp_path, 3, 5)
    for path in files_of(tmp_path / "checkpoints/5"):
        if path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-7])
    raises(tmp_path, r"checkpoints/5 is damaged \(.*--allow-older` \(allow_older=True\) uses the last intact one")
    state, _, (error,) = restore(tmp_path, allow_older=True)
    assert_same(state, state_of(3))
    assert "checkpoints/5 is damaged" in error
    shutil.rmtree(tmp_path / "checkpoints/3/meta")
    raises(tmp_path, r"checkpoints/5 is damaged \(.*No older one is intact", allow_older=True)


def restores_the_same(run_dir):
    """True if the very state comes back, False if it raises in one line."""
    try:
        state, meta, _ = restore(run_dir)
    except CheckpointError as error:
        return "\n" in str(error)
    assert_same(state, state_of(3))
    assert (meta["step"], meta["history"], meta["fingerprint"]) == (3, [{"loss": 3.1}], CONFIG)
    return True


def flip_a_bit(content, rng):
    position = rng.integers(len(content))
    return content[:position] + bytes([content[position] ^ 1 << int(rng.integers(8))]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "rounds", "noticed"),
    [
        (lambda content, rng: content[: len(content) // 2], 1, 4),
        (flip_a_bit, 1, 1),
        pytest.param(lambda content, rng: None, 1, 4, marks=pytest.mark.slow),
        pytest.param(flip_a_bit, 25, 25, marks=pytest.mark.slow),
    ],
    ids=["truncated", "flipped", "missing", "flipped often"],
)
def test_a_damaged_file_never_restores_another_state(tmp_path, damage, rounds, noticed):
    save(tmp_path, 3)
    outcomes, rng = {}, np.random.default_rng(0)
    for path in [path for path in files_of(tmp_path / "checkpoints/3") if path.stat().st_size] * rounds:
        content = path.read_bytes()
        damaged = damage(content, rng)
        path.unlink() if damaged is None else path.write_bytes(damaged)
        outcomes.setdefault("/".join(path.parts[-2:]), []).append(restores_the_same(tmp_path))
        path.write_bytes(content)
    assert not any(outcomes["meta/metadata"])
    assert sum(not same for results in outcomes.values() for same in results) >= noticed
    assert restores_the_same(tmp_path)


def test_a_foreign_array_is_noticed_by_its_checksum(tmp_path):
    """A checkpoint whose arrays are another run's, with its own meta: well-formed, and foreign."""
    save(tmp_path / "a", 3)
    save(tmp_path / "b", 3, seed=9)
    for item in ("variables", "training"):
        target = tmp_path / "a/checkpoints/3" / item
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "b/checkpoints/3" / item, target)
    raises(tmp_path / "a", r"the checksum of \['variables'\]\['params'\]\['w'\] does not match")


def test_the_seal_covers_history_configuration_and_step(tmp_path):
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints/3"
    (path,) = (file for file in files_of(folder / "meta") if b"crc32" in file.read_bytes())
    meta = json.loads(path.read_text())
    for change in ({"history": []}, {"step": 4}, {"fingerprint": {}}, {"crc32": {}}, {"seal": 0}):
        path.write_text(json.dumps(meta | change))
        raises(tmp_path, r"damaged \(meta: its checksum does not match\)")
    path.write_text(json.dumps(meta))
    folder.rename(folder.with_name("4"))
    raises(tmp_path, r"checkpoints/4 is damaged \(meta")


def test_load_variables_notices_damage_and_a_foreign_model(tmp_path, tiny):
    model, words = tiny(), {"words": ["01", "10"]}
    variables = dict(jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 4, 4, 1))))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_variables(tmp_path, model, (4, 4, 1))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 6):
            checkpoints.save(state_of(6).replace(step=jnp.int32(step), **variables), {"fingerprint": words})
    assert_same(load_variables(tmp_path, model, (4, 4, 1), fingerprint=words), variables)
    assert_same(load_variables(tmp_path, tiny(dtype=jnp.bfloat16), (1, 4, 4, 1)), variables)
    for other, options, message in (
        (model, {"fingerprint": {"words": ["11"]}}, r"another configuration: words was \['01', '10'\], now it is"),
        (tiny(features=8), {}, r"another model: .* \(4,\) in it, expected float32 \(8,\)"),
        (tiny(norm=False), {}, r"BatchNorm_0.* in it, expected no such leaf"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_variables(tmp_path, other, (4, 4, 1), **options)
    for path in files_of(tmp_path / "checkpoints/6/variables/d"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="6 is damaged"):
        load_variables(tmp_path, model, (4, 4, 1))
    assert_same(load_variables(tmp_path, model, (4, 4, 1), allow_older=True), variables)


@pytest.mark.parametrize("left", ["", "variables/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_an_old_checkpoint_half_deleted_by_a_kill_does_not_stand_in_the_way(tmp_path, left):
    save(tmp_path, 3, 5)
    for path in files_of(tmp_path / "checkpoints/3"):
        if not str(path).endswith(left or "nothing"):
            path.unlink()
    (tmp_path / "checkpoints/7.orbax-checkpoint-tmp-1").mkdir()
    assert_same(restore(tmp_path)[0], state_of(5))
    save(tmp_path, 7)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "7"]
