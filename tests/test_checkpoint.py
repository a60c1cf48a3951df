"""Checkpoints: what is saved comes back, a folder is whole or none, and damage of any kind is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raytraffic import registry
from raytraffic.checkpoint import commit, committed, copy_forecaster, load_forecaster, read_committed, save_card, save_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import SHORT, mask
from raytraffic.resume import newest, prune, restore, save
from tests.batches import seasonal_batch
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

SAMPLER = Sampler("dpm++", 3)
FILES = ("model.safetensors", "config.json", "README.md", "committed.json")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A place for one checkpoint, on disk or in S3."""
    return Location.of(tmp_path / "model") if request.param == "local" else Location.of(request.getfixturevalue("s3_bucket") + "/model")


def moved(name: str) -> Forecaster:
    """A tiny model whose every parameter is off its initial value."""
    torch.manual_seed(3)
    model = registry.build(name, "tiny").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(folder: Location, name: str = "uomo") -> Forecaster:
    """A moved model, saved."""
    model = moved(name)
    save_forecaster(folder, model.state_dict(), name, registry.model(name).preset("tiny"), {"Step": "7", "Figures": {"crps": 0.1}})
    return model


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_a_saved_model_forecasts_the_same(name: str, folder: Location) -> None:
    model = saved(folder, name)
    assert committed(folder)
    loaded, found, config = load_forecaster(folder)
    assert (found, config) == (name, registry.model(name).preset("tiny"))
    assert not loaded.training
    batch = mask(seasonal_batch(), SHORT)
    ours, theirs = (each.forecast(batch, SAMPLER, draws=2, seed=4).draws for each in (model, loaded))
    assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_the_card_says_how_it_was_made(tmp_path: Path) -> None:
    saved(Location.of(tmp_path))
    card = (tmp_path / "README.md").read_text()
    parameters = sum(p.numel() for p in moved("uomo").parameters())
    assert f"{parameters:,} parameters" in card and "## Step\n\n7" in card and '"crps": 0.1' in card


def test_another_card_changes_nothing_else(folder: Location) -> None:
    model = saved(folder)
    before = {name: read_committed(folder, name) for name in ("model.safetensors", "config.json")}
    save_card(folder, "# Ours\n")
    assert read_committed(folder, "README.md") == b"# Ours\n"
    assert {name: read_committed(folder, name) for name in before} == before
    assert load_forecaster(folder)[0].state_dict().keys() == model.state_dict().keys()


