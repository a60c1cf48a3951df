"""The suite on a cluster: every table and picture from one call, nothing run twice, a stage made anew when what it reads has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raytraffic.checkpoint import copy_forecaster, load_forecaster, save_card, save_forecaster
from raytraffic.config import EvaluateConfig, PrepareConfig, UomoTables
from raytraffic.files import Location
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.suite import run_evaluation
from raytraffic.on_ray.train import train
from tests.ray.conftest import settings

STAGES = (
    *("evaluation", "forecasts", "unseen/zero-shot/evaluation", "unseen/zero-shot/forecasts"),
    *(f"unseen/share-{share}/{part}" for share in ("0.05", "0.5") for part in ("run", "evaluation", "forecasts")),
    *(f"ablation/{contexts}/{part}" for contexts in ("users-poi", "users", "poi") for part in ("run", "evaluation")),
    *("ablation/none/evaluation", "sizes/other@half"),
)


@pytest.fixture(scope="module")
def plain(prepared: Path) -> Path:
    """A model that knows no context."""
    out = prepared.parent / "suite-plain"
    train(settings(prepared, out, contexts=(), steps=10, warmup=2, validate_every=10))
    return out / "best"


@pytest.fixture(scope="module")
def asked(prepared: Path, trained: Path, plain: Path) -> EvaluateConfig:
    """The whole suite, as small as can be."""
    unseen = prepared.parent / "unseen"
    other = prepared.parent / "suite-other"
    copy_forecaster(plain, other)
    prepare(PrepareConfig(sources=("synthetic:north?step=30&grid=8x8&days=8&seed=5",), out=str(unseen)))
    return EvaluateConfig(
        checkpoint=str(trained / "best"),
        store=str(prepared),
        out=str(prepared.parent / "suite"),
        draws=2,
        steps=1,
        stride=60,
        suite="uomo-tables",
        uomo_tables=UomoTables(
            unseen=str(unseen), shares=(0.05, 0.5), few_shot_steps=3, plain=str(plain), finetune_steps=3, sizes=(f"other@half={other}",)
        ),
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"plain": "best"},
            r"uomo_tables.plain: .*knows .*, expected \('poi',\): a checkpoint without contexts, and a store that has them",
        ),
        ({"cities": ("atlantis",)}, r"uomo_tables.cities: \['atlantis'\], expected some of \['east', 'middle', 'west'\]"),
        ({"sizes": ("5m=nowhere",)}, r"nowhere: no committed.json, expected a whole checkpoint"),
        ({"unseen": "nowhere"}, r"nowhere: no manifest.json, expected a prepared store"),
    ],
)
def test_a_misfit_is_refused_before_anything_runs(
    option: dict[str, Any], message: str, prepared: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    given = {"checkpoint": "best", "store": str(prepared), "out": str(tmp_path), "suite": "uomo-tables"}
    with pytest.raises(ValueError, match=message):
        run_evaluation(EvaluateConfig(**given, uomo_tables=UomoTables(**option)))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_call_makes_everything_and_the_next_one_runs_nothing(asked: EvaluateConfig, plain: Path) -> None:
    out = Path(asked.out)
    assert run_evaluation(asked) == Location.of(out)
    text, page = (out / "suite.md").read_text(), (out / "suite.html").read_text()
    assert "Left out" not in text and "Left out" not in page
    assert all(f"Table {number}" in text and f"Table {number}" in page for number in range(1, 6))
    assert page.count("data:image/png;base64,") == 4 and "http://" not in page
    assert {path.name for path in (out / "figures").iterdir()} == {f"figure-{number}.png" for number in range(4, 8)}
    markers = {stage: json.loads((out / stage / "stage.json").read_bytes()) for stage in STAGES}
    assert all(marker["finished"] for marker in markers.values())
    assert [markers[f"unseen/{shot}/evaluation"]["settings"]["share"] for shot in ("zero-shot", "share-0.05", "share-0.5")] == [
        0,
        0.05,
        0.5,
    ]

    before = written(out)
    run_evaluation(asked)
    assert written(out) == before and (out / "suite.html").read_text() == page

    # A stage that was interrupted is run again, and one whose checkpoint has changed; a card is no part of a result.
    (out / "forecasts" / "stage.json").write_text(json.dumps({**markers["forecasts"], "finished": False}))
    save_card(plain, "another card")
    other = Path(asked.uomo_tables.sizes[0].partition("=")[2])
    forecaster, name, config = load_forecaster(other)
    save_forecaster(other, {key: value * 1.01 for key, value in forecaster.state_dict().items()}, name, config, {})
    run_evaluation(asked)
    after = written(out)
    changed = {stage for stage in STAGES if after[f"{stage}/stage.json"] != before[f"{stage}/stage.json"]}
    assert changed == {"forecasts", "sizes/other@half"}


def written(out: Path) -> dict[str, int]:
    """When each file of the stages was last written."""
    return {f"{path.relative_to(out)}": path.stat().st_mtime_ns for stage in STAGES for path in (out / stage).rglob("*") if path.is_file()}
