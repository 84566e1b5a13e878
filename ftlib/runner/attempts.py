"""`ftlib try`: train and measure a changed recipe, and put its results beside those of the attempts before it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.machine import doctor
from ftlib.model import evaluation
from ftlib.runner import cells
from ftlib.runner.execution import NOTEBOOKS
from ftlib.runner.ranks import TRAINING
from ftlib.runner.report import STYLE
from ftlib.session import hub_client, records
from ftlib.session.session import Session

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "attempts"  # below the output root, with a run's folder for each attempt
RECORD = "attempt"
BASELINE = NOTEBOOKS[2]
COLUMNS = ("agreement", "exact", "faithful", "loss", "trainable_parameters", "seconds")
FORMATS = {"loss": "{:.3f}", "trainable_parameters": "{:,.0f}", "seconds": "{:.0f}"}  # of others: a share


def run(session: Session) -> dict[str, Any]:
    """Train a profile with the cells of notebook 4, measure it with the questions of notebook 5, and record both.

    Nothing is resumed: an earlier attempt with a profile of this name is replaced.

    Returns:
        agreement, exact and faithful (shares of the held-out questions, None where a question has none), loss (of the
        held-out replies), trainable_parameters, seconds (of training), and the conditions of the measurement.

    Raises:
        FtlibError: this machine cannot run the profile, the base's download is damaged, or a cell failed: why.
    """
    from ftlib.dataset import prepare

    profile, notebooks = session.profile, session.project_root / "notebooks"
    doctor.check_compute(profile)
    doctor.check_disk(profile, session.output_dir)
    hub_client.check_download(profile.hub.model, profile.hub.model_revision)
    namespace: dict[str, Any] = {"session": session, "profile": profile, "resume": False}
    cells.run("result", notebooks / f"{TRAINING}.ipynb", namespace)
    peft_model = namespace["peft_model"]
    trained = {
        "trainable_parameters": peft_model.num_parameters(only_trainable=True),
        "seconds": namespace["progress"].seconds,
    }
    _, held_out = prepare.load(profile, session.output_dir)
    settings, max_length = profile.measure, profile.train.max_length
    merged = peft_model.merge_and_unload().eval()
    merged.set_attn_implementation(settings.attn_implementation)
    merged.set_experts_implementation(settings.experts_implementation)
    results = evaluation.evaluate(merged, namespace["tokenizer"], held_out, settings, max_length)
    measured = evaluation.summarise(results)
    found = {name: (measured | trained)[name] for name in COLUMNS}
    found["conditions"] = evaluation.conditions(held_out, profile)
    records.write(session.output_dir / "records", RECORD, found)
    return found


def table(output_root: Path, conditions: dict[str, Any]) -> "pd.DataFrame":
    """All attempts on the same base and the same questions, the best first, with the base before training if measured.

    Args:
        output_root: the folder of runs; attempts lie in `attempts/` there.
        conditions: as `run` returns them; what was measured under others cannot be compared.
    """
    import pandas as pd

    attempts = {path.parent.parent.name: path for path in output_root.glob(f"{FOLDER}/*/records/{RECORD}.json")}
    measured = {name: records.read(path.parent, RECORD) for name, path in attempts.items()}
    bases = (records.read(path.parent, BASELINE) for path in sorted(output_root.glob(f"*/records/{BASELINE}.json")))
    base = next((found for found in bases if found.get("conditions") == conditions), None)
    rows = {name: found for name, found in measured.items() if found["conditions"] == conditions}
    best_first = sorted(rows, key=lambda name: (-(rows[name]["agreement"] or 0), rows[name]["loss"]))
    listed = {name: rows[name] for name in best_first} | ({"the base": base} if base else {})
    return pd.DataFrame.from_dict(listed, orient="index").reindex(columns=COLUMNS).rename_axis("profile")


def readable(attempts: "pd.DataFrame") -> "pd.DataFrame":
    """The table as texts; "" for what was not measured."""
    shown = {
        name: [FORMATS.get(name, "{:.1%}").format(value) if value == value else "" for value in attempts[name]]
        for name in COLUMNS
    }
    return attempts.assign(**shown).rename(columns=lambda name: name.replace("_", " "))


def write_page(attempts: "pd.DataFrame", folder: Path) -> Path:
    """Write the table as a page that needs no network, `index.html` in a folder."""
    page = folder / "index.html"
    head = f'<meta charset="utf-8"><title>Attempts</title><style>{STYLE}</style>'
    body = readable(attempts).reset_index().to_html(index=False, border=0)
    page.write_text(f'<!doctype html><html lang="en">{head}<h1>Attempts</h1>{body}</html>', encoding="utf-8")
    return page