def test_a_copy_is_the_model_before_calibration(folder: Location, tmp_path: Path) -> None:
    saved(folder)
    commit(Location.of(tmp_path / "whole"), {"calibration.json": b"{}", **{name: read_committed(folder, name) for name in FILES[:3]}})
    copy_forecaster(tmp_path / "whole", tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(FILES)
    assert load_forecaster(tmp_path / "copy")[0].calibration is None
    (tmp_path / "whole" / "config.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"config\.json: its SHA-256 differs"):
        copy_forecaster(tmp_path / "whole", tmp_path / "other")
    assert not committed(Location.of(tmp_path / "other"))


def dying_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """Makes the process "die" at the write after so many."""
    write, done = Location.write_bytes, [0]

    def dies(self: Location, data: bytes) -> None:
        if done[0] == writes:
            raise KeyboardInterrupt
        done[0] += 1
        write(self, data)

    patch.setattr(Location, "write_bytes", dies)


@pytest.mark.parametrize("writes", range(len(FILES)))
@pytest.mark.parametrize("before", ["nothing", "another model"])
def test_an_interrupted_save_is_no_checkpoint_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, before: str
) -> None:
    folder = Location.of(tmp_path / "model")
    if before == "another model":
        other = {name: value + 1 for name, value in moved("uomo").state_dict().items()}
        save_forecaster(folder, other, "uomo", registry.model("uomo").preset("tiny"), {})
    with monkeypatch.context() as patch:
        dying_after(writes, patch)
        with pytest.raises(KeyboardInterrupt):
            saved(folder)
    assert not committed(folder)
    with pytest.raises(ValueError, match=r"model: no committed\.json, expected a whole checkpoint"):
        load_forecaster(folder)
    model = saved(folder)
    loaded = load_forecaster(folder)[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def _rewrite(folder: Path, **files: bytes) -> None:
    """Commits a checkpoint's files again, some of them changed, so that only their content is wrong."""
    names = {"model": "model.safetensors", "config": "config.json"}
    content = {name: (folder / name).read_bytes() for name in FILES if name != "committed.json"}
    commit(Location.of(folder), content | {names[key]: data for key, data in files.items()})


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def _first_of(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name, value in sorted(tensors.items()) if value.ndim == 2)


def flipped(folder: Path) -> str:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return r"model\.safetensors: its SHA-256 differs"


def truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    return r"model\.safetensors: its SHA-256 differs"


def lost(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return r"model\.safetensors: missing, expected the file"


def not_safetensors(folder: Path) -> str:
    _rewrite(folder, model=b"\x80\x04 a pickle, perhaps")
    return r"model\.safetensors: .*expected a safetensors file"


def unmarked(folder: Path) -> str:
    (folder / "committed.json").unlink()
    return r"no committed\.json, expected a whole checkpoint"


def nan_weights(folder: Path) -> str:
    tensors = _tensors(folder)
    name = _first_of(tensors)
    tensors[name][0, 0] = torch.nan
    _rewrite(folder, model=safetensors.torch.save(tensors))
    return rf"model\.safetensors: {name} holds NaN or infinite weights"


def missing_tensor(folder: Path) -> str:
    tensors = _tensors(folder)
    name = _first_of(tensors)
    del tensors[name]
    _rewrite(folder, model=safetensors.torch.save(tensors))
    return rf"model\.safetensors: tensor '{name}' is missing"


def other_shape(folder: Path) -> str:
    tensors = _tensors(folder)
    name = _first_of(tensors)
    tensors[name] = tensors[name][:, :-1].contiguous()
    _rewrite(folder, model=safetensors.torch.save(tensors))
    return rf"model\.safetensors: {name} has shape .*, expected"


def _changed_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_bytes())
    content["config"] |= changes
    _rewrite(folder, config=json.dumps(content).encode())


def misspelt_field(folder: Path) -> str:
    _changed_config(folder, widow=64)
    return r"config\.json\.widow: unknown field"


def wrong_type(folder: Path) -> str:
    _changed_config(folder, depth="deep")
    return r"config\.json\.depth: 'deep', expected"


def impossible_value(folder: Path) -> str:
    _changed_config(folder, heads=5)
    return r"config\.json.*hidden: 32, expected a multiple"


def unknown_model(folder: Path) -> str:
    _rewrite(folder, config=json.dumps({"model": "gpt", "config": {}}).encode())
    return r"model: 'gpt', expected one of"


def not_json(folder: Path) -> str:
    _rewrite(folder, config=b"{model: uomo}")
    return r"config\.json: .*, expected JSON"


FILE_DAMAGE = (flipped, truncated, lost, not_safetensors, unmarked, nan_weights, missing_tensor, other_shape)
CONFIG_DAMAGE = (misspelt_field, wrong_type, impossible_value, unknown_model, not_json)


@pytest.mark.parametrize("damage", [*FILE_DAMAGE, *CONFIG_DAMAGE])
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    saved(Location.of(tmp_path))
    message = damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_forecaster(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b'"a"', b'{"config.json": 1}'])
def test_a_damaged_marker_is_named(tmp_path: Path, text: bytes) -> None:
    saved(Location.of(tmp_path))
    (tmp_path / "committed.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"(committed|config)\.json: .*, expected"):
        load_forecaster(tmp_path)


def _trained(steps: int, folder: Location | None = None, checkpoint_at: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and moving average after some steps of a tiny model; goes on at the folder's newest checkpoint where there is one."""
    torch.manual_seed(0)
    model = registry.build("uomo", "tiny").train()
    settings = Optimisation(steps=6, warmup=2)
    adam, ema = optimiser(model, settings), Ema(model.named_parameters(), 0.9)
    found = None if folder is None else newest(folder)
    done = 0 if found is None else int(restore(found, model, adam, ema)["done"])
    batch = mask(seasonal_batch(), SHORT)
    while done < steps:
        step(model, batch, torch.arange(4) + 100 * done, adam, done, settings)
        done += 1
        ema.update(model.named_parameters(), done)
        if folder is not None and done == checkpoint_at:
            save(folder, model, adam, ema, done=done, write=True, facts={"best_step": 1.0})
    return dict(model.state_dict()), ema.weights


def test_a_restored_run_goes_on_bit_for_bit(folder: Location) -> None:
    whole = _trained(6)
    _trained(4, folder, checkpoint_at=3)
    resumed = _trained(6, folder)
    for ours, theirs in zip(whole, resumed, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_newest_whole_checkpoint_counts_and_old_ones_go(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    for number in (10, 20, 30, 40):
        commit(folder.child(f"step-{number:08d}"), {"state.json": {"done": number}})
    folder.child("step-00000050", "state.json").write_bytes(b"{}")  # interrupted: no marker
    found = newest(folder)
    assert found is not None and found.name == "step-00000040"
    prune(folder, keep=2, best=10)
    assert [child.name for child in folder.list()] == [f"step-{n:08d}" for n in (10, 30, 40, 50)]
    assert json.loads(read_committed(found, "state.json")) == {"done": 40}
    assert newest(Location.of(tmp_path / "nothing")) is None
