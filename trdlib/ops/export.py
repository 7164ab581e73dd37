"""A trained student as a folder that stock transformers and PEFT load, or as a repo on the hub."""

import re
import shutil
from pathlib import Path

import jinja2
import yaml

from trdlib import prompts, store
from trdlib.analysis import tables
from trdlib.run import Run, get_run
from trdlib.settings import SettingsError, root


def card(run: Run, seed: int, about: dict, *, merged: bool) -> str:
    """The model card, card.md filled in; about: what run.json says of the training."""
    base, _, commit = run.model_path("student", seed).partition("@")
    table = tables.collect(run)
    rows = table[table["method"].isin(["base", run.method])]
    names = rows["method"] + ", T = " + rows["temperature"].map("{:g}".format)
    data = yaml.safe_dump(run.settings.data, sort_keys=False)
    asked = prompts.TEMPLATES[run.settings.models.style]["solve"].format(problem="PROBLEM")
    return jinja2.Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8")).render(
        run=run, seed=seed, about=about, merged=merged, base=base, commit=commit, asked=repr(asked),
        teacher=run.model_name("teacher", seed), task=Path(run.settings.task).name,
        rank=max(8, 2 ** (run.settings.lora.r - 1).bit_length()),  # vLLM takes powers of two
        weights=None if commit else store.weights_hash(root() / base),
        data=re.sub(r"(?<=\s)/\S*/", "", data),  # no path of this machine
        results=tables.accuracies(rows.assign(method=names)).to_markdown(),
    )  # fmt: skip


def write(run: Run, seed: int, folder: Path, *, merged: bool) -> Path:
    """The trained student in a folder, whole or not at all; RuntimeError if there is none."""
    from trdlib import models

    adapter, name, how = run.adapter(seed), run.model_path("student", seed), run.settings.models
    about = store.read_json(adapter / "run.json", {})
    if not about or store.weights_hash(adapter) != about["weights"]:
        raise RuntimeError(f"{run} has no whole adapter of seed {seed}: train it (4_distill)")

    def fill(to: Path) -> None:
        if merged:
            plain = how.model_copy(update={"backend": "transformers", "load_in_4bit": False})
            model, _ = models.load(name, plain, run.context_length)
            models.with_adapter(model, adapter).save_pretrained(to)
        else:
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(adapter / file, to / file)  # its rights: others may read it
        models.load_tokenizer(name).save_pretrained(to)
        store.write_text(to / "README.md", card(run, seed, about, merged=merged))

    return store.write_folder(folder, fill)


def push(folder: Path, repo: str) -> None:
    """Upload the folder; RuntimeError, in one sentence, if the hub does not take it."""
    import httpx
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="trdlib export")
    except (httpx.HTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        how = "go online and log in (hf auth login), with the right to write there, and try again"
        raise RuntimeError(f"the hub did not take {repo} ({why}): {how}") from None


def command(name: str, *, seed: int | None, merged: bool, repo: str | None, to: str | None) -> None:
    """`python -m trdlib export`."""
    scale, *rest = name.rsplit("/", 2)
    if len(rest) != 2 or rest[0] == "none":
        raise SettingsError(f"{name!r} is no trained run: write scale/mode/method, tiny/opd/trd")
    run = get_run(scale, *rest)
    seed = run.settings.seeds[0] if seed is None else seed
    usual = f"{run}/{seed}{'/merged' if merged else ''}".replace("/", "-")
    if to and Path(to).exists():
        raise SettingsError(f"--to {to}: it is there already, name a folder that is not")
    folder = write(run, seed, Path(to or root() / "runs" / "export" / usual), merged=merged)
    print(f"{run}, seed {seed}: {folder}")
    if repo:
        push(folder, repo)
        print(f"https://huggingface.co/{repo}")
