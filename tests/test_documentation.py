"""What the documentation shows is so: its commands parse, its Python runs, its tables match the code."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from madewithml import cli, config, predict

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    joined = (block.replace("\\\n", " ") for page in PAGES for block in blocks(page, "bash"))
    return [line for block in joined for line in block.splitlines() if line.startswith("madewithml ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_shown_parses(line: str) -> None:
    arguments = shlex.split(line)[1:]
    group = typer.main.get_command(cli.app)
    command = group.commands[arguments[0]]

    context = command.make_context(arguments[0], arguments[1:])

    assert context.command is command


def test_the_readme_is_at_most_150_lines() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_the_readme_has_no_gap_left_to_fill() -> None:
    assert re.findall(r"@[A-Z]+@", (ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_the_python_shown_in_the_readme_runs(trained, home, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MADEWITHML_HOME", str(home))
    monkeypatch.setattr(predict, "get_best_run_id", lambda *_: trained.run_id)
    (program,) = blocks(ROOT / "README.md", "python")

    exec(compile(program, "README.md", "exec"), {})

    prediction, confidence = capsys.readouterr().out.split()
    assert prediction
    assert 0.0 < float(confidence) <= 1.0


def test_the_answer_shown_in_the_readme_has_the_keys_of_an_answer(predictor) -> None:
    (shown,) = (json.loads(block) for block in blocks(ROOT / "README.md", "json"))
    (answer,) = predictor.predict([{"title": "Intro to CNNs", "description": "Processing images with layers."}])

    expected = list(answer)

    assert expected == [key for key in shown["results"][0] if key != "candidates"]
    assert list(shown) == ["results", "run_id", "request_id"]


def test_the_settings_table_lists_every_setting() -> None:
    table = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").split("| setting |", 1)[1]
    listed = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines()[2:] if "|" in line)))

    assert set(config.Settings.model_fields) == listed


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert broken == []
